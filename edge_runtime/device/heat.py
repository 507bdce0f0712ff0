"""How hot the processor is, and what slows it down at this moment: the first suspects when latencies rise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_runtime.device.board import BITS, ask_firmware, raspberry_pi, text_of, throttled_word, undervoltage

PROCESSOR_ZONES = ("cpu", "soc", "pkg")
PLAUSIBLE_MILLIDEGREES = range(-40_000, 150_000)
THROTTLED = BITS[2]


class Heat(msgspec.Struct, frozen=True):
    """temperature_c: of the processor. throttled: what slows it down now, in words; empty: nothing. None: unknown."""

    temperature_c: float | None = None
    throttled: tuple[str, ...] | None = None


def heat(*, root: Path = Path("/"), ask: Callable[[], str] = ask_firmware) -> Heat:
    """Read both; takes a few file reads and on a Raspberry Pi one call of the firmware. root: above proc and sys."""
    return Heat(_temperature_c(root), _throttled(root, ask))


def _temperature_c(root: Path) -> float | None:
    """The hottest zone of the processor, or where no zone is called so, the hottest one."""
    zones: list[tuple[bool, float]] = []
    for zone in (root / "sys/class/thermal").glob("thermal_zone*"):
        name, reading = text_of(zone / "type").lower(), text_of(zone / "temp").strip()
        if reading.removeprefix("-").isdecimal() and int(reading) in PLAUSIBLE_MILLIDEGREES:
            zones.append((any(part in name for part in PROCESSOR_ZONES), int(reading) / 1000))
    return max(zones)[1] if zones else None


def _throttled(root: Path, ask: Callable[[], str]) -> tuple[str, ...] | None:
    """By the firmware of a Raspberry Pi, elsewhere by the kernel's limit on the processor's frequency."""
    if raspberry_pi(root):
        word = throttled_word(ask())
        if word is not None:
            return tuple(text for bit, text in BITS.items() if word >> bit & 1)
        return (BITS[0],) if undervoltage(root) else None
    coolers = (root / "sys/class/thermal").glob("cooling_device*")
    states = [text_of(cooler / "cur_state").strip() for cooler in coolers if "cpufreq" in text_of(cooler / "type")]
    if not states or "" in states:
        return None
    return (THROTTLED,) if set(states) != {"0"} else ()
