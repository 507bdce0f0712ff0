"""What the loop asks of an MQTT connection, whoever implements it."""

from __future__ import annotations

import select
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from edge_runtime.records import Message, Outgoing

RECONNECT_POLL_S = 0.1


class Counters(msgspec.Struct):
    """Since the start. failures: attempts that got no answer. refused: attempts the broker answered with no.

    sessions_lost: reconnects at which the broker no longer knew us, so messages may be gone.
    """

    connects: int = 0
    disconnects: int = 0
    failures: int = 0
    refused: int = 0
    sessions_lost: int = 0
    filters_refused: int = 0


class Client(Protocol):
    """One connection, driven by the one network thread; every method is called from it and none of them blocks long.

    A connection that breaks is taken up again by poll, under a back-off with jitter.
    """

    counters: Counters
    refused_filters: dict[str, str]

    @property
    def connected(self) -> bool: ...

    @property
    def subscribed(self) -> bool:
        """Connected, and the broker has answered the subscriptions (some of them perhaps with a refusal)."""

    @property
    def reason(self) -> str:
        """Why it is not connected, for the operator; "" while it is."""

    def start(self) -> None:
        """Begin to connect; poll sees it through, and tries again."""

    def poll(self, timeout_s: float) -> list[Message]:
        """Do what is due (connect, keep alive, write) and read until nothing is left or about 64 messages came.

        timeout_s: how long to wait when there is nothing to do; 0 never waits.
        """

    def fileno(self) -> int:
        """What to select on for reading, or -1. It may be another number after every poll."""

    def wants_write(self) -> bool:
        """Whether bytes wait to be written: select for writing too, then call poll(0)."""

    def acknowledge(self, epoch: int, mids: Sequence[int]) -> None:
        """Send PUBACKs, in this order. Ignored: packet ids of a past connection, and 0, the id of QoS 0 messages."""

    def publish(self, message: Outgoing) -> int:
        """Hand over one message of QoS 0 or 1; its token comes back from confirmed exactly once."""

    def confirmed(self) -> list[tuple[int, str]]:
        """(token, reason) of the messages whose fate is known: "" for success, else why it was not delivered.

        QoS 1 succeeds with the broker's PUBACK, QoS 0 when it was written to the socket.
        """

    def flush(self) -> None:
        """Write what is buffered, for a bounded time."""

    def stop(self, timeout_s: float) -> None:
        """Say "stopped", wait for what is in flight (half the time at most), disconnect cleanly.

        Messages that still come in are not acknowledged, so the broker keeps those of QoS 1. What cannot be delivered
        is confirmed as "stopped".
        """


def wait(clients: Iterable[Client], timeout_s: float, *, also: int = -1) -> None:
    """Until one of them has something to read or to write, or the descriptor `also` to read, or time is up."""
    poller = select.poll()
    if also >= 0:
        poller.register(also, select.POLLIN)
    for client in clients:
        if client.fileno() >= 0:
            poller.register(client.fileno(), select.POLLIN | (select.POLLOUT if client.wants_write() else 0))
        if not client.connected:
            timeout_s = min(timeout_s, RECONNECT_POLL_S)
    poller.poll(timeout_s * 1000)
