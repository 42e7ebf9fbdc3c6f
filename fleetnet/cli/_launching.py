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
from ..launched import Launched, launched
from ._show import complain, say

PROGRAM = (sys.executable, "-m", "fleetnet")  # what is started several times
# Seconds that processes have to end by themselves: whoever ends this one may kill it after ten.
PATIENCE = 8.5
HINTS = {"SIGKILL": "the memory ran out, or somebody ended it"}
INTERRUPTED = 130
Processes = Sequence[subprocess.Popen[bytes]]  # by their ranks


def check_devices(devices: int, environment: Mapping[str, str] = os.environ) -> None:
    """`UsageError` where another number of processes was started here than `--devices` says."""
    how = launched(environment)
    if how.is_one_of_several and how.local_world not in (0, devices):
        raise UsageError(
            f"--devices is {devices}, but this is one of {how.local_world} processes that were "
            "started here already (by torchrun or accelerate): leave --devices out"
        )


def launch(devices: int, words: Sequence[str]) -> int:
    """Run `fleetnet` with the same words in several processes; the exit code of all."""
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    say(f"{devices} processes train together")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(devices):
            how = Launched(rank, devices, rank, devices, parent=os.getpid())
            process = subprocess.Popen(
                [*PROGRAM, *words],
                env={**os.environ, **rendezvous, **how.environment()},
                start_new_session=True,  # Ctrl-C reaches them through this process alone, once
            )
            processes.append(process)
        return _wait(processes)
    except KeyboardInterrupt as stopped:
        is_termination = type(stopped) is not KeyboardInterrupt
        _end(processes, signal.SIGTERM if is_termination else signal.SIGINT)
        return _code_of_stopped(processes)
    finally:
        _end(processes, signal.SIGTERM)


def alone(words: Sequence[str]) -> int:
    """Run `fleetnet` with other words in a process of its own; its exit code.

    Ctrl-C and SIGTERM are passed on and waited for. `FleetnetError` where a signal ended it.
    """
    process = subprocess.Popen([*PROGRAM, *words], start_new_session=True)
    try:
        code = process.wait()
        if code < 0:
            raise FleetnetError(f"ended by the signal {_signal(code)}")
        return code
    except KeyboardInterrupt as stopped:
        is_termination = type(stopped) is not KeyboardInterrupt
        _end([process], signal.SIGTERM if is_termination else signal.SIGINT)
        raise
    finally:
        _end([process], signal.SIGTERM)


def _wait(processes: Processes) -> int:
    """Until all have ended well, or one has not; its exit code. `FleetnetError` for a signal."""
    codes = [process.poll() for process in processes]
    while None in codes and not any(codes):
        time.sleep(0.1)
        codes = [process.poll() for process in processes]
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            raise FleetnetError(
                f"process {rank} of {len(codes)} was ended by the signal {_signal(code)}; the others "
                "are ended too. What was trained until the last saved state is kept: continue "
                "with --resume"
            )
    return next((code for code in codes if code), 0)


def _signal(code: int) -> str:
    """The signal of an exit code below 0, with what it mostly means."""
    name = signal.Signals(-code).name
    return f"{name} ({HINTS[name]})" if name in HINTS else name


def _end(processes: Processes, number: signal.Signals) -> None:
    """Let the processes that are left end by a signal; those that do not are killed."""
    left = {rank: process for rank, process in enumerate(processes) if process.poll() is None}
    for process in left.values():
        process.send_signal(number)
    deadline = time.monotonic() + PATIENCE
    for rank, process in left.items():
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            complain(
                f"fleetnet: process {rank} of {len(processes)} did not answer to {number.name} "
                f"within {PATIENCE:g} s, and was killed"
            )


def _code_of_stopped(processes: Processes) -> int:
    """The exit code after a signal: that of the first process, unless it was ended by one too."""
    code: int | None = processes[0].returncode if processes else None
    return INTERRUPTED if code is None or code < 0 else code


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
