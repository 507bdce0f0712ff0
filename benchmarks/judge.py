"""What became of a run's messages: every result is held against the window it answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from benchmarks.generator import Run, Times
from benchmarks.workloads import DIGITS, Workload

UNKNOWN = NEVER = -1


class Verdict(msgspec.Struct, frozen=True):
    """missing: windows never answered. repeated: answered again. wrong: results whose message, label or score is not
    that of any window sent. latencies_ns: of the measured windows, from the message that completed them, in order.
    answered: messages whose windows were answered in the measured time.
    """

    missing: int
    repeated: int
    wrong: int
    latencies_ns: Times
    answered: int

    @property
    def faults(self) -> int:
        return self.missing + self.repeated + self.wrong


class _Answer(msgspec.Struct):
    """What all subjects' results have in common; the daemon says which messages its window spans."""

    seq: int | tuple[int, int]
    label: str
    score: float


def results(run: Run, workload: Workload) -> Verdict:
    """Judge what a model answered: number, label and score."""
    return _verdict(run, workload, windows(run.bodies, workload))


def echoes(run: Run, workload: Workload) -> Verdict:
    """Judge what was sent back as it came: length, number and as many bytes as were kept."""
    return _verdict(run, workload, _windows_of_echoes(run, workload))


def windows(bodies: Iterable[bytes], workload: Workload) -> Iterator[int]:
    """Per result of a model the window it answers rightly, or UNKNOWN."""
    cut, expected, tolerance = workload.cut, workload.expected, workload.model.tolerance
    decode = msgspec.json.Decoder(_Answer).decode
    for body in bodies:
        try:
            answer = decode(body)
        except msgspec.DecodeError:
            yield UNKNOWN
            continue
        begun, message = answer.seq if isinstance(answer.seq, tuple) else (None, answer.seq)
        message -= workload.first_number
        window = cut.completed(message + 1) - 1
        right = expected[window % len(expected)]
        fits = window >= 0 and cut.completing(window) == message
        spans = begun is None or begun - workload.first_number == cut.beginning(window)
        same = answer.label == right.label and abs(answer.score - right.score) <= tolerance
        yield window if fits and spans and same else UNKNOWN


def _windows_of_echoes(run: Run, workload: Workload) -> Iterator[int]:
    """Per result the message it is, or UNKNOWN; one without a number is known by its place."""
    for place, (body, length) in enumerate(zip(run.bodies, run.lengths.tolist(), strict=True)):
        message = run.first + place
        if workload.number_at >= 0:
            message = _number(body, workload)
        sent = workload.body(message)
        yield message if message >= 0 and length == len(sent) and sent.startswith(body) else UNKNOWN


def _number(body: bytes, workload: Workload) -> int:
    found = body[workload.number_at :][:DIGITS]
    return int(found) - workload.first_number if found.isdigit() else UNKNOWN


def _verdict(run: Run, workload: Workload, answered: Iterable[int]) -> Verdict:
    cut = workload.cut
    first, stop = cut.completed(run.first), cut.completed(run.first + len(run.written_ns))
    arrived_ns = np.full(stop - first, NEVER, np.int64)
    repeated = wrong = 0
    for window, at_ns in zip(answered, run.arrived_ns.tolist(), strict=True):
        if not first <= window < stop:
            wrong += 1
        elif arrived_ns[window - first] != NEVER:
            repeated += 1
        else:
            arrived_ns[window - first] = at_ns
    messages = np.array([cut.completing(window) for window in range(first, stop)], np.int64) - run.first
    written_ns = run.written_ns[messages]
    came = arrived_ns != NEVER
    timed = came & (run.begin_ns <= written_ns) & (written_ns < run.end_ns)
    within = int(np.count_nonzero((run.begin_ns <= arrived_ns) & (arrived_ns < run.end_ns)))
    return Verdict(
        missing=int(np.count_nonzero(~came)),
        repeated=repeated,
        wrong=wrong,
        latencies_ns=(arrived_ns - written_ns)[timed],
        answered=round(within * cut.messages_per_window),
    )
