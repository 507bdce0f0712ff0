"""Timing a candidate beside a baseline that somebody sent here: in children with limits that give way to everything.

The child (`comparison.py`) decodes and judges what was sent, and may die of it; this side holds the clock and turns
every way of ending into an outcome. Nothing is installed; what was sent lies in a file without a name meanwhile.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import IO, Annotated, Literal

import msgspec

from edge_runtime.errors import MALFORMED
from edge_runtime.model import child
from edge_runtime.model.gate import is_out_of_memory
from edge_runtime.model.paired import MIN_ROUNDS, PROCESSES, ROUNDS, Rounds, pooled

CHILD = ("-m", "edge_runtime.model.comparison")
MOST_ROUNDS = 2000
"""As many fit into a child's report."""
SENTENCE_CHARACTERS = 1000
LEAST_SHARE = 0.25
"""Of the time that a comparison may take: with less processor time, others are the reason that it was not finished."""

Outcome = Literal["measured", "refused", "failed", "too_large", "busy", "unable", "stopping"]
"""refused: what was sent is not allowed or no request; failed: it did not survive being loaded and run here;
unable: nothing can be measured here, or not now."""


class RemoteBenchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What measuring for others may cost, where node.allow_remote_bench is set.

    max_request_bytes: two models and a window. memory_mb: address space of a child. cpu_s: processor time of a child.
    timeout_s: of a request, all its children together, by the clock.
    """

    max_request_bytes: Annotated[int, msgspec.Meta(ge=1024, le=256_000_000)] = 16 * 1024 * 1024
    memory_mb: Annotated[float, msgspec.Meta(ge=256, le=1_000_000)] = 1200.0
    cpu_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 60
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 120.0


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """onnx: the file's bytes. session: ONNX Runtime's config entries."""

    onnx: bytes
    session: dict[str, str] = {}


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be compared, as MessagePack.

    input: name of the one input of both graphs. window: float32, little-endian, of that shape, for a single run.
    rounds: of each of PROCESSES children.
    """

    v: Literal[1]
    baseline: Graph
    candidate: Graph
    input: str
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=1 << 32)], ...], msgspec.Meta(max_length=8)]
    window: bytes
    seed: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    rounds: Annotated[int, msgspec.Meta(ge=MIN_ROUNDS, le=MOST_ROUNDS)] = ROUNDS


class Compared(msgspec.Struct, frozen=True):
    """What came of it. reason: one sentence, safe to print, when it was not measured. rounds: of all processes."""

    outcome: Outcome
    reason: str = ""
    rounds: Rounds | None = None


class Device(msgspec.Struct, frozen=True):
    """What it was measured on. family: numeric family of the CPU. temperature_c, throttled: as of the end, None when
    unknown; throttled is what slows the processor down, in words.
    """

    cpu: str
    machine: str
    cores: int
    family: str
    onnxruntime: str
    edge_runtime: str
    temperature_c: float | None = None
    throttled: tuple[str, ...] | None = None


class Answer(msgspec.Struct, frozen=True):
    """What a requester gets, as JSON. device: of what was measured."""

    v: int
    outcome: Outcome
    reason: str = ""
    rounds: Rounds | None = None
    device: Device | None = None


class Order(msgspec.Struct, frozen=True):
    """What a child is told beside the request. process: which of PROCESSES it is."""

    process: int
    settings: RemoteBenchSettings


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a child's report: what it begins to do, or at last one of the others."""

    begun: str = ""
    refused: str = ""
    failed: str = ""
    rounds: Rounds | None = None


def compare(request: IO[bytes], settings: RemoteBenchSettings, *, cancel: int = -1) -> Compared:
    """Time both models in PROCESSES children, one after the other.

    request: a file with a Request, flushed. cancel: a descriptor; once it can be read, the comparison is ended.
    """
    deadline_s, cpu_s = time.monotonic() + settings.timeout_s, 0.0
    measured: list[Rounds] = []
    for process in range(PROCESSES):
        os.lseek(request.fileno(), 0, os.SEEK_SET)
        order = msgspec.json.encode(Order(process, settings)).decode()
        left_s = max(0.0, deadline_s - time.monotonic())
        try:
            ended = child.run(CHILD, order, timeout_s=left_s, stdin=request, yielding=True, cancel=cancel)
        except OSError as error:
            return Compared("unable", f"no process for it that gives way to others: {error.strerror}")
        if ended.cancelled:
            return Compared("stopping", "the node is stopping")
        cpu_s += ended.cpu_s
        if ended.timed_out and cpu_s < LEAST_SHARE * settings.timeout_s:
            limit = f"remote_bench.timeout_s = {settings.timeout_s:g} s"
            return Compared("unable", f"others left it {cpu_s:.1f} s of processor time within {limit}")
        lines = _read_lines(ended.report)
        last = lines[-1] if lines else Line()
        if last.rounds is None or ended.code:
            return _failure(ended, lines, settings)
        measured.append(last.rounds)
    return Compared("measured", rounds=pooled(measured))


def too_much_memory(settings: RemoteBenchSettings, words: str) -> str:
    """words: what is known of the need."""
    return f"needs more memory than remote_bench.memory_mb = {settings.memory_mb:g} allows: {words}"


def _failure(ended: child.Ended, lines: list[Line], settings: RemoteBenchSettings) -> Compared:
    begun = next((line.begun for line in reversed(lines) if line.begun), "beginning")
    last = lines[-1] if lines else Line()
    if last.refused:
        return Compared("refused", _sentence(last.refused))
    return Compared("failed", _sentence(f"{begun}: {last.failed or _death(ended, settings)}"))


def _death(ended: child.Ended, settings: RemoteBenchSettings) -> str:
    """What is known of a child that ended without saying why."""
    if ended.timed_out:
        return f"not finished after remote_bench.timeout_s = {settings.timeout_s:g} s"
    if ended.code == -signal.SIGXCPU:
        return f"used more than remote_bench.cpu_s = {settings.cpu_s} s of processor time"
    last = ended.last_line or "it printed nothing"
    if is_out_of_memory(last):
        return too_much_memory(settings, last)
    if ended.code == -signal.SIGKILL:
        return f"ended by SIGKILL, as a system does that has no memory left ({last!r})"
    if ended.signal_name:
        return f"crashed with {ended.signal_name} ({last!r})"
    return f"ended with status {ended.code} and no report ({last!r})"


def _read_lines(report: bytes) -> list[Line]:
    lines: list[Line] = []
    for raw in report.splitlines():
        with suppress(*MALFORMED):
            lines.append(msgspec.json.decode(raw, type=Line))
    return lines


def _sentence(text: str) -> str:
    return child.printable(" ".join(text.split()))[:SENTENCE_CHARACTERS]
