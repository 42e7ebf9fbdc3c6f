"""What happens around several processes: one dies or hangs, all are stopped, torchrun starts them again."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import benchmark
from safetensors.torch import load_file
from torch import Tensor, zeros
from torch.distributed import TCPStore

from fleetnet.backbones import fasternet
from fleetnet.cli import Terminated, _answer, _launching, main
from fleetnet.cli._resuming import resumed
from fleetnet.errors import DataError, FleetnetError, UsageError
from fleetnet.launched import OF_TORCHRUN, PARENT, Launched, launched
from fleetnet.processes import by_first, take_from_first
from fleetnet.training import distributed, epoch
from fleetnet.training.claims import launcher
from fleetnet.training.config import TrainConfig

processes = benchmark("processes")
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="no /proc on this system"
)

# How a process was started ------------------------------------------------------------------------


def test_the_environment_says_how_a_process_was_started() -> None:
    assert launched({}) == Launched()
    how = Launched(3, 4, local_rank=1, local_world=2, parent=17)
    assert launched(how.environment()) == how
    assert launched({"RANK": "0", "WORLD_SIZE": "2"}).is_one_of_several
    assert not launched({"RANK": "0", "WORLD_SIZE": "2"}).is_follower
    assert launched({"RANK": "1", "WORLD_SIZE": "2"}).is_follower
    assert not launched({"RANK": "1"}).is_follower
    assert launched({"TORCHELASTIC_RUN_ID": "none"}).by_torchrun


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment; allowed: a whole number"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE 2 .* each below WORLD_SIZE"),
    ],
)
def test_an_environment_without_sense_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        launched(environment)


def test_devices_have_to_be_those_that_were_started() -> None:
    here = Launched(0, 4, local_world=2).environment()
    _launching.check_devices(2, here)
    _launching.check_devices(3, {})
    with pytest.raises(UsageError, match="one of 2 processes that were started here already"):
        _launching.check_devices(4, here)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("something broke"), 1, "process 1 of 2: ValueError: something broke"),
        (FileNotFoundError(2, "is not there", "a.jpg"), 1, "process 1 of 2: a.jpg: "),
        (DataError("no pictures"), 3, "process 1 of 2: no pictures"),
        (UsageError("the first one says so too"), 2, ""),
        (Terminated(), 130, ""),
    ],
)
def test_each_process_says_what_only_it_knows(
    error: Exception,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for key, value in Launched(1, 2).environment().items():
        monkeypatch.setenv(key, value)
    assert _answer(error, as_json=True) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert said in output.err
    assert bool(said) == bool(output.err)


# What `--devices` does with its processes, here small ones of no training -------------------------


def launch(program: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of three processes of a program, which has its rank and signals."""
    head = "import os, signal, sys, time; rank = int(os.environ['RANK'])\n"
    words = (sys.executable, "-S", "-c", head + program)
    monkeypatch.setattr(_launching, "PROGRAM", words)
    return _launching.launch(3, [])


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("pass", 0),
        ("sys.exit(3 if rank == 1 else time.sleep(60))", 3),
        ("sys.exit(3 if rank == 0 else time.sleep(60))", 3),
    ],
)
def test_the_first_failure_ends_all(
    program: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    assert launch(program, monkeypatch) == code
    assert time.monotonic() - began < 30


def test_a_process_that_was_killed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the one of the others that heeds no signal is killed."""
    monkeypatch.setattr(_launching, "PATIENCE", 0.5)
    program = "os.kill(os.getpid(), [signal.SIGSTOP, signal.SIGKILL, signal.SIGCONT][rank])\n"
    with pytest.raises(FleetnetError, match=r"process 1 of 3 was ended by the signal SIGKILL \("):
        launch(program + "time.sleep(60)", monkeypatch)
    said = capsys.readouterr().err
    assert "process 0 of 3 did not answer to SIGTERM within 0.5 s, and was killed" in said
    assert "process 2 of 3" not in said


@pytest.mark.parametrize(
    ("handler", "code"),
    [("signal.SIG_DFL", 130), ("lambda *_: sys.exit(130)", 130), ("lambda *_: sys.exit(1)", 1)],
)
def test_what_stops_the_starter_stops_all(
    handler: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM is passed on; the code is that of the first process, unless it has no handler yet."""

    def stop(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        program = f"signal.signal(signal.SIGTERM, {handler})\n"
        program += "os.kill(os.getppid(), signal.SIGTERM) if rank == 2 else None\ntime.sleep(60)"
        if "DFL" not in handler:  # the others have to have theirs by then
            program = program.replace("if rank == 2", "if not time.sleep(0.5) and rank == 2")
        assert launch(program, monkeypatch) == code
    finally:
        signal.signal(signal.SIGTERM, before)


# Where a process stands, and where the others are -------------------------------------------------


def test_others_that_do_not_come_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(processes.free_port())}
    for key, value in {**Launched(1, 2).environment(), **rendezvous}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(distributed, "GRACE", 0.5)
    with pytest.raises(FleetnetError, match=r"process 1 of 2 did not meet .* within --timeout"):
        distributed.join(TrainConfig(timeout=0.01, device="cpu"))


def wait_before_training(rank: int, environment: dict[str, str], file: Path) -> None:
    """One of two processes that meet; the second one hangs while it prepares, here by sleeping."""
    os.environ.update(Launched(rank, 2).environment(), **environment)
    output = os.open(file, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 2)
    sys.stderr = os.fdopen(2, "w")
    distributed.join(TrainConfig(timeout=0.03, device="cpu", threads=1))
    if rank:
        time.sleep(60)
    by_first(lambda: None)
    take_from_first([zeros(1)])


def test_where_a_process_hangs_before_it_trains_is_printed(tmp_path: Path) -> None:
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(processes.free_port())}
    files = [tmp_path / "0.txt", tmp_path / "1.txt"]
    context = multiprocessing.get_context("fork")
    started = [
        context.Process(target=wait_before_training, args=(rank, environment, files[rank]))
        for rank in (0, 1)
    ]
    for process in started:
        process.start()
    deadline = time.monotonic() + 60
    while not (files[1].exists() and "wait_before_training" in files[1].read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert started[1].is_alive()
    started[1].kill()
    started[0].join(60)
    assert started[0].exitcode == 1


def test_processes_that_are_started_again_meet_in_a_store_of_before() -> None:
    """One of each meeting comes late, when the others see the name of one that is gone."""
    port = processes.free_port()
    server = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)

    def meet(rank: int) -> str:
        time.sleep(0.2 * rank)
        store = TCPStore("127.0.0.1", port, is_master=False)
        return distributed._met(store, Launched(rank, 3), 20)

    with ThreadPoolExecutor(3) as threads:
        meetings = [list(threads.map(meet, ranks)) for ranks in ([0, 1, 2], [2, 1, 0], [1, 0, 2])]
    assert [len(set(names)) for names in meetings] == [1, 1, 1]
    assert len({names[0] for names in meetings}) == 3
    server.set("rank/1", "gone")
    with pytest.raises(TimeoutError, match="missing are 1, 2"):
        distributed._met(server, Launched(0, 3), 0.3)
    with pytest.raises(TimeoutError, match="the first one is missing"):
        distributed._met(server, Launched(1, 3), 0.3)


