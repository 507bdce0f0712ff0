"""Fakes for users' tests and our own: a clock by hand, a model of means, a transport in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from edge_runtime.mqtt.transport import Confirmed, Counters, Kind
from edge_runtime.records import Floats, Message, Outgoing
from edge_runtime.stream.pipeline import Clock

__all__ = ["ManualClock", "MemoryClient", "ModelOfMeans"]


class ManualClock:
    """Time stands still until `advance`; both clocks move together."""

    def __init__(self, *, monotonic_ns: int = 0, unix_ns: int = 1_700_000_000_000_000_000) -> None:
        self.monotonic_ns = monotonic_ns
        self.unix_ns = unix_ns

    def advance(self, seconds: float) -> None:
        step_ns = round(seconds * 1e9)
        self.monotonic_ns += step_ns
        self.unix_ns += step_ns

    def clock(self) -> Clock:
        """What a pipeline takes."""
        return Clock(lambda: self.monotonic_ns, lambda: self.unix_ns)


class ModelOfMeans:
    """Scores are the window's mean per channel: a value one can check by hand. Layout NTC."""

    model_id = "means@1.0.0"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, inputs: Floats) -> Floats:
        self.batches.append(len(inputs))
        means: Floats = inputs.mean(axis=1, dtype=np.float32)
        return means


class MemoryClient:
    """A transport without a broker: `arrive` feeds it, `published` and `acknowledged` show what came out."""

    kind: Kind = "callbacks"

    def __init__(self) -> None:
        self.counters, self.lost_at = Counters(), 0
        self.refused_filters: dict[str, str] = {}
        self.more = self.held = False
        self.connected = True
        self.subscribed = True
        self.reason = ""
        self.problem = ""
        self.published: list[Outgoing] = []
        self.acknowledged: list[tuple[int, int]] = []
        self.refuse_with = ""
        self.withhold_confirmations = False
        self._arrived: deque[Message] = deque()
        self._unconfirmed: list[int] = []

    def arrive(self, *messages: Message) -> None:
        self._arrived.extend(messages)

    def start(self) -> None: ...

    def poll(self, timeout_s: float) -> list[Message]:  # noqa: ARG002  nothing to wait for
        return [self._arrived.popleft() for _ in range(min(64, len(self._arrived)))]

    def fileno(self) -> int:
        return -1

    def wants_write(self) -> bool:
        return False

    def acknowledge(self, epoch: int, mids: Sequence[int]) -> None:
        self.acknowledged += [(epoch, mid) for mid in mids]

    def publish(self, message: Outgoing) -> int:
        return self.publish_all([message])

    def publish_all(self, messages: Sequence[Outgoing]) -> int:
        first = len(self.published) + 1
        self.published += messages
        self._unconfirmed += range(first, len(self.published) + 1)
        return len(self.published)

    @property
    def written(self) -> int:
        return len(self.published)

    def confirmed(self) -> Confirmed:
        if self.withhold_confirmations:
            return Confirmed([], [])
        tokens, self._unconfirmed = self._unconfirmed, []
        if self.refuse_with:
            return Confirmed([], [(token, self.refuse_with) for token in tokens])
        return Confirmed(tokens, [])

    def flush(self) -> None: ...

    def stop(self, timeout_s: float) -> None: ...
