"""Processes that train together in tests: started once, in groups of 3, 2 and 1, for all cases.

A server process imports torch and the package; the three are forked from it.
"""

import multiprocessing
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 300.0  # seconds


def together(case: Callable[[str], Any], largest: int, folder: Path) -> dict[int, Any]:
    """What the first process gets of `case(folder)`, by the number of processes: 1 to `largest`.

    Raises `RuntimeError` where a process fails.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "fleetnet.training.fit", case.__module__])
    ports = [_free_port() for _ in range(largest)]
    processes = [
        context.Process(target=_run, args=(rank, ports, case, str(folder)))
        for rank in range(largest)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + PATIENCE
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            break
        time.sleep(0.05)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    if codes != [0] * largest:
        raise RuntimeError(f"exit codes {codes}")
    worlds = range(1, largest + 1)
    return {world: pickle.loads((folder / f"{world}.pickle").read_bytes()) for world in worlds}


def _run(rank: int, ports: list[int], case: Callable[[str], Any], folder: str) -> None:
    """One of the processes, which takes part in all groups that are larger than its number."""
    import torch

    from fleetnet.training import distributed

    torch.set_num_threads(1)
    sys.stdout = sys.stderr
    for world in range(len(ports), 0, -1):
        if rank >= world:
            break
        about = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": ports[world - 1],
        }
        os.environ.update({key: str(value) for key, value in about.items()})
        if world == 1:
            for key in about:
                del os.environ[key]
        result = case(folder)
        distributed.leave()
        if rank == 0:
            Path(folder, f"{world}.pickle").write_bytes(pickle.dumps(result))


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
