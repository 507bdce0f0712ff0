"""What the daemon would run on: architecture, Python, C library, processor."""

from __future__ import annotations

from pathlib import Path

from edge_runtime.findings import Finding, fail, ok, warn
from edge_runtime.model.family import numeric_family

MACHINES = ("x86_64", "aarch64")
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
OLDEST_GLIBC = (2, 28)
ARM_FEATURES = {"asimddp": "dot product", "i8mm": "int8 matrix product", "asimdhp": "float16"}
REINSTALL_64 = "install a 64-bit system (for a Raspberry Pi: the 64-bit Raspberry Pi OS)"


def architecture(system: str, machine: str, bits: int) -> Finding:
    """system, machine: of uname(2), so of the kernel. bits: of this Python, so of the installed system."""
    found = f"{system} {machine}, {bits}-bit Python"
    if bits == 32:
        kernel = "a 32-bit system on a 64-bit kernel" if machine in MACHINES else "a 32-bit system"
        return fail("architecture", f"{found}: {kernel}, for which there is no ONNX Runtime", REINSTALL_64)
    if system != "Linux":
        return warn("architecture", f"{found}: not tested", "run the daemon on Linux")
    if machine not in MACHINES:
        advice = f"build onnxruntime for {machine} yourself, or use one of {', '.join(MACHINES)}"
        return warn("architecture", f"{found}: PyPI has no ONNX Runtime for it", advice)
    return ok("architecture", found)


def python(version: tuple[int, ...]) -> Finding:
    found = ".".join(map(str, version[:3]))
    wanted = f"{_dotted(OLDEST_PYTHON)} to {_dotted(NEWEST_PYTHON)}"
    if version[:2] < OLDEST_PYTHON:
        return fail("python", f"{found}, too old", f"install Python {wanted}")
    if version[:2] > NEWEST_PYTHON:
        return warn("python", f"{found}, newer than what is tested", f"install Python {wanted}")
    return ok("python", found)


def c_library(name: str, version: str, *, lib: Path = Path("/lib")) -> Finding:
    """name, version: as platform.libc_ver() has them, empty on musl. lib: where musl's loader lies."""
    use_glibc = f"use a system with glibc {_dotted(OLDEST_GLIBC)} or newer, such as Debian 12 or Ubuntu 22.04"
    if any(lib.glob("ld-musl-*")) and name != "glibc":
        return fail("libc", "musl, for which there is no ONNX Runtime on PyPI", f"{use_glibc}, not Alpine")
    if name != "glibc":
        return warn("libc", f"{name or 'unknown'} {version}".strip(), f"if ONNX Runtime cannot be had, {use_glibc}")
    if _numbers(version) < OLDEST_GLIBC:
        return fail("libc", f"glibc {version}, too old for ONNX Runtime's wheels", use_glibc)
    return ok("libc", f"glibc {version}")


def processor(machine: str, cpus: int, *, cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    try:
        facts = _facts(cpuinfo.read_text(errors="replace"))
    except OSError as error:
        advice = "ONNX Runtime chooses its code by /proc/cpuinfo: do not hide /proc (systemd: ProcSubset=all)"
        return warn("processor", f"{cpuinfo} cannot be read: {error.strerror}", advice)
    name = _name(facts, machine)
    if machine == "x86_64":
        exact = numeric_family(cpuinfo) == "vnni"
        int8 = "VNNI: int8 is exact and fast" if exact else "no VNNI: int8 is made exact, which costs time"
    else:
        features = facts.get("Features", "").split()
        known = [f"{feature} ({what})" for feature, what in ARM_FEATURES.items() if feature in features]
        int8 = ", ".join(known) or "no dot product: int8 gains less"
    return ok("processor", f"{name}, {cpus} cores; {int8}")


def cpu_name(machine: str, *, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself, on a Raspberry Pi the board; the architecture where nothing is known."""
    try:
        return _name(_facts(cpuinfo.read_text(errors="replace")), machine)
    except OSError:
        return machine


def _name(facts: dict[str, str], machine: str) -> str:
    return facts.get("model name") or facts.get("Model") or machine


def _facts(cpuinfo: str) -> dict[str, str]:
    """Each key with its first value."""
    facts: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return facts


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
