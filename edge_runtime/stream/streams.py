"""What a pipeline knows of each of its streams."""

from __future__ import annotations

from collections.abc import Iterable

from edge_runtime.marks import StreamMark
from edge_runtime.records import InputSpec, Message, Samples
from edge_runtime.stream.bursts import Burst
from edge_runtime.stream.sequence import SequenceTracker
from edge_runtime.stream.window import Windower, WindowSettings


class Stream:
    """The state of one stream. given_up: messages given up here since the last one that was taken in.

    epoch: of the connection that one came in on, 0 before there is one in this process.
    """

    def __init__(self, spec: InputSpec, settings: WindowSettings, *, run_id: str, memory: int) -> None:
        self.sequence = SequenceTracker(run_id, memory=memory)
        self.windower = Windower(settings, channels=len(spec.channels), rate_hz=spec.rate_hz, lead_in=spec.lead_in)
        self.given_up = self.epoch = 0

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
        n, epoch = min(self.sequence.following(burst), self.windower.following(burst)), self.epoch
        if burst.messages[-1].epoch != epoch:
            return next((i for i, message in enumerate(burst.messages[:n]) if message.epoch != epoch), n)
        return n

    def reconnected(self, message: Message, samples: Samples, lost: Iterable[int]) -> None:
        """Judge what lies before a message that came in on another connection than the last one.

        lost: connections at which the broker had forgotten us. Where neither numbers nor sensor times tell what is
        missing, a message at least is after such a one. A broker that knows us has kept what it had for us at QoS 1,
        so a pause is no gap; at QoS 0 it has not, and no pause can be measured since an earlier process.
        """
        before, self.epoch = self.epoch, message.epoch
        windower = self.windower
        if windower.sees_gaps(samples):
            return
        if any(before < at <= message.epoch for at in lost):
            self.given_up = max(self.given_up + 1, windower.paused(samples))
        elif message.qos:
            windower.excuse_pause()
        elif not before:
            self.given_up += 1