def test_the_watch_ends_with_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with one that fails: whoever called goes on, and must not be ended minutes later."""
    monkeypatch.setattr(distributed, "world", lambda: 2)

    def watches() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "watch"]

    def training() -> None:
        with distributed.watched(5):
            distributed.beat()
            assert watches() == ["watch"]
            raise DataError("no pictures")

    with pytest.raises(DataError):
        training()
    deadline = time.monotonic() + 5
    while watches() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert watches() == []


@pytest.mark.parametrize(
    "environment", [{PARENT: str(os.getppid())}, {OF_TORCHRUN: "none"}], ids=["devices", "torchrun"]
)
def test_a_process_whose_starter_is_gone_stops(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    came = threading.Event()
    monkeypatch.setattr(distributed, "world", lambda: 2)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        with distributed.watched(5):
            assert not came.wait(0.8)
            monkeypatch.setattr(os, "getppid", lambda: 1)
            assert came.wait(5)
    finally:
        signal.signal(signal.SIGTERM, before)


# A restart by torchrun ----------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fasternet, "VARIANTS", dict(fasternet.VARIANTS))
    processes.offer_tiny()
    for name in ("fit.write_overview", "fit.samples", "overview.write_overview"):
        monkeypatch.setattr(f"fleetnet.training.{name}", lambda *_: None)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("tiny")
def test_the_same_launcher_goes_on_in_its_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here of one process, whose launcher is that of the tests; another's folder is left alone."""
    folder = Path("runs/classification/tiny-shapes:36")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("FLEETNET_STEPS", "steps.txt")
    monkeypatch.setenv("FLEETNET_FAULT", "raise 0 1 2")
    words = [*processes.WORDS, "--norm", "train"]
    with monkeypatch.context() as patched:
        patched.setattr(epoch, "losses_of", processes.observed(epoch.losses_of))
        assert main(words) == 1
        assert "started again" not in capsys.readouterr().err
        assert main(words) == 0
    assert f"started again by torchrun: the run in {folder} goes on" in capsys.readouterr().err
    assert len(processes.samples_of(Path("steps.txt"))) == 18
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    environment = json.loads((folder / "environment.json").read_text())
    assert environment["launcher"] == launcher()
    environment["launcher"] = "process 1 on another machine, started yesterday"
    (folder / "environment.json").write_text(json.dumps(environment))
    assert main([*words, "--run", str(folder)]) == 2
    assert f"{folder} holds a run already" in capsys.readouterr().err


