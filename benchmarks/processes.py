"""What becomes of a training by two processes when one of them dies, hangs or is told to stop.

    python benchmarks/processes.py
    python benchmarks/processes.py "torchrun kill 1" "devices hang 0"

A case is what starts the processes (`--devices 2` or torchrun), what befalls one of them, and which
one; it comes at one step of a tiny network's second epoch. Of each are shown the exit code, the
seconds from the fault to the end of all, the processes that are left behind, and how many of the
two printed where they stand. The last line of output is JSON. Needs Linux.

With a verb, as in `python benchmarks/processes.py train ...`, this is `fleetnet` itself with that
tiny network and fault: it is what the cases start, and tests do. In the environment,

    FLEETNET_FAULT       "kill 1 0 4": what, and the rank, epoch and step (from 0) that it comes at;
                         several are separated by ";", and each comes once
    FLEETNET_STEPS       the file into which each process writes what samples it had in each step;
                         beside it lies a file for each fault that came
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROGRAM = (sys.executable, __file__)
WORDS = ["train", "--model", "tiny", "--data", "shapes:36", "--size", "32", "--batch-size", "6"]
WORDS += ["--epochs", "3", "--optimizer", "sgd", "--lr", "0.05", "--norm", "sync"]
WORDS += ["--ema", "null", "--device", "cpu", "--threads", "1"]
TIMEOUT = 15.0  # seconds that a process may be waited for: the two do not start at once
LONGEST = 300.0  # seconds that a case may take
# Of torchrun's processes that are ended, as --devices has it.
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--shutdown-timeout", "8")


# What befalls a process ---------------------------------------------------------------------------


def broken() -> None:
    raise RuntimeError("something broke")


FAULTS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raise": broken,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),  # it answers to nothing any more
    "hang": lambda: time.sleep(10 * LONGEST),  # its other threads go on
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "terminate-starter": lambda: os.kill(os.getppid(), signal.SIGTERM),
    "kill-starter": lambda: os.kill(os.getppid(), signal.SIGKILL),
}


def mark_of(fault: str, steps: Path) -> Path:
    """The file that says by its time when a fault came."""
    return steps.with_name(f"{steps.name}-{fault.strip().replace(' ', '-')}")


def befall(rank: int, epoch: int, step: int) -> None:
    """Do what the environment says, if this is its process and step, and the first time."""
    for fault in filter(None, os.environ.get("FLEETNET_FAULT", "").split(";")):
        what, *place = fault.split()
        if [rank, epoch, step] != [int(number) for number in place]:
            continue
        try:
            mark_of(fault, Path(os.environ["FLEETNET_STEPS"])).touch(exist_ok=False)
        except FileExistsError:
            continue
        FAULTS[what]()


def observed(losses_of: Callable[..., Any]) -> Callable[..., Any]:
    """The loop's function of a step, with the fault before it and a line of its samples after it."""
    from fleetnet.launched import launched

    how = launched()

    def losses(learner: Any, batch: Any, epoch: int, step: int, hook: Any) -> Any:
        befall(how.rank, epoch, step)
        result = losses_of(learner, batch, epoch, step, hook)
        line = [epoch, step, how.world, how.rank, batch.indices]
        with open(os.environ["FLEETNET_STEPS"], "a") as file:
            file.write(json.dumps(line) + "\n")
        return result

    return losses


def samples_of(steps: Path) -> dict[tuple[int, int], list[list[int]]]:
    """Of each epoch and step, the samples of the whole batch, each time that it was trained on."""
    parts: dict[tuple[int, ...], list[list[int]]] = defaultdict(list)
    for text in steps.read_text().splitlines():
        epoch, step, world, rank, samples = json.loads(text)
        parts[epoch, step, world, rank].append(samples)
    batches: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
    for epoch, step, world in {key[:3] for key in parts}:
        of_ranks = [parts[epoch, step, world, rank] for rank in range(world)]
        for turn in zip(*of_ranks, strict=False):
            batches[epoch, step].append([sample for part in turn for sample in part])
    return batches


def offer_tiny() -> None:
    """Make `tiny` a name of a network, the smallest that the command line trains."""
    from functools import partial

    from torch import nn

    from fleetnet.backbones import fasternet

    fasternet.VARIANTS["tiny"] = partial(fasternet.FasterNet, 8, (1, 1, 1, 1), nn.ReLU)


