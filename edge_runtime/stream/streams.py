"""What a pipeline knows of each of its streams."""

from __future__ import annotations

from edge_runtime.marks import StreamMark
from edge_runtime.records import InputSpec
from edge_runtime.stream.bursts import Burst
from edge_runtime.stream.sequence import SequenceTracker
from edge_runtime.stream.window import Windower, WindowSettings


class Stream:
    """The state of one stream. given_up: messages given up here since the last one that was taken in."""

    def __init__(self, spec: InputSpec, settings: WindowSettings, *, run_id: str, memory: int) -> None:
        self.sequence = SequenceTracker(run_id, memory=memory)
        self.windower = Windower(settings, channels=len(spec.channels), rate_hz=spec.rate_hz, lead_in=spec.lead_in)
        self.given_up = 0

    @property
    def mark(self) -> StreamMark:
        sequence = self.sequence
        return StreamMark(
            sequence.number,
            sequence.epoch,
            sequence.numbered,
            sequence.first,
            sequence.missing,
            sequence.restarts,
            self.given_up,
            self.windower.mark,
        )

    def following(self, burst: Burst) -> int:
        """How many of the first messages of a burst are each simply the next of the stream."""
        if self.given_up:
            return 0
        return min(self.sequence.following(burst), self.windower.following(burst))
