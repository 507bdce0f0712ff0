"""Which numeric family this CPU is of: CPUs of one family add int8 products alike.

Between families, and between instruction sets within one, float32 differs in its last bits.
"""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
FAMILIES = ("vnni", "avx2", "neon")
UNKNOWN = ""
"""Of a CPU of no family above, x86 without AVX2 among them, and of one that cannot be known."""
VNNI_FLAGS = ({"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni"}, {"avx_vnni"})
"""All of one of them, or ONNX Runtime does without: a virtual machine may list a part."""


def numeric_family(cpuinfo: Path = CPUINFO) -> str:
    """One of FAMILIES, or UNKNOWN.

    vnni: x86 that adds int8 products in 32 bit. avx2: other x86 with AVX2, which adds them in saturating 16 bit unless
    ONNX Runtime is told to be exact. neon: Arm, 64-bit, in 32 bit.
    """
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return UNKNOWN
    listed = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    flags = set(next(listed, []))
    if any(wanted <= flags for wanted in VNNI_FLAGS):
        return "vnni"
    if "avx2" in flags:
        return "avx2"
    return "neon" if "asimd" in flags else UNKNOWN
