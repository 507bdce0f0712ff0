"""Which packet ids of a connection may be acknowledged: settled by every pipeline, in order of arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from edge_runtime.records import Message


class Acknowledgements:
    """The unacknowledged messages of one connection (MQTT 5.0, section 4.6: acknowledge in order of receipt).

    Messages of QoS 0 mean nothing here, nor does settling one of another epoch.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._order: deque[int] = deque()
        self._open: dict[int, int] = {}

    def arrived(self, messages: Sequence[Message]) -> None:
        """Messages came in, in this order; another epoch than before forgets the ids of that one.

        A broker may send an unacknowledged message twice on one connection (MQTT 3.1.1 does not forbid it); its id is
        then acknowledged once, when both are settled.
        """
        for message in [message for message in messages if message.qos]:
            if message.epoch != self.epoch:
                self.epoch = message.epoch
                self._order.clear()
                self._open.clear()
            if message.mid not in self._open:
                self._order.append(message.mid)
                self._open[message.mid] = 0

    def taken(self, messages: Sequence[Message]) -> None:
        """One more pipeline has to settle these messages, which have just arrived."""
        self._count(messages, 1)

    def settled(self, messages: Sequence[Message]) -> None:
        """One pipeline is done with these messages."""
        self._count(messages, -1)

    def ready(self) -> list[int]:
        """Packet ids to acknowledge now, in order; each is returned once."""
        ids: list[int] = []
        while self._order and self._open[self._order[0]] <= 0:
            mid = self._order.popleft()
            del self._open[mid]
            ids.append(mid)
        return ids

    def _count(self, messages: Sequence[Message], change: int) -> None:
        if self._open:
            for message in messages:
                if message.qos and message.epoch == self.epoch:
                    self._open[message.mid] += change
