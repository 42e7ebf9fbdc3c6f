"""Training by several processes, one a device, on one machine or on many.

`fleetnet train --devices N`, torchrun and accelerate launch start them alike: each process finds
its place in the environment (`launched.py`; torch reads MASTER_ADDR and MASTER_PORT), and `join`
meets the others. What they learn is what one process learns of the same settings:

    batches      batch b of an epoch has the same samples: each process takes its slice of it
    losses       what a sum is divided by is counted in all processes (`mean_count`, `of_all`), and
                 mixup and cutmix mix the pictures of the whole batch
    gradients    averaged by torch's DistributedDataParallel, which accelerate wraps the model in;
                 clipping and the average of the weights come after that
    norms        with `norm: sync` over the whole batch (`norms`), else over the own part of it,
                 which is where one process would learn something else
    evaluation   each process counts its block of the samples, the first one adds the counts up
    writing      by the first process alone: `Follower` is the run folder of the others

What a network or its loss draws itself (dropout, dropped paths, the anchors and RoIs that Mask
R-CNN samples), each process draws for its own part: other numbers than one process would. The
next of the order stands in for a picture that cannot be read, whichever process has it; where
nothing does (with a teacher, or after 100 of them), a part of less than two images ends the run.

A process that dies closes its connections, and the others end with an error. One that hangs makes
all of them wait: after `timeout` minutes without a step each prints where it stands (`Watch`) and
ends; before the first step it prints that and the others end (`join`). Whatever started them then
ends those that are left; torchrun may start all of them again, and they go on from the last state
in the folder that they began in (`begun_by_launcher`). Where it is gone itself, each process stops
as if by SIGTERM.

Of GPUs (nccl, a device for each LOCAL_RANK) none of this has been tested.
"""

import faulthandler
import os
import platform
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch
from torch import distributed, nn

from ..data import Split
from ..data._contents import Contents
from ..errors import FleetnetError, UsageError
from ..launched import Launched, launched
from ..processes import by_first, gathered, is_first, is_joined, rank, take_from_first, world
from .checks import check_device
from .claims import Claim, launcher
from .config import TrainConfig
from .folder import environment_of
from .log import Line, Result, State
from .run import Run
from .so_far import EpochSoFar

GRACE = 5.0  # seconds between the stacks of a process that waits too long and its end


