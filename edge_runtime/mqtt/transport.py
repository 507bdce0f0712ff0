"""What the loop asks of an MQTT connection, whoever implements it."""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from edge_runtime.records import Message, Outgoing

Kind = Literal["lane", "callbacks"]

RECONNECT_POLL_S = 0.1
MAX_MESSAGES = 64

# Why a message could not be delivered: a reason is one of these, or begins with one of them and a colon.
QUEUE_FULL = "outgoing queue full"
NOT_CONNECTED = "not connected"
STOPPED = "stopped"
EXPIRED = "expired while waiting"
TOO_LARGE = "packet too large"
UNPUBLISHABLE = "cannot be published"
TOPIC_INVALID = "Topic name invalid"
PAYLOAD_INVALID = "Payload format invalid"
PERMANENT = frozenset({EXPIRED, TOO_LARGE, UNPUBLISHABLE, TOPIC_INVALID, PAYLOAD_INVALID})


def is_permanent(reason: str) -> bool:
    """Whether a message that failed for this reason would fail again however often it is sent.

    Everything else may pass: the broker is full, away, or has rules that an operator can change.
    """
    return reason.partition(":")[0] in PERMANENT


class Counters(msgspec.Struct):
    """Since the start. failures: attempts that got no answer. refused: attempts the broker answered with no.

    sessions_lost: connections at which the broker no longer knew us, so messages may be gone. taken_over: connections
    that another client with our client id took over. no_subscribers: messages the broker took, for nobody.
    """

    connects: int = 0
    disconnects: int = 0
    failures: int = 0
    refused: int = 0
    sessions_lost: int = 0
    filters_refused: int = 0
    taken_over: int = 0
    no_subscribers: int = 0


class Confirmed(NamedTuple):
    """Tokens of the messages whose fate is known, each exactly once. failed: with why.

    QoS 1 is delivered with the broker's PUBACK, QoS 0 when it was written to the socket.
    """

    delivered: list[int]
    failed: list[tuple[int, str]]


class Client(Protocol):
    """One connection, driven by the one network thread; every method is called from it and none of them blocks long.

    A connection that breaks is taken up again by poll, under a back-off with jitter.
    lost_at: epoch of the newest connection that Counters.sessions_lost counts, 0 before there is one; set before poll
    returns its first message.
    held: set it to leave what comes with the kernel, and so, when that is full, with the broker; now and then a little
    is read all the same, by which the end of the line is noticed.
    """

    kind: Kind
    counters: Counters
    held: bool

    @property
    def lost_at(self) -> int: ...

    @property
    def refused_filters(self) -> dict[str, str]:
        """Subscriptions the broker has refused on this connection, and why."""

    @property
    def more(self) -> bool:
        """Whether the last poll left input where the kernel does not show it: poll again before waiting."""

    @property
    def connected(self) -> bool: ...

    @property
    def subscribed(self) -> bool:
        """Connected, and the broker has answered the subscriptions (some of them perhaps with a refusal)."""

    @property
    def reason(self) -> str:
        """Why it is not connected, for the operator; "" while it is."""

    @property
    def problem(self) -> str:
        """What is wrong with connections that can be had, for the operator; "" once one has lasted stable_after_s."""

    def start(self) -> None:
        """Begin to connect; poll sees it through, and tries again."""

    def poll(self, timeout_s: float) -> list[Message]:
        """Do what is due (connect, keep alive, write what was left), and take what came.

        That is what one read held, about MAX_MESSAGES of it; more says that there is more. When the connection has
        ended, it is all that had come before.
        timeout_s: how long to wait when there is nothing to do; 0 never waits.
        """

    def fileno(self) -> int:
        """What to select on for reading, or -1. It may be another number after every poll."""

    def wants_write(self) -> bool:
        """Whether bytes wait to be written: select for writing too, then call poll(0)."""

    def acknowledge(self, epoch: int, mids: Sequence[int]) -> None:
        """Send PUBACKs, in this order. Ignored: packet ids of a past connection, and 0, the id of QoS 0 messages."""

    def publish(self, message: Outgoing) -> int:
        """Hand over one message; its token comes back from confirmed exactly once. Raises ValueError at QoS 2."""

    def publish_all(self, messages: Sequence[Outgoing]) -> int:
        """Hand over messages, at least one, in order; the token of the last one, theirs are consecutive.

        Raises ValueError at the first of QoS 2; those before it are handed over by then.
        """

    def confirmed(self) -> Confirmed:
        """Whose fate became known since the last call; in each list in the order in which it did."""

    @property
    def written(self) -> int:
        """Every message up to this token has left for the socket, or is settled otherwise. Tokens count up from 1."""

    def flush(self) -> None:
        """Write what is buffered: as much as the socket takes at once, or, by callbacks, within flush_timeout_s."""

    def stop(self, timeout_s: float) -> None:
        """Say "stopped", wait for what is in flight (half the time at most), disconnect cleanly.

        Messages that still come in are not acknowledged, so the broker keeps those of QoS 1. What cannot be delivered
        is confirmed as "stopped".
        """


class Waiter:
    """Waits for several clients at once, each in its own state of connecting; keeps what the kernel was told."""

    def __init__(self, clients: Sequence[Client], *, also: int = -1) -> None:
        """also: one more descriptor to wait for, -1 for none."""
        self._clients = clients
        self._poller = select.poll()
        self._told: dict[int, int] = {}
        self._also = {also: select.POLLIN} if also >= 0 else {}

    def __call__(self, timeout_s: float) -> None:
        """Until one of them has something to read, or room for what it has to write, or time is up."""
        wanted = self._also.copy()
        for client in self._clients:
            if client.more and not client.held:
                return
            fileno = client.fileno()
            if fileno >= 0:
                reading = select.POLLIN if not (client.held and client.subscribed) else 0
                wanted[fileno] = reading | select.POLLOUT if client.wants_write() else reading
            if not client.connected:
                timeout_s = min(timeout_s, RECONNECT_POLL_S)
        if wanted != self._told:
            self._tell(wanted)
        self._poller.poll(timeout_s * 1000)

    def _tell(self, wanted: dict[int, int]) -> None:
        for fileno in self._told.keys() - wanted.keys():
            self._poller.unregister(fileno)
        for fileno, events in wanted.items():
            self._poller.register(fileno, events)
        self._told = wanted
