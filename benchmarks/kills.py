"""Whether a training run comes to the same end whenever it is killed, and whether its files can be read.

    python benchmarks/kills.py --kills 200 --runs 40 --writes 300 --folder kills/

Runs of a tiny network are of several kinds in turn: generated pictures, a folder, shards, with and
without worker processes, in one process and in two, with states within epochs. Each is killed with
SIGKILL several times at random moments, a third of them within the second after its last epoch, in
which it writes its figures; of two processes one is killed, or both. After each kill it is resumed,
and at last brought to its end. Counted are resumes that were refused, and ends that differ from
those of a run that nobody killed: in the files of the folder, the bits of the weights and of the
state, the log (but for seconds), or in files that were left behind.

With `--writes` runs that save after every step are killed while a file of theirs is half written.
After each kill everything that has a name is read, and the run goes on.

The processes are forked from one that has imported everything, so that moments fall into training
and not into imports. What each run and each kill came to is kept in the folder: a campaign that was
stopped goes on with the same command. The last line of output is JSON. Needs Linux.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fleetnet import checkpoint
from fleetnet.cli import main as fleetnet_main
from fleetnet.data import shapes
from fleetnet.errors import FleetnetError
from fleetnet.training.log import read_log

EPOCHS = 5
WORDS = [
    *("train", "--model", "fasternet_t0", "--size", "32", "--batch-size", "8"),
    *("--optimizer", "sgd", "--lr", "0.05", "--device", "cpu", "--threads", "1"),
]
OFTEN = ("--save-every", "0.001")  # minutes: within an epoch too
LAST_SECOND = 1 / 3  # share of the kills, the last ones of each run
# The other kills come within this share of the time that a whole run takes, so that some epochs
# remain.
EARLY = 0.4
LONGEST = 600.0  # seconds that one attempt may take
GRACE = 30.0  # seconds that a process gets to end when another one was killed
SKIPPED = 9  # writes that are let pass before a kill, at most: more than an epoch has at its end


@dataclass(frozen=True)
class Kind:
    """What a run learns from and how."""

    data: str  # as `source` names it
    words: tuple[str, ...] = ()
    processes: int = 1


KINDS = {
    "generated": Kind("generated"),
    "folder": Kind("folder", (*OFTEN, "--workers", "0")),
    "folder, 2 workers": Kind("folder", (*OFTEN, "--workers", "2")),
    "shards": Kind("shards", (*OFTEN, "--workers", "0")),
    "folder, 2 processes": Kind("folder", (*OFTEN, "--workers", "0"), 2),
    "shards, 2 workers": Kind("shards", (*OFTEN, "--workers", "2")),
    "shards, 2 processes, 1 worker each": Kind("shards", (*OFTEN, "--workers", "1"), 2),
}


def source(name: str, folder: Path) -> str:
    """What runs learn from, made in a folder; "generated" needs no files."""
    photos, shards = folder / "photos", folder / "shards"
    if name == "generated":
        return "shapes:40"
    if not photos.is_dir():
        write_photos(photos)
    if name == "folder":
        return str(photos)
    if not shards.is_dir():
        words = ["data", "convert", "--data", str(photos), "--to", "shards", "--out", str(shards)]
        (code,) = wait_for(start(words, folder / "output.txt"))
        if code:
            raise RuntimeError(f"no shards: exit code {code}")
    return str(shards)


def write_photos(photos: Path) -> None:
    """A folder for each class, with generated pictures."""
    for split in ("train", "val"):
        data = shapes.load("shapes:40", split)
        for number, sample in enumerate(data.samples):
            file = photos / split / data.classes[sample.label] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            sample.image().save(file)


# Processes ----------------------------------------------------------------------------------------


def start(words: Sequence[str], output: Path, processes: int = 1) -> list[int]:
    """The numbers of new processes that run a command together, with all they say in a file."""
    if processes == 1:
        return [forked(words, output, {})]
    together = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    ranks = [{**together, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)]
    return [forked(words, output, environment) for environment in ranks]


def forked(words: Sequence[str], output: Path, environment: dict[str, str]) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.environ.update(environment)
        with output.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        code = fleetnet_main(words)
        sys.stdout.flush()
    finally:
        os._exit(code)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def ended(process: int) -> int | None:
    """The exit code of a process, None while it runs."""
    which, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if which else None


def wait_for(processes: Sequence[int], seconds: float = LONGEST) -> list[int]:
    """The exit codes of processes; those that take longer are killed."""
    deadline = time.monotonic() + seconds
    codes: dict[int, int] = {}
    while len(codes) < len(processes):
        for process in processes:
            if process in codes:
                continue
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            code = ended(process)
            if code is not None:
                codes[process] = code
        time.sleep(0.002)
    return [codes[process] for process in processes]


def kill(processes: Sequence[int], which: Sequence[int]) -> None:
    """Kill some of the processes of a run; the others are told to end, as a launcher does."""
    for process in which:
        os.kill(process, signal.SIGKILL)
    for process in processes:
        if process not in which:
            os.kill(process, signal.SIGTERM)
    wait_for(processes, GRACE)


# A run, and what it leaves ------------------------------------------------------------------------


class Unreadable(Exception):
    """A file of a run that has its name cannot be read."""


def lines_of(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def read_all(run: Path) -> dict[str, Any] | None:
    """The state of a run after all its files were read, None where there is no state yet."""
    try:
        for file in run.glob("*.safetensors"):
            checkpoint.load(file)
        return (
            checkpoint.load_state(run / "state")
            if (run / "state" / "trainer.pt").exists()
            else None
        )
    except FleetnetError as error:
        raise Unreadable(str(error)) from error


def moment_of(run: Path) -> str:
    """Where a run is, by its files, all of which are read."""
    state = read_all(run)
    if lines_of(run) >= EPOCHS:
        return "after the last epoch"
    if state is None:
        is_new = not (run / "config.yaml").exists()
        return "before its settings were written" if is_new else "before its first state"
    return "after a state within an epoch" if state.get("so_far") else "after a state of an epoch"


@dataclass
class Runs:
    """Starts and resumes runs of a kind, all alike, in a folder."""

    kind: Kind
    source: str
    output: Path
    epochs: int = EPOCHS
    more: tuple[str, ...] = ()

    def words(self, run: Path) -> list[str]:
        if (run / "config.yaml").exists():
            return ["train", "--resume", str(run)]
        start_with = [*WORDS, *self.kind.words, *self.more, "--epochs", str(self.epochs)]
        return [*start_with, "--data", self.source, "--run", str(run)]

    def start(self, run: Path) -> list[int]:
        return start(self.words(run), self.output, self.kind.processes)

    def to_its_end(self, run: Path) -> int:
        """The exit code of a run that nobody kills."""
        return next((code for code in wait_for(self.start(run)) if code), 0)

    def attempt(self, run: Path, wait: float, chance: random.Random, *, at_end: bool) -> int | None:
        """Start or resume a run, and kill it `wait` seconds later, or later than its last epoch.

        Its exit code, or None when it was killed.
        """
        processes, began = self.start(run), time.monotonic()
        kill_at = None if at_end else began + wait
        while time.monotonic() - began < LONGEST:
            codes = [is_over(process) for process in processes]
            if any(codes):
                return next((code for code in wait_for(processes, GRACE) if code), 0)
            now = time.monotonic()
            if kill_at is None and lines_of(run) >= self.epochs:
                kill_at = now + wait
            if kill_at is not None and now >= kill_at:
                kill(processes, chance.choice([processes, *([one] for one in processes)]))
                return None
            time.sleep(0.002)
        kill(processes, processes)
        raise TimeoutError(f"{run} took more than {LONGEST:g} s")


def is_over(process: int) -> bool:
    """Whether a process has ended, which it can still be asked for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def contents(run: Path) -> dict[str, Any]:
    """What must be equal: names of files, weights, state and log, without the seconds of epochs."""
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