def test_a_claim_is_the_business_of_the_first_process(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another machine, say, on which the first one was killed."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    claim = {"host": "another", "process": 1, "token": "x", "since": "yesterday"}
    (copy / "claim.json").write_text(json.dumps(claim))
    with pytest.raises(UsageError, match="belongs to a run of process 1 on another"):
        resumed(copy, {})
    for key, value in Launched(1, 2).environment().items():
        monkeypatch.setenv(key, value)
    assert resumed(copy, {}).model == "fasternet_t0"


# Whole trainings ----------------------------------------------------------------------------------


def train_as(rank: int, port: int, folder: Path) -> None:
    """One of the two processes of an undisturbed training."""
    os.chdir(folder)
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {**Launched(rank, 2, rank, 2).environment(), **rendezvous}
    os.environ |= {"FLEETNET_STEPS": "steps.txt", "OMP_NUM_THREADS": "1"}
    sys.exit(processes.as_fleetnet([*processes.WORDS, "--run", "run"]))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training by two processes, which are forked from one that imports torch once."""
    folder = tmp_path_factory.mktemp("undisturbed")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fleetnet.training.fit", "accelerate", train_as.__module__])
    port = processes.free_port()
    both = [context.Process(target=train_as, args=(rank, port, folder)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(200)
    assert [process.exitcode for process in both] == [0, 0]
    return folder


def exit_code(process: "subprocess.Popen[bytes]") -> int:
    """That of a process in the end, which is killed after some minutes."""
    try:
        return process.wait(300)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def weights_of(run: Path, name: str = "last") -> dict[str, Tensor]:
    return load_file(run / f"{name}.safetensors")


def losses_of(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    return [line["train"]["loss"] for line in lines]


def assert_same_samples(steps: Path, expected: Path) -> None:
    """Each batch had the samples that it has undisturbed, as often as it was trained on."""
    batches, of_expected = processes.samples_of(steps), processes.samples_of(expected)
    assert len(of_expected) == 18
    assert {key: turns[0] for key, turns in batches.items() if turns} == {
        key: turns[0] for key, turns in of_expected.items()
    }
    assert all(turn == turns[0] for turns in batches.values() for turn in turns)


@needs_proc
def test_two_nodes_are_started_again_after_each_failure(undisturbed: Path, tmp_path: Path) -> None:
    """An error in the second node's process, then a SIGKILL of the first: the same bits in the end."""
    rendezvous = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    rendezvous += ["--rdzv-endpoint", f"127.0.0.1:{processes.free_port()}", "--rdzv-id", "two"]
    words = [*processes.TORCHRUN, *rendezvous, "--local-addr", "127.0.0.1", "--max-restarts", "4"]
    words += ["--", processes.PROGRAM[1], *processes.WORDS]
    output, steps = tmp_path / "output.txt", tmp_path / "steps.txt"
    faults = "raise 1 0 3; kill 0 1 4"
    nodes = [processes.start(words, output, steps, faults) for _ in range(2)]
    codes = [exit_code(node) for node in nodes]
    left = processes.left_behind(steps)
    said = output.read_text()
    assert (codes, left) == ([0, 0], []), said
    assert "process 1 of 2: RuntimeError: something broke" in said
    run = tmp_path / "runs" / "classification" / "tiny-shapes:36"
    assert f"the run in {run.relative_to(tmp_path)} goes on" in said
    assert all(processes.mark_of(fault, steps).exists() for fault in faults.split(";"))
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    before = undisturbed / "run"
    assert names == {str(path.relative_to(before)) for path in before.rglob("*")}
    assert losses_of(run) == losses_of(before)
    assert_same_samples(steps, undisturbed / "steps.txt")
    for name in ("last", "best"):
        weights = weights_of(run, name)
        assert all(value.equal(weights[key]) for key, value in weights_of(before, name).items())


@pytest.fixture
def alone(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file for the steps of trainings in this process."""
    steps = tmp_path / "steps.txt"
    monkeypatch.setenv("FLEETNET_STEPS", str(steps))
    monkeypatch.setattr(epoch, "losses_of", processes.observed(epoch.losses_of))
    return steps


def ended(process: "subprocess.Popen[bytes]", steps: Path) -> tuple[int, float, list[int]]:
    """The exit code of what started processes, the moment, and processes that are left behind."""
    return exit_code(process), time.time(), processes.left_behind(steps)


@needs_proc
def test_one_process_and_two_go_on_with_the_same_run(
    undisturbed: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two one hangs; one goes on and is stopped; two go on and are stopped; one comes to the end."""
    output, run = tmp_path / "output.txt", tmp_path / "run"
    two = [*processes.PROGRAM, *processes.WORDS, "--run", str(run), "--devices", "2"]
    two += ["--workers", "1", "--timeout", str(processes.TIMEOUT / 60)]
    fault = "stop 1 1 2"
    code, moment, left = ended(processes.start(two, output, alone, fault), alone)
    said = output.read_text()
    assert (code, left) == (1, []), said
    assert f"came no further for {processes.TIMEOUT:g} s and stands here:" in said
    assert "in losses_of" in said  # where it waits for the other one
    assert "process 1 of 2 did not answer to SIGTERM" in said
    assert moment - processes.mark_of(fault, alone).stat().st_mtime < processes.TIMEOUT + 60

    resume = ["train", "--resume", str(run), "--workers", "0"]
    monkeypatch.setenv("FLEETNET_FAULT", "terminate 0 1 2")
    assert main(resume) == 130

    two, fault = [*processes.PROGRAM, *resume, "--devices", "2"], "terminate-starter 1 1 4"
    code, moment, left = ended(processes.start(two, output, alone, fault), alone)
    said = output.read_text()
    assert (code, left) == (130, []), said
    assert "kept: 1 epochs and " in said
    assert moment - processes.mark_of(fault, alone).stat().st_mtime < 10

    monkeypatch.delenv("FLEETNET_FAULT")
    assert main(resume) == 0
    assert_same_samples(alone, undisturbed / "steps.txt")
    assert losses_of(run) == pytest.approx(losses_of(undisturbed / "run"), rel=1e-4)
    for key, value in weights_of(undisturbed / "run").items():
        assert weights_of(run)[key].allclose(value, rtol=1e-3, atol=1e-5), key
