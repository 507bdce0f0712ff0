"""A Raspberry Pi's own word on its power supply and its heat."""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Callable
from pathlib import Path

from edge_runtime.findings import Finding, ok, warn

VCIO = Path("/dev/vcio")
SINCE_START = 16  # bits 16 to 19 repeat bits 0 to 3, for the time since the start
BITS = {0: "undervoltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
POWER_ADVICE = "use a power supply and a cable that hold 5 V under load"
HEAT_ADVICE = "cool the board; latencies rise while it is throttled"
READ_ADVICE = f"let this user read {VCIO}: sudo usermod -aG video $USER"

_MAILBOX_PROPERTY = 0xC000_0000 | struct.calcsize("P") << 16 | 100 << 8  # _IOWR(100, 0, char *)
_GET_GENCMD_RESULT = 0x0003_0080
_TEXT_BYTES = 1024
_MESSAGE = struct.Struct(f"=6I{_TEXT_BYTES}sI")  # size, 0, tag, bytes of text, 0, error, text, end tag


def ask_firmware(*, device: Path = VCIO) -> str:
    """What `vcgencmd get_throttled` prints, asked of the firmware as that does; "" where it cannot be asked."""
    message = bytearray(_MESSAGE.pack(_MESSAGE.size, 0, _GET_GENCMD_RESULT, _TEXT_BYTES, 0, 0, b"get_throttled", 0))
    try:
        with device.open("rb", buffering=0) as mailbox:
            fcntl.ioctl(mailbox, _MAILBOX_PROPERTY, message)
    except OSError:
        return ""
    *_, error, text, _ = _MESSAGE.unpack(message)
    return "" if error else str(text.partition(b"\0")[0].decode(errors="replace"))


def raspberry_pi(root: Path) -> str:
    """Which model it is, "" for none. root: above proc and sys."""
    model = text_of(root / "proc/device-tree/model").rstrip("\x00")
    return model if model.startswith("Raspberry Pi") else ""


def throttled_word(printed: str) -> int | None:
    """The number in "throttled=0x50005"."""
    name, _, number = printed.partition("=")
    try:
        return int(number, 16) if name == "throttled" else None
    except ValueError:
        return None


def undervoltage(root: Path) -> bool | None:
    """What the kernel's voltage sensor says of this moment, None where there is none."""
    for sensor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        alarm = text_of(sensor / "in0_lcrit_alarm").strip()
        if text_of(sensor / "name").strip() == "rpi_volt" and alarm:
            return alarm != "0"
    return None


def throttling(*, root: Path = Path("/"), ask: Callable[[], str] = ask_firmware) -> list[Finding]:
    """One finding on a Raspberry Pi, none elsewhere. root: above proc and sys."""
    model = raspberry_pi(root)
    if not model:
        return []
    word = throttled_word(ask())
    if word is None:
        return [_by_voltage_sensor(model, undervoltage(root))]
    now = [text for bit, text in BITS.items() if word >> bit & 1]
    past = [text for bit, text in BITS.items() if word >> bit + SINCE_START & 1]
    if not now and not past:
        return [ok("board", f"{model}, neither undervoltage nor throttling since the start")]
    told = [f"now: {', '.join(now)}"] if now else []
    told += [f"since the start: {', '.join(past)}"] if past else []
    advice = POWER_ADVICE if BITS[0] in now + past else HEAT_ADVICE
    return [warn("board", f"{model}; {'; '.join(told)}", advice)]


def text_of(path: Path) -> str:
    """A file of proc or sys, "" where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _by_voltage_sensor(model: str, low: bool | None) -> Finding:
    if low is None:
        return warn("board", f"{model}; undervoltage and throttling cannot be read", READ_ADVICE)
    if low:
        return warn("board", f"{model}; now: undervoltage", POWER_ADVICE)
    return ok("board", f"{model}, no undervoltage now; throttling cannot be read")
