"""The processors of the boards, as QEMU names and emulates them."""

from __future__ import annotations

import msgspec

from edge_runtime.errors import ExportError

CPUS = 4
SHARED = "fp asimd evtstrm crc32"


class Core(msgspec.Struct, frozen=True):
    """name: of QEMU's model. part, features: in /proc/cpuinfo, beyond what all have. boards: that it stands for."""

    name: str
    part: str
    features: str
    boards: str


CORES = {
    "a53": Core("cortex-a53", "0xd03", "", "Raspberry Pi 3, Zero 2 W"),
    "a72": Core("cortex-a72", "0xd08", "", "Raspberry Pi 4"),
    "a76": Core("cortex-a76", "0xd0b", "atomics fphp asimdhp asimddp", "Raspberry Pi 5; near Jetson Orin"),
}


def core(name: str) -> Core:
    """Raises ExportError for one that is not known."""
    if name not in CORES:
        raise ExportError(f"processor {name!r}, wanted {', '.join(CORES)}")
    return CORES[name]


def cpuinfo(found: Core) -> str:
    """/proc/cpuinfo of a board of four such cores: ONNX Runtime crashes when it reads an x86 machine's."""
    lines = {
        "BogoMIPS": "108.00",
        "Features": " ".join(filter(None, (SHARED, found.features, "cpuid"))),
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": "0x0",
        "CPU part": found.part,
        "CPU revision": "3",
    }
    text = "".join(f"{key}\t: {value}\n" for key, value in lines.items())
    return "".join(f"processor\t: {number}\n{text}\n" for number in range(CPUS))
