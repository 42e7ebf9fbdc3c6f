"""How much physical memory this process takes, as Linux counts it."""

import re
from pathlib import Path

STATUS = Path("/proc/self/status")
HIGH_WATER = Path("/proc/self/clear_refs")  # 5 written into it sets VmHWM to VmRSS


def resident(key: str) -> int | None:
    """Bytes of this process: VmRSS now, VmHWM at most; None where the system does not tell."""
    try:
        line = re.search(rf"^{key}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if line is None else 1024 * int(line[1])


def forget_high_water() -> bool:
    """Let the most that this process has had be what it has now; whether the system does."""
    try:
        HIGH_WATER.write_text("5")
    except OSError:
        return False
    return True