# Kills at any moment ------------------------------------------------------------------------------


def undisturbed(runs: Runs, whole: Path) -> tuple[dict[str, Any], float]:
    """What a run that nobody killed leaves, and the seconds that it took."""
    took = whole.with_suffix(".seconds")
    if not took.is_file():
        shutil.rmtree(whole, ignore_errors=True)
        began = time.monotonic()
        if code := runs.to_its_end(whole):
            said = runs.output.read_text()[-2000:]
            raise RuntimeError(f"a run that nobody killed ended with {code}: {said}")
        took.write_text(str(time.monotonic() - began))
    return contents(whole), float(took.read_text())


def disturbed(
    runs: Runs, run: Path, whole: Path, kills: int, chance: random.Random
) -> dict[str, Any]:
    """Kill a run so many times and bring it to its end; what came of it."""
    expected, seconds = undisturbed(runs, whole)
    outcome: dict[str, Any] = {"moments": [], "resumes": 0, "refused": [], "differing": []}
    last = round(kills * LAST_SECOND)
    while len(outcome["moments"]) < kills:
        at_end = kills - len(outcome["moments"]) <= last
        wait = chance.uniform(0, 1.0 if at_end else EARLY * seconds)
        code = runs.attempt(run, wait, chance, at_end=at_end)
        outcome["resumes"] += 1
        if code:
            outcome["refused"].append(f"exit code {code}")
            return outcome
        if code is None:
            try:
                outcome["moments"].append(moment_of(run))
            except Unreadable as error:
                outcome["refused"].append(str(error))
                return outcome
    outcome["resumes"] += 1
    if code := runs.to_its_end(run):
        outcome["refused"].append(f"to its end: exit code {code}")
        return outcome
    left = contents(run)
    outcome["differing"] = [key for key in expected if not equal(expected[key], left.get(key))]
    outcome["differing"] += [key for key in left if key not in expected]
    return outcome


