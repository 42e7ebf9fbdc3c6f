"""Whether a training run comes to the same end whenever it is killed.

    python benchmarks/kills.py --kills 100 --runs 20 --seed 0

Each run of a tiny network is killed with SIGKILL several times at random moments, a third of them
within the second after its last epoch, in which it writes its figures; after each kill it is
resumed, and at last brought to its end. Counted are resumes that were refused, and ends that differ
from those of a run that nobody killed: in the files of the folder, the bits of the weights and of
the state, the log (but for seconds), or in files that were left behind. The processes are forked
from one that has imported everything, so that moments fall into training and not into imports. The
last line of output is JSON. Needs Linux.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fleetnet import checkpoint
from fleetnet.cli import main as fleetnet_main
from fleetnet.training.log import read_log

EPOCHS = 5
WORDS = (
    "train --model fasternet_t0 --data shapes:40 --size 32 --batch-size 8 --optimizer sgd --lr "
    f"0.05 --device cpu --threads 1 --epochs {EPOCHS}"
).split()
LAST_SECOND = 1 / 3  # share of the kills, the last ones of each run
EARLY = 0.4  # the other kills come within this share of the time that a whole run takes, so that some epochs remain
LONGEST = 600.0  # seconds that one attempt may take


@dataclass
class Result:
    # by the files that were there at that moment
    kills: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    refused: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kills": sum(self.kills.values()), "moments": dict(self.kills), "resumes": self.resumes,
            "refused": self.refused, "differing": self.differing,
        }  # fmt: skip


def start(words: list[str], output: Path) -> int:
    """The number of a new process that runs a command, with all it says in a file."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with output.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        code = fleetnet_main(words)
        sys.stdout.flush()
    finally:
        os._exit(code)


def ended(process: int) -> int | None:
    """The exit code of a process, None while it runs."""
    done, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def lines_of(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def moment_of(run: Path) -> str:
    if lines_of(run) >= EPOCHS:
        return "after the last epoch"
    if (run / "state" / "trainer.pt").exists():
        return "between epochs"
    return (
        "in the first epoch"
        if (run / "config.yaml").exists()
        else "before its settings were written"
    )


def attempt(
    run: Path, output: Path, wait: float | None = None, at_end: bool = False
) -> tuple[int | None, str]:
    """Start or resume a run, and kill it `wait` seconds after its start, or after its last epoch if `at_end`.

    Returns (None, when it was killed), or its exit code if it ended before.
    """
    words = (
        ["train", "--resume", str(run)]
        if (run / "config.yaml").exists()
        else [*WORDS, "--run", str(run)]
    )
    process, began = start(words, output), time.monotonic()
    kill_at = None if wait is None or at_end else began + wait
    while time.monotonic() - began < LONGEST:
        code = ended(process)
        if code is not None:
            return code, ""
        now = time.monotonic()
        if wait is not None and kill_at is None and lines_of(run) >= EPOCHS:
            kill_at = now + wait
        if kill_at is not None and now >= kill_at:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None, moment_of(run)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise TimeoutError(f"{run} took more than {LONGEST:g} s")


def contents(run: Path) -> dict[str, Any]:
    """What must be equal: names of files, weights, state and log, without the seconds that epochs took."""
    state = checkpoint.load_state(run / "state")
    state["log"] = [{**line, "seconds": 0} for line in state["log"]]
    weights = {
        path.name: checkpoint.load(path).model.state_dict() for path in run.glob("*.safetensors")
    }
    return {
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*")),
        "state": state,
        "log": [{**line, "seconds": 0} for line in read_log(run)],
        **weights,
    }


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def campaign(kills: int, runs: int, seed: int, folder: Path) -> Result:
    """Kill `runs` runs in `folder`, `kills` times in all."""
    whole, output, chance, result = (
        folder / "whole",
        folder / "output.txt",
        random.Random(seed),
        Result(),
    )
    began = time.monotonic()
    if (code := attempt(whole, output)[0]) != 0:
        raise RuntimeError(
            f"a run that nobody killed ended with {code}: {output.read_text()[-2000:]}"
        )
    seconds = time.monotonic() - began
    expected = contents(whole)
    for number in range(runs):
        run = folder / f"run{number}"
        wanted = kills * (number + 1) // runs - kills * number // runs
        last = round(wanted * LAST_SECOND)
        while wanted:
            at_end = wanted <= last
            wait = chance.uniform(0, 1.0 if at_end else EARLY * seconds)
            code, moment = attempt(run, output, wait, at_end)
            result.resumes += 1
            if code is None:
                result.kills[moment] += 1
                wanted -= 1
            elif code:
                result.refused.append(f"run {number}: exit code {code}")
                break
        result.resumes += 1
        if code := attempt(run, output)[0]:
            result.refused.append(f"run {number}, to its end: exit code {code}")
            continue
        found = contents(run)
        result.differing += [
            f"run {number}: {key}" for key in expected if not equal(expected[key], found.get(key))
        ]
        shutil.rmtree(run)
        print(
            f"run {number + 1} of {runs}: {json.dumps(result.to_dict())}",
            file=sys.stderr,
            flush=True,
        )
    if result.refused:
        print(output.read_text()[-4000:], file=sys.stderr)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for module in (
        "accelerate",
        "matplotlib.figure",
        "rich.table",
        "jsonargparse",
        "torchvision",
        "yaml",
    ):
        importlib.import_module(module)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = campaign(args.kills, args.runs, args.seed, Path(folder))
    told = {
        **result.to_dict(),
        "runs": args.runs,
        "seed": args.seed,
        "minutes": (time.monotonic() - began) / 60,
    }
    print(
        f"{told['kills']} kills over {args.runs} runs: "
        + ", ".join(f"{n} {k}" for k, n in result.kills.items())
    )
    print(
        f"{result.resumes} starts and resumes, {len(result.refused)} refused, "
        f"{len(result.differing)} ends differ"
    )
    print(json.dumps(told))


if __name__ == "__main__":
    main()