def join(config: TrainConfig) -> None:
    """Meet the other processes that the environment tells of; nothing happens where it has none.

    Raises `UsageError` for more processes than this machine has GPUs, and `FleetnetError` where
    they do not meet within `timeout`. A process that has not begun to train `timeout` minutes later
    prints its stacks, and goes on: those that wait for it end then.
    """
    how = launched()
    if not how.is_one_of_several or is_joined():
        return
    gpu = check_device(config)
    if gpu:
        if how.local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"{how.local_world} processes were started here, which has "
                f"{torch.cuda.device_count()} GPUs; allowed: one process a GPU, or --device cpu"
            )
        torch.cuda.set_device(how.local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        threads = config.threads or max(1, (os.cpu_count() or 1) // max(how.local_world, 1))
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # else accelerate sets another number
    # the stacks are printed before anything else ends a process
    patience = timedelta(minutes=config.timeout, seconds=GRACE / 2)
    try:
        store, *_ = next(distributed.rendezvous("env://", timeout=patience))
        meeting = _met(store, how, patience.total_seconds())
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        distributed.init_process_group(
            backend,
            store=distributed.PrefixStore(meeting, store),
            rank=how.rank,
            world_size=how.world,
            timeout=patience,
        )
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise FleetnetError(
            f"process {how.rank} of {how.world} did not meet the others at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} within --timeout "
            f"{config.timeout:g} minutes: {_first_line(error)}"
        ) from error
    faulthandler.dump_traceback_later(60 * config.timeout)  # until the first `beat`, or `leave`


def _met(store: distributed.Store, how: Launched, seconds: float) -> str:
    """A name for this meeting of processes, once all are there: keys of `store` begin with it.

    Where torchrun starts processes again, it keeps the store (torch 2.14), in which they would find
    the addresses of those that are gone. So each has a name of its own, the first one answers to
    all names that it sees with that of the meeting, and waits for those who come.
    """
    name = uuid.uuid4().hex
    store.set(f"rank/{how.rank}", name)
    deadline = time.monotonic() + seconds
    if how.rank:
        while not store.check([f"answer/{name}"]):
            _wait(deadline, "the first one is missing")
        meeting = store.get(f"answer/{name}").decode()
        store.set(f"{meeting}/{how.rank}", name)
        while not store.check([f"{meeting}/all"]):
            _wait(deadline, "another one is missing")
        return meeting
    missing = list(range(1, how.world))
    while missing:
        for other in missing:
            if store.check([f"rank/{other}"]):
                store.set(f"answer/{store.get(f'rank/{other}').decode()}", name)
        missing = [other for other in missing if not store.check([f"{name}/{other}"])]
        _wait(deadline, f"missing are {', '.join(map(str, missing))}")
    store.set(f"{name}/all", name)
    return name


def _wait(deadline: float, why: str) -> None:
    """Wait a moment; `TimeoutError` after the deadline."""
    if time.monotonic() > deadline:
        raise TimeoutError(why)
    time.sleep(0.02)


def leave() -> None:
    """Part from the other processes, which have come to the end too."""
    if is_joined():
        faulthandler.cancel_dump_traceback_later()
        distributed.destroy_process_group()


@contextmanager
def explained() -> Iterator[None]:
    """Say in words that another process is gone, or does not answer."""
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not _is_of_connection(error):
            raise
        raise FleetnetError(
            "the other processes were lost: one of them died, or did not answer within --timeout "
            f"({_first_line(error)}). What was trained until the last saved state is kept"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _is_of_connection(error: RuntimeError) -> bool:
    """Whether an error is of a collective operation; those of gloo are of no class of their own."""
    text = str(error)
    is_of_torch = isinstance(error, distributed.DistError)
    return is_of_torch or "gloo" in text or "Connection" in text or "NCCL" in text


# Where a process stands ---------------------------------------------------------------------------


class Watch(threading.Thread):
    """Ends this process when it has come no further for `seconds`, after it printed its stacks.

    While one process hangs all others wait for it, so all of them print where they stand.
    """

    def __init__(self, seconds: float):
        super().__init__(daemon=True, name="watch")
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self.over = threading.Event()
        self.parent = launched().parent or (os.getppid() if launched().by_torchrun else 0)
        self.start()

    def beat(self) -> None:
        """Called whenever something was finished."""
        self.deadline = time.monotonic() + self.seconds
        # this one needs no Python, which hangs too where a library keeps the interpreter's lock
        faulthandler.dump_traceback_later(self.seconds + 2 * GRACE, exit=True)

    def run(self) -> None:
        while not self.over.wait(min(0.5, self.seconds / 4)):
            if self.parent and os.getppid() != self.parent:
                self.parent = 0
                # to the main thread, which it wakes where it waits
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            if time.monotonic() > self.deadline:
                self._end()

    def _end(self) -> None:
        who = f"process {rank()} of {world()} ({os.getpid()} on {platform.node()})"
        head = f"fleetnet: {who} came no further for {self.seconds:g} s and stands here:"
        sys.stderr.write(f"{head}\n{_stacks()}\n")
        sys.stderr.flush()
        if not self.over.wait(GRACE):
            sys.stderr.write(f"fleetnet: {who} ends\n")
            sys.stderr.flush()
            os._exit(FleetnetError.exit_code)


def _stacks() -> str:
    """Where all threads of this process are."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read()


_watch: Watch | None = None  # of this process


@contextmanager
def watched(minutes: float) -> Iterator[None]:
    """While it lasts, end this process when it comes no further, if it is one of several."""
    global _watch
    if world() == 1:
        yield
        return
    watch = _watch = Watch(60 * minutes)
    watch.beat()
    try:
        yield
    finally:
        _watch = None
        watch.over.set()
        faulthandler.cancel_dump_traceback_later()


def beat() -> None:
    """Say that this process came further."""
    if _watch is not None:
        _watch.beat()


# The run folder -----------------------------------------------------------------------------------


def begun_by_launcher(folders: Iterable[Path]) -> Path | None:
    """The last of some folders in which a run was begun by what started these processes, or None.

    Then torchrun has started them anew, since one of them failed. How often it did so, it tells
    only the processes of a machine on which one failed.
    """
    launchers = {each for each in gathered(launcher()) if each is not None}

    def last() -> Path | None:
        begun = [each for each in folders if environment_of(each).get("launcher") in launchers]
        return begun[-1] if begun else None

    return by_first(last)


@dataclass
class Elsewhere(Claim):
    """A run folder that the first process has claimed for all."""

    def check(self) -> None:
        return

    def release(self) -> None:
        return


@contextmanager
def held_by_first(hold: Callable[[], AbstractContextManager[Claim]]) -> Iterator[Claim]:
    """The run folder, claimed by the first process for all of them until the end."""
    with ExitStack() as stack:
        mine = by_first(lambda: stack.enter_context(hold()))
        yield mine if is_first() else Elsewhere(mine.folder, mine.token, mine.made)


class Follower(Run):
    """The run folder as a process sees it that does not write into it."""

    def begin(self, train: Split, val: Split, *, other_data: bool, described: bool) -> None:
        return

    def record(self, train: Split, val: Split, contents: tuple[Contents, Contents]) -> None:
        return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    @contextmanager
    def staging(self, needed: Callable[[], int]) -> Iterator[None]:
        yield

    def save(self, name: str, model: nn.Module, figures: Result, form: str) -> None:
        return

    def _save_best(self, model: nn.Module, result: Result, which: Result) -> None:
        return

    def save_state(self, model: nn.Module, state: State, line: Line) -> None:
        self.log.append(line)

    def save_within(self, model: nn.Module, state: State, so_far: EpochSoFar) -> None:
        so_far.kept = so_far.step

    def deliver(self) -> None:
        self.epochs += 1
        self.so_far = EpochSoFar(self.epochs)


def agree(*modules: nn.Module) -> None:
    """Give all processes the buffers of the first: statistics of norms, unless these are shared."""
    take_from_first([buffer for module in modules for buffer in module.buffers()])
