"""A Raspberry Pi's own word on its power supply and its heat."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from edge_runtime.findings import Finding, ok, warn

VCGENCMD_S = 5.0
SINCE_START = 16  # bits 16 to 19 repeat bits 0 to 3, for the time since the start
BITS = {0: "undervoltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
POWER_ADVICE = "use a power supply and a cable that hold 5 V under load"
HEAT_ADVICE = "cool the board; latencies rise while it is throttled"
READ_ADVICE = "install vcgencmd and let this user read it: sudo usermod -aG video $USER"


def vcgencmd() -> str:
    """What `vcgencmd get_throttled` prints, "" where it cannot be asked."""
    try:
        done = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, timeout=VCGENCMD_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def throttling(*, root: Path = Path("/"), ask: Callable[[], str] = vcgencmd) -> list[Finding]:
    """One finding on a Raspberry Pi, none elsewhere. root: above proc and sys."""
    model = _text(root / "proc/device-tree/model").rstrip("\x00")
    if not model.startswith("Raspberry Pi"):
        return []
    word = _word(ask())
    if word is None:
        return [_by_voltage_sensor(model, root)]
    now = [text for bit, text in BITS.items() if word >> bit & 1]
    past = [text for bit, text in BITS.items() if word >> bit + SINCE_START & 1]
    if not now and not past:
        return [ok("board", f"{model}, neither undervoltage nor throttling since the start")]
    told = [f"now: {', '.join(now)}"] if now else []
    told += [f"since the start: {', '.join(past)}"] if past else []
    advice = POWER_ADVICE if BITS[0] in now + past else HEAT_ADVICE
    return [warn("board", f"{model}; {'; '.join(told)}", advice)]


def _word(printed: str) -> int | None:
    """The number in "throttled=0x50005"."""
    name, _, number = printed.partition("=")
    try:
        return int(number, 16) if name == "throttled" else None
    except ValueError:
        return None


def _by_voltage_sensor(model: str, root: Path) -> Finding:
    for sensor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        alarm = _text(sensor / "in0_lcrit_alarm").strip()
        if _text(sensor / "name").strip() == "rpi_volt" and alarm:
            if alarm != "0":
                return warn("board", f"{model}; now: undervoltage", POWER_ADVICE)
            return ok("board", f"{model}, no undervoltage now; throttling cannot be read")
    return warn("board", f"{model}; undervoltage and throttling cannot be read", READ_ADVICE)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
