"""A packet larger than the broker takes, where it did not say so before: found out by how it ends connections."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from edge_runtime.mqtt.sending import Entry
from edge_runtime.mqtt.settings import MAX_PACKET_BYTES
from edge_runtime.records import Outgoing

log = logging.getLogger(__name__)


class Oversize:
    """limit: bytes of the largest packet to be sent, as far as was found out.

    The largest message of those sent and not answered is the likely culprit; but it may be one of QoS 0, which nobody
    answers. An innocent one is answered on the next connection, where it goes first; who is found twice is guilty.
    """

    def __init__(self) -> None:
        self.limit = MAX_PACKET_BYTES
        self._suspect: int | str = 0

    def refused(self, sent: Iterable[Entry]) -> None:
        """The broker has ended a connection because of a packet's size. sent: what may not have arrived on it."""
        largest = max(sent, key=lambda entry: _least_bytes(entry.message), default=None)
        if largest is None:
            return
        size = _least_bytes(largest.message)
        suspect = largest.token or largest.message.topic
        guilty, self._suspect = suspect == self._suspect, suspect
        if guilty:
            self.limit = size
        facts = {"topic": largest.message.topic, "bytes": size, "given_up": guilty}
        log.warning("mqtt_packet_too_large", extra=facts)

    def forget(self) -> None:
        """The broker may take more by now."""
        self.limit, self._suspect = MAX_PACKET_BYTES, 0


def _least_bytes(message: Outgoing) -> int:
    """Less than any packet that holds the message."""
    return len(message.topic.encode()) + len(message.payload)
