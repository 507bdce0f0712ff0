"""Consecutive windows in alarm become one segment, told when the alarm has ended."""

from __future__ import annotations

import hashlib

import msgspec

from edge_runtime.records import Result, Segment

SEGMENT_SCHEMA = 1


class Segments:
    """The open segments of one pipeline, at most one a stream; the caller bounds the number of streams.

    They depend on the order of a stream's windows alone, never on how messages were cut into turns.
    """

    def __init__(self) -> None:
        self.open: dict[str, Segment] = {}

    def extend(self, result: Result, evidence: float, *, fresh: bool) -> Segment:
        """Take one window in alarm, published or not; the segment it is part of, as it now is.

        evidence: what speaks for the alarm in it. fresh: it is the first after a gap that reset its stream.
        """
        before = self.open.get(result.stream)
        segment = _begun(result, evidence) if before is None else _extended(before, result, evidence, fresh)
        self.open[result.stream] = segment
        return segment

    def end(self, stream: str) -> Segment | None:
        """A window of the stream is not in alarm: the segment that ends there, if one was open."""
        return self.open.pop(stream, None)


def _begun(result: Result, evidence: float) -> Segment:
    return Segment(
        v=SEGMENT_SCHEMA,
        id=hashlib.blake2b(f"event|{result.id}".encode(), digest_size=16).hexdigest(),
        pipeline=result.pipeline,
        stream=result.stream,
        model=result.model,
        label=result.label,
        start=result.t0,
        end=result.t1,
        peak_score=evidence,
        peak_at=result.t1,
        windows=1,
        seq=result.seq,
        flags=result.flags,
    )


def _extended(before: Segment, result: Result, evidence: float, fresh: bool) -> Segment:
    higher = evidence > before.peak_score
    flags = (*result.flags, "gap") if fresh else result.flags
    return msgspec.structs.replace(
        before,
        model=result.model if higher else before.model,
        label=result.label if higher else before.label,
        end=result.t1,
        peak_score=evidence if higher else before.peak_score,
        peak_at=result.t1 if higher else before.peak_at,
        windows=before.windows + 1,
        seq=(before.seq[0], result.seq[1]),
        flags=tuple(dict.fromkeys((*before.flags, *flags))),
    )
