"""Damaged and tampered model files, descriptions and run folders: a right answer or an error in our words, every time.

    python benchmarks/damaged.py --count 500 --seed 0

Trains a tiny network, exports it to the runtimes that are here, and changes one file a case:
flipped bits, cut ends, zeroed blocks, other values under a key of a description, with the hashes as
they were or made anew as a forger would. Each case is computed in another process, which is started
again when it dies. An outcome is good if

    the answer is that of the files as they were, or (with hashes made anew, or where there is none) one that is whole,
    the error is a `FleetnetError` with exit code 4,

within a minute and within 1 GB more memory than before. Prints a line for each bad one, a table,
and a JSON line last.
"""

import argparse
import hashlib
import json
import os
import queue
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS, MEGABYTES = 60.0, 1000.0
RUNTIMES = {"onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin"), "ncnn": ("model.param", "model.bin"),
            "mnn": ("model.mnn",)}  # fmt: skip
STRANGE: list[Any] = [
    None, True, False, -1, 0, 1, 1.5, 100_000, 10**30, 1e308, float("nan"), float("inf"), "", "x", "\x1b[2J",
    "x" * 5000, [], [[]], [None], [100_000, 100_000], [-1, 0], ["a", "a"], list(range(2000)), {}, {"x": []}, {"": None},
    "../../x", "ssd", "deploy", "NaN",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One file of a folder, changed in one way."""

    kind: str  # what is read: "checkpoint", "state", "config", "log", or a runtime
    folder: str  # that is copied
    file: str  # in it
    change: str  # "bits", "cut", "zeros", "value", "forged", "alone"
    seed: int


@dataclass
class Outcome:
    case: Case
    good: bool
    said: str
    seconds: float
    megabytes: float


# ---- changes ---------------------------------------------------------------------------------------------------------


def change_bytes(content: bytes, how: str, chance: random.Random) -> bytes:
    if how == "cut":
        return content[: chance.randrange(len(content))]
    changed = bytearray(content)
    if how == "zeros":
        start, length = chance.randrange(len(content)), chance.choice([1, 16, 512, 4096])
        changed[start : start + length] = bytes(len(changed[start : start + length]))
        return bytes(changed)
    for _ in range(chance.choice([1, 1, 1, 3, 30])):
        place = chance.randrange(min(len(content), chance.choice([64, 4096, len(content)])))
        changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values in a document, but for those of long lists."""
    if path:
        yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:3])
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from places(item, (*path, key))


def change_value(document: Any, chance: random.Random) -> Any:
    """A document with one value replaced, removed, or of another size."""
    changed = json.loads(json.dumps(document))
    path = chance.choice([path for path in places(changed) if not str(path[-1]).endswith("sha256")])
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    value, how = holder[path[-1]], chance.random()
    if how < 0.15 and isinstance(holder, dict):
        del holder[path[-1]]
    elif how < 0.3 and isinstance(value, int | float) and not isinstance(value, bool):
        holder[path[-1]] = value * chance.choice([-1, 2, 1000, 0.5])
    elif how < 0.3 and isinstance(value, list):
        holder[path[-1]] = chance.choice([value[:-1], value + value, value[::-1]])
    else:
        holder[path[-1]] = chance.choice(STRANGE)
    return changed


def change(path: Path, how: str, chance: random.Random) -> None:
    """Change a file in place."""
    from fleetnet.facts import OWN_HASH, own_hash
    from fleetnet.reading import from_json, to_json

    if how not in ("value", "forged"):
        path.write_bytes(change_bytes(path.read_bytes(), "bits" if how == "alone" else how, chance))
    elif path.suffix == ".json":
        about = change_value(json.loads(path.read_text(encoding="utf-8")), chance)
        if how == "forged" and isinstance(about, dict):
            about = from_json(to_json(about))
            about[OWN_HASH] = own_hash(about)
        path.write_text(json.dumps(about), encoding="utf-8")
    elif path.suffix == ".safetensors":
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        notes = header["__metadata__"]
        notes["fleetnet"] = json.dumps(change_value(json.loads(notes["fleetnet"]), chance))
        if how == "forged":
            notes["facts_sha256"] = hashlib.sha256(notes["fleetnet"].encode()).hexdigest()
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    else:
        import yaml

        text = path.read_text(encoding="utf-8")
        changed = yaml.safe_dump(change_value(yaml.safe_load(text), chance))
        kept = (
            [line for line in text.splitlines() if line.startswith("#")] if how == "value" else []
        )
        path.write_text("\n".join([changed, *kept]) + "\n", encoding="utf-8")


# ---- the process that reads ------------------------------------------------------------------------------------------


def read(kind: str, folder: Path, file: str) -> Any:
    """What the library makes of a folder: something that can be compared."""
    from PIL import Image

    import fleetnet
    from fleetnet import checkpoint
    from fleetnet.cli._resuming import _read_config
    from fleetnet.training.log import read_log

    if kind == "config":
        return _read_config(folder).to_dict()
    if kind == "log":
        return read_log(folder)
    if kind == "state":
        return checkpoint._digest(checkpoint.load_state(folder / "state"))
    path = folder / "best.safetensors" if kind == "checkpoint" else folder / RUNTIMES[kind][0]
    picture = Image.linear_gradient("L").resize((40, 40)).convert("RGB")
    return [(name, round(score, 4)) for name, score in fleetnet.load(path).predict([picture])[0]]


