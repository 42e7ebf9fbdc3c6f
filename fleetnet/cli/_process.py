"""Settings of this process that make training faster, each only where its owner says nothing else."""

import contextlib
import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
MALLOC_VARIABLES = "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"


def wait_without_spinning() -> None:
    """Let torch's threads that wait for each other sleep soon (`GOMP_SPINCOUNT`).

    They would spin 300,000 times first, and so use up a core while one of them has to wait for its
    own, as it does where worker processes, or others, need it. It is read when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "16000")


def keep_freed_memory() -> bool:
    """Have glibc keep what one step frees for the next step; returns whether it does.

    By itself it gives each large block back to the system, which then fills every page of the next
    one with zeros. The most memory that is taken at a time stays the same but for a few percent. It
    holds for this process and those that it forks; other C libraries have no such setting.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in tunables or any(name in os.environ for name in MALLOC_VARIABLES):
        return False
    # None is no library on Windows (TypeError), and others lack the function
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
    return False
