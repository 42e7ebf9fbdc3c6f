"""`--devices N`: the same command in N processes on this machine, and what becomes of them.

They find each other by the environment that torchrun sets too. Where one of them fails, the others
are ended; what stops this process is passed on to all. A process whose starter is gone ends itself.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from ..errors import FleetnetError, UsageError
from ._show import say

PARENT = "FLEETNET_PARENT"  # in the environment: the process that started this one
PATIENCE = 30.0  # seconds that processes have to end by themselves
HINTS = {"SIGKILL": "the memory ran out, or somebody ended it"}


def started(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes were started together, this one among them."""
    return int(environment.get("WORLD_SIZE", "1"))


def is_one_of_several(environment: Mapping[str, str] = os.environ) -> bool:
    return started(environment) > 1


def check_devices(devices: int, environment: Mapping[str, str] = os.environ) -> None:
    """`UsageError` where another number of processes was started here than `--devices` says."""
    here = environment.get("LOCAL_WORLD_SIZE")
    if is_one_of_several(environment) and here not in (None, str(devices)):
        raise UsageError(
            f"--devices is {devices}, but this is one of {here} processes that were started here "
            "already (by torchrun or accelerate): leave --devices out"
        )


def launch(devices: int, words: Sequence[str]) -> int:
    """Run `fleetnet` with the same words in several processes; the exit code of all."""
    rendezvous = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        PARENT: str(os.getpid()),
    }
    say(f"{devices} processes train together")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "fleetnet", *words],
            env={**os.environ, **rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,  # Ctrl-C reaches them through this process alone, once
        )
        for rank in range(devices)
    ]
    try:
        return _wait(processes)
    except KeyboardInterrupt as stopped:
        is_termination = type(stopped) is not KeyboardInterrupt
        _end(processes, signal.SIGTERM if is_termination else signal.SIGINT)
        return processes[0].returncode
    finally:
        _end(processes, signal.SIGTERM)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Until all have ended well, or one has not; its exit code. `FleetnetError` for a signal."""
    while any(code is None for code in (process.poll() for process in processes)):
        failed = [process for process in processes if process.returncode]
        if failed:
            break
        time.sleep(0.1)
    codes = [process.returncode for process in processes]
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = f" ({HINTS[name]})" if name in HINTS else ""
            raise FleetnetError(
                f"process {rank} of {len(codes)} was ended by the signal {name}{hint}; the others "
                "are ended too. What was trained until the last saved state is kept: continue "
                "with --resume"
            )
    return next((code for code in codes if code), 0)


def _end(processes: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    """Let the processes that are left end by a signal; those that do not are killed."""
    left = [process for process in processes if process.poll() is None]
    for process in left:
        process.send_signal(number)
    deadline = time.monotonic() + PATIENCE
    for process in left:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
