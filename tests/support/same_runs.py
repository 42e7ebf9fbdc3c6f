"""Six small training runs and what came of them, to show that moving code changed nothing.

    python tests/support/same_runs.py record before.json      # at the commit before
    python tests/support/same_runs.py compare before.json     # at the commit after

`compare` trains the same runs again and prints for each "same", or which items differ and how; it
ends with 1 where something differs. Names of runs after the file limit either command to those.

Recorded are the bits of the weights, the log but for seconds, the facts in the checkpoints and
beside the exported file, the best result by class, which files there are, and what the exported
ONNX file computes of a fixed image.

Unusual here: only the command line and the files that it writes are used, never a module inside the
library, because those are what moves. One thread and one process, so that no sum depends on who is
first. The bits belong to a machine and to versions of the libraries, which are recorded too: a
recording is compared where it was made, and never committed.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
ALWAYS = "--device cpu --threads 1 --workers 0 --seed 3"
CHECKPOINTS = ("last.safetensors", "ema.safetensors", "best.safetensors")
LIBRARIES = ("torch", "torchvision", "accelerate", "numpy", "pillow", "onnx", "onnxruntime")
# Keys of a description that are not compared: the time, the versions, and rounding in a proof.
# Hashes of files are left out too: they include the metadata, and so the version.
# And what a sidecar did not say when the first recording was made: golden_tolerance.
NOT_COMPARED = (
    "seconds", "created", "version", "format", "runtime_version", "parity", "golden_tolerance"
)  # fmt: skip
INTERRUPTED = 130  # the exit code after Ctrl-C
SHOWN = 12  # differences of a run that are printed
LONGEST = 100  # characters of a value that are printed
ABSENT = "(absent)"


@dataclass(frozen=True)
class SmallRun:
    """The settings of a run; together the runs use most of what a run can be told."""

    train: str  # words after `fleetnet train`
    export: str = ""  # words after `fleetnet export`
    interrupted_after: int = 0  # the epoch after which Ctrl-C is pressed; 0 for never


RUNS = {
    "classifier": SmallRun(
        "--model fasternet_t0 --data shapes:40 --size 64 --batch-size 8 --epochs 3 --lr 0.002 "
        "--ema 0.9 --accumulate 2 --clip 1 --mixup 0.2 --drop-path 0.2 --erasing 0.3"
    ),
    "ssd": SmallRun(
        "--model ssd/mobileone_s0 --data shapes:16 --size 96 --batch-size 4 --epochs 2 --lr 0.002 "
        "--ema 0.9 --head-lr 2 --scale 0.5",
        export="--embed-decode",
    ),
    "yolo": SmallRun(
        "--model yolo/repvit_m0_6 --data shapes:16 --size 96 --batch-size 4 --epochs 3 --lr 0.002 "
        "--ema 0.9 --clip 10 --mosaic 0.8 --plain-epochs 1 --multi-scale 0.3"
    ),
    "maskrcnn": SmallRun(
        "--model maskrcnn/fasternet_t0 --data shapes:16 --size 96 --batch-size 4 --epochs 3 "
        "--lr 0.004 --ema 0.9 --options.channels 16 --options.hidden 32 --options.samples 16 "
        "--options.proposals 40 --options.anchor 8"
    ),
    "deeplabv3": SmallRun(
        "--model deeplabv3/parcnet_xs --data shapes:16 --size 64x96 --batch-size 4 --epochs 2 "
        "--optimizer sgd --lr 0.05 --momentum 0.8 --weight-decay 0.001 --ema null --norm frozen "
        "--class-weights balanced",
        export="--embed-preprocess",
    ),
    "resumed": SmallRun(
        "--model mobileone_s0 --data shapes:36 --size 32 --batch-size 8 --epochs 3 "
        "--optimizer sgd --lr 0.005 --ema 0.9 --cutmix 1 --balance true "
        "--auto-augment randaugment --cache true",
        export="--dynamic batch",
        interrupted_after=1,
    ),
}


# Running the command line -------------------------------------------------------------------------


class Interrupting(io.StringIO):
    """Standard error that presses Ctrl-C at the first word after so many epochs are in the log."""

    def __init__(self, log: Path, epochs: int) -> None:
        super().__init__()
        self.log = log
        self.epochs = epochs
        self.pressed = False

    def write(self, text: str) -> int:
        if not self.pressed and len(lines_of(self.log)) >= self.epochs:
            self.pressed = True
            raise KeyboardInterrupt
        return super().write(text)


def fleetnet(words: str, stderr: io.StringIO | None = None, exit_code: int = 0) -> None:
    """Run a verb in this process, silently; `SystemExit` with what it said if it ends otherwise."""
    from fleetnet.cli import main

    tables = io.StringIO()
    messages = io.StringIO() if stderr is None else stderr
    with contextlib.redirect_stdout(tables), contextlib.redirect_stderr(messages):
        code = main(shlex.split(words))
    if code != exit_code:
        said = tables.getvalue() + messages.getvalue()
        raise SystemExit(f"{said}`fleetnet {words}` ended with {code} instead of {exit_code}")


def train(run: SmallRun, folder: Path) -> None:
    """Train a run to its end in a folder; one that is to be interrupted, in two parts."""
    quoted = shlex.quote(str(folder))
    words = f"train {run.train} {ALWAYS} --run {quoted}"
    if not run.interrupted_after:
        fleetnet(words)
        return
    log = folder / "log.jsonl"
    fleetnet(words, Interrupting(log, run.interrupted_after), INTERRUPTED)
    epochs = len(lines_of(log))
    if epochs != run.interrupted_after:
        raise SystemExit(f"interrupted after {epochs} epochs instead of {run.interrupted_after}")
    fleetnet(f"train --resume {quoted}")


# What came of a run -------------------------------------------------------------------------------


def record(name: str) -> dict[str, Any]:
    """Train and export a run in a temporary folder; all that came of it, as nested mappings."""
    run = RUNS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        train(run, folder)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        export = Path(temporary) / "export"
        fleetnet(f"export --model {folder} --out {export} --to onnx {run.export}")
        (exported,) = export.rglob("*.onnx")
        image_range = (0, 255) if "--embed-preprocess" in run.export else (-2, 2)
        log = lines_of(folder / "log.jsonl")
        recorded = {
            "log": {f"epoch {line['epoch']}": compared(line) for line in log},
            "best": compared(json.loads((folder / "best.json").read_text())),
            "checkpoints": {
                checkpoint: record_checkpoint(folder / checkpoint)
                for checkpoint in CHECKPOINTS
                if (folder / checkpoint).exists()
            },
            "outputs": record_outputs(exported, image_range),
            "sidecar": compared(json.loads(exported.with_suffix(".json").read_text())),
            "files": {str(path.relative_to(folder)): "written" for path in files},
        }
    return json.loads(json.dumps(recorded))  # as it comes back from a file: keys are text


def record_checkpoint(path: Path) -> dict[str, Any]:
    """A hash of a checkpoint's tensors, and of each; and what its metadata says of it."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        facts = json.loads(file.metadata()["fleetnet"])
    together = hashlib.sha256()
    described = {}
    for name, tensor in tensors.items():
        own = digest(tensor)
        together.update(f"{name} {own}\n".encode())
        described[name] = f"{own[:16]} {rounded(tensor)}"
    return {"sha256": together.hexdigest(), "facts": compared(facts), "tensors": described}


