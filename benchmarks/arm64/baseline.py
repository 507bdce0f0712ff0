"""New counts against committed ones: a program that needs more than LIMIT more instructions than before fails.

So does what was counted before and is not now, or the other way round: nothing leaves the baseline unseen.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.arm64.hot_path import PerMessage
from benchmarks.arm64.inference import Inference
from benchmarks.arm64.records import Line, Where
from benchmarks.arm64.variants import SIMULATED

LIMIT = 0.01
NOT_OURS = "its data is not part of the project"
ANEW = "count a new baseline"
Key = tuple[str, ...]


class Difference(msgspec.Struct, frozen=True):
    """before, after: instructions. reason: why they cannot be compared, "" when they can. may_be_absent: of an example
    whose data not everybody has.
    """

    key: Key
    before: int
    after: int
    reason: str = ""
    may_be_absent: bool = False

    @property
    def share(self) -> float:
        """Of before, more is above 0."""
        return self.after / self.before - 1

    @property
    def is_beyond(self) -> bool:
        return not self.reason and abs(self.after - self.before) > LIMIT * self.before

    @property
    def status(self) -> str:
        """One of ok, FAIL, skip."""
        if self.reason:
            return "skip" if self.may_be_absent else "FAIL"
        return "FAIL" if self.is_beyond else "ok"

    @property
    def told(self) -> str:
        if not self.reason:
            return f"{self.before:,} to {self.after:,}, {self.share:+.2%}, wanted at most {LIMIT:.0%}"
        return f"{self.reason}; {NOT_OURS}" if self.may_be_absent else self.reason


def differences(before: Sequence[Line], after: Sequence[Line], cores: Sequence[str]) -> list[Difference]:
    """One for each count of the baseline on these cores, and for each that it does not have."""
    old, new = ({key(line): line for line in lines if not isinstance(line, Where)} for lines in (before, after))
    wanted = [one for one in [*old, *(one for one in new if one not in old)] if one[-1] in cores]
    return [_difference(one, old.get(one), new.get(one)) for one in wanted]


def key(line: Inference | PerMessage) -> Key:
    if isinstance(line, Inference):
        return line.example, line.variant, line.core
    return line.subject, line.workload, f"QoS {line.qos}", f"{line.read_messages} a read", line.core


def instructions(line: Inference | PerMessage) -> int:
    return line.median if isinstance(line, Inference) else line.instructions_per_message


def _difference(name: Key, old: Inference | PerMessage | None, new: Inference | PerMessage | None) -> Difference:
    reason = ""
    if new is None:
        reason = "not counted here"
    elif old is None:
        reason = f"not in the baseline: {ANEW}"
    elif isinstance(old, Inference) and isinstance(new, Inference) and old.sha256 != new.sha256:
        reason = f"another graph: {ANEW}"
    one = old or new
    may_be_absent = isinstance(one, Inference) and one.example not in SIMULATED
    before, after = (instructions(line) if line else 0 for line in (old, new))
    return Difference(name, before, after, reason, may_be_absent)


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
    for kind in ("versions", "debian"):
        one, other = getattr(old, kind), getattr(new, kind)
        pairs |= {name: (one.get(name, "none"), other.get(name, "none")) for name in sorted({*one, *other})}
    return [f"{name} {one} to {other}" for name, (one, other) in pairs.items() if one != other]