def serve() -> None:
    """Answer cases, one a line, until standard input ends."""
    from fleetnet.errors import FleetnetError

    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    for line in sys.stdin:
        kind, folder, file = json.loads(line)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            answer: dict[str, Any] = {"answer": read(kind, Path(folder), file)}
        except FleetnetError as error:
            answer = {"code": error.exit_code, "said": str(error)}
        except BaseException as error:
            answer = {"code": 1, "said": f"{type(error).__name__}: {error}"}
        answer["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
        print(json.dumps(answer), file=answers, flush=True)


class Reader:
    """The other process, started when it is needed."""

    process: "subprocess.Popen[str] | None" = None

    def ask(self, kind: str, folder: Path, file: str) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            self.close()
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        process = self.process
        assert process.stdin is not None
        process.stdin.write(json.dumps([kind, str(folder), file]) + "\n")
        process.stdin.flush()
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True).start()
        try:
            line = lines.get(timeout=SECONDS)
        except queue.Empty:
            process.kill()
            return {"code": -1, "said": f"nothing after {SECONDS:g} s", "megabytes": 0.0}
        if not line:
            return {"code": -1, "said": f"the process died: {process.wait()}", "megabytes": 0.0}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()  # which closes the pipes
            self.process = None


# ---- the campaign ----------------------------------------------------------------------------------------------------


def cases_of(run: Path, count: int, seed: int) -> list[Case]:
    """Cases over all files of a run and its exports, in equal parts."""
    kinds: list[tuple[str, str, str, str]] = []
    for how in ("bits", "cut", "zeros", "value", "forged"):
        kinds.append(("checkpoint", ".", "best.safetensors", how))
        kinds.append(("config", ".", "config.yaml", how))
        if how not in ("value", "forged"):
            kinds += [("state", ".", "state/trainer.pt", how), ("log", ".", "log.jsonl", how)]
    for name, files in RUNTIMES.items():
        if (run / "export" / name).is_dir():
            kinds += [
                (name, f"export/{name}", file, how)
                for file in files
                for how in ("bits", "cut", "zeros")
            ]
            kinds += [
                (name, f"export/{name}", "model.json", how)
                for how in ("bits", "cut", "value", "forged")
            ]
    if (run / "export" / "onnx").is_dir():
        # without the sidecar that has its hash
        kinds.append(("onnx", "export/onnx", "model.onnx", "alone"))
    return [Case(*kinds[i % len(kinds)], seed=seed * 1_000_003 + i) for i in range(count)]


def campaign(run: Path, cases: list[Case], show: Callable[[str], None] = print) -> list[Outcome]:
    """The outcome of each case; bad ones are shown."""
    outcomes, reader, expected = [], Reader(), {}
    with tempfile.TemporaryDirectory() as place:
        for case in cases:
            key = case.kind, case.folder
            if key not in expected:
                expected[key] = reader.ask(case.kind, run / case.folder, case.file)["answer"]
            copy = Path(place) / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(
                run / case.folder,
                copy,
                ignore=None if case.folder != "." else shutil.ignore_patterns("export"),
            )
            change(copy / case.file, case.change, random.Random(case.seed))
            if case.change == "alone":
                (copy / "model.json").unlink()
            began = time.monotonic()
            answer = reader.ask(case.kind, copy, case.file)
            seconds = time.monotonic() - began
            fits = answer.get("answer") == expected[key] or (
                "answer" in answer
                and case.change in ("forged", "alone")
                and _is_answer(answer["answer"])
            )
            # log.jsonl has no hash: it is a record, --resume goes by the state. Lines that a kill
            # cut off are no fault.
            fits = fits or (
                case.kind == "log" and (case.change == "cut" or _is_answer(answer.get("answer")))
            )
            good = (fits or answer.get("code") == 4) and answer["megabytes"] < MEGABYTES
            said = answer.get("said") or json.dumps(answer.get("answer"))[:200]
            outcomes.append(Outcome(case, good, said, seconds, answer["megabytes"]))
            if not good:
                show(f"BAD {case}: {said[:300]} ({seconds:.1f} s, {answer['megabytes']:.0f} MB)")
    reader.close()
    return outcomes


def _is_answer(answer: Any) -> bool:
    return bool(answer) and "NaN" not in json.dumps(answer)


def made(folder: Path) -> Path:
    """A run of one epoch on generated pictures, with its exports."""
    from fleetnet.cli import main
    from fleetnet.find import find

    run = folder / "run"
    words = "train --model fasternet_t0 --data shapes:40 --size 32 --batch-size 8 --epochs 1 --threads 1"
    if main([*words.split(), "--run", str(run)]):
        raise SystemExit("the training failed")
    able = [name for name in RUNTIMES if not find("runtimes", name).missing()]
    if main(["export", "--model", str(run), "--to", ",".join(able)]):
        raise SystemExit("the export failed")
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="a run with exports (default: one is made)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or made(Path(folder))
        outcomes = campaign(run, cases_of(run, given.count, given.seed))
    by_kind = Counter((o.case.kind, o.case.change, o.good) for o in outcomes)
    for (kind, how, good), number in sorted(by_kind.items()):
        print(f"{kind:12} {how:8} {'good' if good else 'BAD':4} {number}")
    bad = [{**asdict(o.case), "said": o.said[:300]} for o in outcomes if not o.good]
    slowest, largest = max(o.seconds for o in outcomes), max(o.megabytes for o in outcomes)
    print(
        json.dumps({"cases": len(outcomes), "bad": bad, "slowest_s": slowest, "most_mb": largest})
    )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
