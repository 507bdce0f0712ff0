"""Which packet ids of a connection may be acknowledged: settled by every pipeline, in order of arrival."""

from __future__ import annotations

from collections import deque

from edge_runtime.records import Message


class Acknowledgements:
    """The unacknowledged messages of one connection (MQTT 5.0, section 4.6: acknowledge in order of receipt)."""

    def __init__(self) -> None:
        self.epoch = 0
        self._order: deque[int] = deque()
        self._open: dict[int, int] = {}

    def arrived(self, message: Message, parts: int) -> None:
        """A message came in that this many pipelines have to settle; a new epoch forgets the last one's ids.

        A broker may send an unacknowledged message twice on one connection (MQTT 3.1.1 does not forbid it); its id is
        then acknowledged once, when both are settled.
        """
        if message.epoch != self.epoch:
            self.epoch = message.epoch
            self._order.clear()
            self._open.clear()
        if not message.qos:
            return
        if message.mid in self._open:
            self._open[message.mid] += parts
        else:
            self._order.append(message.mid)
            self._open[message.mid] = parts

    def settled(self, message: Message) -> None:
        """One pipeline is done with a message; of a past epoch it means nothing any more."""
        if message.qos and message.epoch == self.epoch:
            self._open[message.mid] -= 1

    def ready(self) -> list[int]:
        """Packet ids to acknowledge now, in order; each is returned once."""
        ids: list[int] = []
        while self._order and self._open[self._order[0]] <= 0:
            mid = self._order.popleft()
            del self._open[mid]
            ids.append(mid)
        return ids