def record_outputs(path: Path, image_range: tuple[float, float]) -> dict[str, Any]:
    """What an ONNX file computes of a fixed image with one thread: hashes and some values."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()
    # (N, 3, H, W): where the number of images is open it is a name, and two are given
    shape = [size if isinstance(size, int) else 2 for size in argument.shape]
    image = np.random.default_rng(0).uniform(*image_range, shape).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, {argument.name: image}), strict=True))
    return {name: {"sha256": digest(y), "values": rounded(y)} for name, y in outputs.items()}


def digest(array: np.ndarray) -> str:
    """A hash of an array's type, shape and bytes."""
    hashed = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    hashed.update(array.tobytes())
    return hashed.hexdigest()


def rounded(array: np.ndarray) -> str:
    """Type, shape, norm and first values, to see whether a difference is a small or a large one."""
    values = array.astype(np.float64).ravel()
    norm = np.sqrt(np.square(values).sum())
    first = " ".join(f"{value:.5g}" for value in values[:4])
    return f"{array.dtype} {list(array.shape)}, norm {norm:.6g}: {first}"


def compared(description: dict[str, Any]) -> dict[str, Any]:
    """A description without what differs from one run to the next."""
    left_out = {key for key in description if key in NOT_COMPARED or key.endswith("sha256")}
    return {key: value for key, value in description.items() if key not in left_out}


def lines_of(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines()]


def environment() -> dict[str, str]:
    """What the bits depend on beside the code: the processor and the libraries."""
    import torch

    return {
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # of Linux
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


# Comparing ----------------------------------------------------------------------------------------


def items(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What nested mappings hold, with paths such as "checkpoints/last.safetensors/sha256"."""
    if not isinstance(value, dict) or not value:
        yield path, value
        return
    for key, part in value.items():
        yield from items(part, f"{path}/{key}" if path else key)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for each item that is not the same, with its path and both values."""
    # As text, in which NaN is NaN and 1 is not 1.0.
    old = {path: json.dumps(value) for path, value in items(before)}
    new = {path: json.dumps(value) for path, value in items(after)}
    return [
        f"{path}: {shortened(old.get(path, ABSENT))} -> {shortened(new.get(path, ABSENT))}"
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    ]


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def compare(recorded: dict[str, Any], names: Sequence[str]) -> bool:
    """Whether these runs come out as recorded; prints for each run what differs."""
    changed = differences(recorded["environment"], environment())
    if changed:
        print("the environment is not the recorded one, which by itself may change bits:")
        print_lines(changed)
    all_same = True
    for name in names:
        before = recorded["runs"][name]
        count = len(list(items(before)))
        lines = differences(before, timed(name))
        if lines:
            print(f"{name}: {len(lines)} of {count} items differ")
            print_lines(lines)
            all_same = False
        else:
            print(f"{name}: same ({count} items)", flush=True)
    return all_same


def print_lines(lines: Sequence[str]) -> None:
    for line in lines[:SHOWN]:
        print(f"  {line}")
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN} more")
    sys.stdout.flush()


def timed(name: str) -> dict[str, Any]:
    """`record`, which says how long it took."""
    start = time.monotonic()
    recorded = record(name)
    print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return recorded


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("verb", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("runs", nargs="*", help=f"of {', '.join(RUNS)} (default: all of them)")
    options = parser.parse_args(argv)
    file: Path = options.file
    recorded = json.loads(file.read_text()) if options.verb == "compare" else None
    allowed = list(RUNS if recorded is None else recorded["runs"])
    names = options.runs or allowed
    if unknown := [name for name in names if name not in allowed]:
        parser.error(f"no run {', '.join(unknown)}; allowed: {', '.join(allowed)}")

    import torch

    torch.set_num_threads(1)
    if recorded is not None:
        return 0 if compare(recorded, names) else 1
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {"environment": environment(), "runs": {name: timed(name) for name in names}}
    file.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded
    sys.path.insert(0, str(ROOT))  # the library of this checkout, whichever one is installed
    sys.exit(main())
