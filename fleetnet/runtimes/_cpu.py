"""What this CPU is to int8: which of its instructions count, and whether sums of products are cut off at 16 bits."""

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# What torch and Linux call the instructions, and what people do; the best for int8 first.
X86 = {
    "AMX": ("amx_int8",),
    "AVX-512 VNNI": ("avx512_vnni",),
    "AVX-VNNI": ("avx_vnni",),
    "AVX-512": ("avx512_f", "avx512f"),
    "AVX2": ("avx2",),
}
ARM = {
    "int8 matrices": ("i8mm", "arm_i8mm"),
    "dot product": ("dot", "neon_dot", "arm_dot", "asimddp"),
    "NEON": ("neon", "arm_neon", "asimd"),
}
IN_32_BITS = {"AMX", "AVX-512 VNNI", "AVX-VNNI", *ARM}
# What ONEDNN_MAX_CPU_ISA may hold that leaves oneDNN, and so OpenVINO, without VNNI.
CAPS_WITHOUT_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")


@dataclass(frozen=True)
class Int8Class:
    """A kind of CPU, by what it has for int8."""

    # the instructions, the best first; none of a kind that nothing is known of
    names: tuple[str, ...]

    @property
    def saturates(self) -> bool:
        """Whether sums of two products may be cut off at 16 bits: x86 without VNNI, and what is not known."""
        return not IN_32_BITS.intersection(self.names)

    @property
    def meaning(self) -> str:
        """What that means for int8 files."""
        if self.saturates:
            return (
                "this CPU adds products of int8 in pairs in 16 bits; files by `fleetnet quantize` "
                "fit, older ones and those of other programs may not, and are opened with slower "
                "kernels"
            )
        return "this CPU adds products of int8 in 32 bits; int8 files of any program compute what they should"

    def __str__(self) -> str:
        return ", ".join(self.names) or "unknown"


def _features() -> set[str]:
    """The instructions that this CPU has, by torch, which asks the CPU itself; without it by Linux."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, there in torch.cpu.get_capabilities().items() if there is True}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {
        word
        for line in lines
        if line.startswith(("flags", "Features"))
        for word in line.split(":")[1].split()
    }


def is_arm() -> bool:
    """Whether this is a 64-bit Arm."""
    return platform.machine().lower() in ("arm64", "aarch64")


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def has_bf16_of_arm() -> bool:
    """Whether onnxruntime has kernels in bfloat16 here: for 64-bit Arm with these instructions, on Linux only."""
    return is_arm() and platform.system() == "Linux" and bool(_features() & {"bf16", "arm_bf16"})


@cache
def int8_class() -> Int8Class:
    """The class of this CPU."""
    features = _features()
    arm = is_arm()
    if arm:  # every 64-bit Arm has NEON, also where the system does not tell
        features.add("neon")
    classes = ARM if arm else X86
    return Int8Class(tuple(name for name, words in classes.items() if features.intersection(words)))


def onednn_saturates() -> bool:
    """The same of oneDNN, whose instructions the environment may cap."""
    return (
        int8_class().saturates
        or os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in CAPS_WITHOUT_VNNI
    )