def campaign(kills: int, count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Kill `count` runs in a folder, `kills` times in all; what came of each."""
    record = folder / "outcomes.jsonl"
    outcomes = (
        [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    )
    for number in range(len(outcomes), count):
        name = list(KINDS)[number % len(KINDS)]
        runs = Runs(KINDS[name], source(KINDS[name].data, folder), folder / "output.txt")
        wanted = kills * (number + 1) // count - kills * number // count
        run, whole = folder / f"run{number}", folder / f"whole-{name.replace(' ', '-')}"
        shutil.rmtree(run, ignore_errors=True)  # of a campaign that was stopped in it
        chance = random.Random(f"{seed} {number}")
        outcome = {"run": number, "kind": name, **disturbed(runs, run, whole, wanted, chance)}
        outcomes.append(outcome)
        with record.open("a") as file:
            file.write(json.dumps(outcome) + "\n")
        if not outcome["refused"] and not outcome["differing"]:
            shutil.rmtree(run)
        print(json.dumps(outcome), file=sys.stderr, flush=True)
    return outcomes


def summary(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all runs together."""
    moments = Counter(moment for outcome in outcomes for moment in outcome["moments"])
    kinds: Counter[str] = Counter()
    for outcome in outcomes:
        kinds[outcome["kind"]] += len(outcome["moments"])
    named = {
        what: [f"run {o['run']} ({o['kind']}): {text}" for o in outcomes for text in o[what]]
        for what in ("refused", "differing")
    }
    return {
        "runs": len(outcomes),
        "kills": moments.total(),
        "moments": dict(moments),
        "kills_by_kind": dict(kinds),
        "resumes": sum(outcome["resumes"] for outcome in outcomes),
        **named,
    }


# Kills while a file is written --------------------------------------------------------------------


def half_written(run: Path) -> list[str]:
    """The checkpoints of a run that are being written, or were when it was killed."""
    names: list[str] = []
    for folder in [run / "state", *run.glob("state/next-*")]:
        with contextlib.suppress(FileNotFoundError):  # it was there a moment ago
            names += os.listdir(folder)
    return [name for name in names if re.fullmatch(r"\..*\.(pt|safetensors)\.\d+\.tmp", name)]


def kill_in_write(runs: Runs, run: Path, chance: random.Random) -> str | None:
    """Start or resume a run and kill it in a write: of which file, "" where it was over by then.

    None where the run came to its end.
    """
    (process,) = runs.start(run)
    left = chance.randint(0, SKIPPED)
    seen: set[str] = set()
    began = time.monotonic()
    while not is_over(process):
        if time.monotonic() - began > LONGEST:
            raise TimeoutError(f"{run} took more than {LONGEST:g} s")
        now = set(half_written(run)) if (run / "state").is_dir() else set()
        if now - seen:
            if not left:
                time.sleep(chance.uniform(0, 0.03))
                kill([process], [process])
                # a stage is removed when the run goes on; a file in it has the name of a checkpoint
                return next(iter(half_written(run)), "")
            left -= 1
        seen = now
        time.sleep(0.001)
    if code := wait_for([process])[0]:
        raise Unreadable(f"refused with exit code {code}: {runs.output.read_text()[-500:]}")
    return None


def campaign_of_writes(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill runs while a file of theirs is half written, until that was so `kills` times."""
    kind = Kind("folder", ("--workers", "0", "--save-every", "1e-9"))
    runs = Runs(kind, source("folder", folder), folder / "output.txt", epochs=20)
    record = folder / "writes.json"
    told: dict[str, Any] = (
        json.loads(record.read_text())
        if record.exists()
        else {"kills": 0, "files": {}, "beside": 0, "ends": 0, "unreadable": []}
    )
    run = folder / "writes"
    while told["kills"] < kills:
        chance = random.Random(f"{seed} {told['kills']} {told['beside']} {told['ends']}")
        try:
            file = kill_in_write(runs, run, chance)
            read_all(run)
        except Unreadable as error:
            told["unreadable"].append(str(error))
            run.rename(folder / f"unreadable{len(told['unreadable'])}")
            continue
        if file is None:
            told["ends"] += 1
            shutil.rmtree(run)
        elif file:
            told["kills"] += 1
            name = file.removeprefix(".").partition(".tmp")[0].rpartition(".")[0]
            told["files"][name] = told["files"].get(name, 0) + 1
        else:
            told["beside"] += 1
        record.write_text(json.dumps(told))
        if told["kills"] % 20 == 0:
            print(json.dumps(told), file=sys.stderr, flush=True)
    return told


def import_all() -> None:
    """What a training imports, before any process is forked."""
    for module in (
        "accelerate",
        "matplotlib.figure",
        "rich.table",
        "jsonargparse",
        "torchvision",
        "yaml",
    ):
        importlib.import_module(module)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="at any moment")
    parser.add_argument("--runs", type=int, default=20, help="that these are spread over")
    parser.add_argument("--writes", type=int, default=0, help="kills while a file is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where to work, and to go on (default: a temporary one)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    import_all()
    with contextlib.ExitStack() as stack:
        place = args.folder or stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(place).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        told = summary(campaign(args.kills, args.runs, args.seed, folder) if args.kills else [])
        writes = campaign_of_writes(args.writes, args.seed, folder) if args.writes else None
    moments = ", ".join(f"{number} {moment}" for moment, number in told["moments"].items())
    print(f"{told['kills']} kills over {told['runs']} runs: {moments}")
    print(
        f"{told['resumes']} starts and resumes, {len(told['refused'])} refused, "
        f"{len(told['differing'])} ends differ"
    )
    if writes is not None:
        print(f"{writes['kills']} kills in a write, {len(writes['unreadable'])} unreadable")
    print(json.dumps({**told, "seed": args.seed, "writes": writes}))


if __name__ == "__main__":
    main()
