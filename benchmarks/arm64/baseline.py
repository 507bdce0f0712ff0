"""New counts against committed ones: a program that needs more than LIMIT more instructions than before fails."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.arm64.hot_path import PerMessage
from benchmarks.arm64.inference import Inference
from benchmarks.arm64.records import Line, Where

LIMIT = 0.01
Key = tuple[str, ...]


class Difference(msgspec.Struct, frozen=True):
    """before, after: instructions. reason: why they cannot be compared, "" when they can."""

    key: Key
    before: int
    after: int
    reason: str = ""

    @property
    def share(self) -> float:
        """Of before, more is above 0."""
        return self.after / self.before - 1

    @property
    def is_beyond(self) -> bool:
        return not self.reason and abs(self.after - self.before) > LIMIT * self.before


def differences(before: Sequence[Line], after: Sequence[Line]) -> list[Difference]:
    """One for each count of the baseline. A graph that is not here, or is another one by now, is not compared."""
    new = {key(line): line for line in after if not isinstance(line, Where)}
    return [_difference(line, new.get(key(line))) for line in before if not isinstance(line, Where)]


def key(line: Inference | PerMessage) -> Key:
    if isinstance(line, Inference):
        return line.example, line.variant, line.core
    return line.subject, line.workload, f"QoS {line.qos}", f"{line.read_messages} a read", line.core


def instructions(line: Inference | PerMessage) -> int:
    return line.median if isinstance(line, Inference) else line.instructions_per_message


def _difference(old: Inference | PerMessage, new: Inference | PerMessage | None) -> Difference:
    if new is None:
        return Difference(key(old), instructions(old), 0, "not counted here")
    is_other = isinstance(old, Inference) and isinstance(new, Inference) and old.sha256 != new.sha256
    return Difference(key(old), instructions(old), instructions(new), "another graph" if is_other else "")


def wrong(lines: Sequence[Line]) -> list[str]:
    """What did not give the right results where it was counted."""
    refused = [
        f"{' '.join(key(line))}: {line.proof.refused}"
        for line in lines
        if isinstance(line, Inference) and line.proof.refused
    ]
    unlike = [
        f"{' '.join(key(line))}: wrong results" for line in lines if isinstance(line, PerMessage) and not line.is_right
    ]
    return refused + unlike


def moved(before: Sequence[Line], after: Sequence[Line]) -> list[str]:
    """What else changed since the baseline, which may be why counts did: "onnxruntime 1.31 to 1.32"."""
    old, new = (next((line for line in lines if isinstance(line, Where)), None) for lines in (before, after))
    if old is None or new is None:
        return []
    pairs = {"qemu": (old.qemu, new.qemu), "suite": (old.suite, new.suite)}
    pairs |= {
        name: (old.versions.get(name, "none"), new.versions.get(name, "none"))
        for name in sorted({*old.versions, *new.versions})
    }
    return [f"{name} {one} to {other}" for name, (one, other) in pairs.items() if one != other]