def draw_nothing() -> None:
    """Leave out the figures of a run, which take longer than the run."""
    from importlib import import_module

    fit, overview = (import_module(f"fleetnet.training.{name}") for name in ("fit", "overview"))
    for module, name in ((fit, "write_overview"), (fit, "samples"), (overview, "write_overview")):
        setattr(module, name, lambda *_: None)


def as_fleetnet(words: Sequence[str]) -> int:
    """Run a command as `fleetnet` does, or as one of the processes that it starts."""
    from fleetnet.cli import _launching, main
    from fleetnet.launched import launched

    _launching.PROGRAM = PROGRAM
    only_starts = not launched().is_one_of_several
    if not only_starts or "--resume" not in words:  # which it starts without torch
        offer_tiny()
    if not only_starts:
        from fleetnet.training import epoch

        epoch.losses_of = observed(epoch.losses_of)
        draw_nothing()
    return main(words)


# Starting it --------------------------------------------------------------------------------------


def start(
    words: Sequence[str], output: Path, steps: Path, fault: str = ""
) -> "subprocess.Popen[bytes]":
    """A process in the folder of `output`, into which goes what it and its children say."""
    about = {"FLEETNET_FAULT": fault, "FLEETNET_STEPS": str(steps), "OMP_NUM_THREADS": "1"}
    with output.open("ab") as file:
        return subprocess.Popen(
            words, stdout=file, stderr=file, env={**os.environ, **about}, cwd=output.parent
        )


def processes_of(steps: Path) -> list[int]:
    """All processes that were started to write into a file, and their children."""
    wanted = f"FLEETNET_STEPS={steps}\0".encode()
    numbers = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and wanted in (path / "environ").read_bytes():
                numbers.append(int(path.name))
        except OSError:  # it has ended, or is another user's
            continue
    return numbers


def left_behind(steps: Path, seconds: float = 12.0) -> list[int]:
    """The processes that are there still after some seconds: workers look after theirs every five."""
    deadline = time.monotonic() + seconds
    while (left := processes_of(steps)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return left


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


# The cases ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    case: str
    code: int  # of what started the processes
    seconds: float  # from the fault to its end
    left: int  # processes that are left behind
    stacks: int  # how many processes printed where they stand
    said: str

    def row(self) -> str:
        return f"{self.case:32} {self.code:4} {self.seconds:8.1f} {self.left:4} {self.stacks:6}"


CASES = [
    f"{starter} {what} {rank}"
    for starter in ("devices", "torchrun")
    for what in ("kill", "raise", "stop", "hang")
    for rank in (0, 1)
]
CASES += ["devices terminate-starter 1", "torchrun terminate-starter 1"]
CASES += ["devices terminate 1", "devices kill-starter 1", "torchrun kill-starter 1"]


def outcome_of(case: str, folder: Path) -> Outcome:
    """What becomes of a training with a fault."""
    starter, what, rank = case.split()
    output, steps = folder / "output.txt", folder / "steps.txt"
    words = [*WORDS, "--run", str(folder / "run"), "--workers", "1"]
    words += ["--timeout", str(TIMEOUT / 60)]
    command = [*PROGRAM, *words, "--devices", "2"]
    if starter == "torchrun":
        how = ["--standalone", "--nproc-per-node", "2"]
        command = [*TORCHRUN, *how, "--", PROGRAM[1], *words]
    fault = f"{what} {rank} 1 2"
    process = start(command, output, steps, fault)
    try:
        code = process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    ended = time.time()
    mark = mark_of(fault, steps)
    seconds = ended - mark.stat().st_mtime if mark.exists() else float("nan")
    left = left_behind(steps)
    said = output.read_text()
    return Outcome(case, code, seconds, len(left), said.count("and stands here:"), said)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument("--said", action="store_true", help="print what each case said, too")
    arguments = parser.parse_args()
    print(f"a process may be waited for {TIMEOUT:g} s; load {os.getloadavg()[0]:.1f}")
    print(f"{'case':32} {'code':>4} {'seconds':>8} {'left':>4} {'stacks':>6}")
    outcomes = []
    for case in arguments.cases:
        with tempfile.TemporaryDirectory() as folder:
            outcome = outcome_of(case, Path(folder))
        print(outcome.row(), flush=True)
        if arguments.said:
            print(outcome.said, file=sys.stderr, flush=True)
        outcomes.append({key: value for key, value in asdict(outcome).items() if key != "said"})
    print(json.dumps({"timeout": TIMEOUT, "cases": outcomes}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        sys.exit(as_fleetnet(sys.argv[1:]))
    main()
