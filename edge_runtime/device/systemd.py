"""What systemd is told: one datagram a word to $NOTIFY_SOCKET.

The protocol is sd_notify(3) with its section "Notes", the watchdog's variables are sd_watchdog_enabled(3).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

FEEDS_PER_INTERVAL = 3
NS_PER_US, NS_PER_S = 1000, 1e9


class Notifier:
    """Tells systemd how the service is doing; without an address, nobody. Never blocks, never raises."""

    def __init__(self, address: str) -> None:
        """address: a path, or @ and the name of an abstract socket; "" when nobody listens."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._told = True
        if address and address[0] not in "/@":
            log.warning("systemd_not_told", extra={"reason": f"{address!r} is neither a path nor an abstract socket"})
            self._address = ""

    def ready(self) -> None:
        self._tell("READY=1")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._tell(f"STATUS={' '.join(text.split())}")

    def alive(self) -> None:
        self._tell("WATCHDOG=1")

    def _tell(self, word: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(word.encode(), self._address)
            self._told = True
        except OSError as error:  # systemd is being replaced, or does not keep up: the next word may reach it
            if self._told:
                log.warning("systemd_not_told", extra={"reason": error.strerror or str(error)})
            self._told = False


class Watchdog:
    """Feeds systemd's watchdog, FEEDS_PER_INTERVAL times an interval, while the work on the worker moves.

    The loop that calls `feed` shows by that very call that it moves.
    """

    def __init__(
        self, notifier: Notifier, interval_ns: int, *, sign: Callable[[], object] = lambda: None, limit_s: float = 0.0
    ) -> None:
        """interval_ns: after which systemd acts, 0 = never.

        sign: another value whenever the work has moved, None while there is none. limit_s: how long it may stay the
        same; at least the interval.
        """
        self._notifier, self.interval_ns, self._sign = notifier, interval_ns, sign
        self._limit_ns = max(interval_ns, int(limit_s * NS_PER_S))
        self._due_ns = self._moved_ns = 0
        self._shown: object = None

    def feed(self, now_ns: int) -> None:
        """To be called often; says something when it is time to."""
        if not self.interval_ns or now_ns < self._due_ns:
            return
        self._due_ns = now_ns + self.interval_ns // FEEDS_PER_INTERVAL
        shown = self._sign()
        if shown is None or shown != self._shown:
            self._shown, self._moved_ns = shown, now_ns
        if now_ns - self._moved_ns <= self._limit_ns:
            self._notifier.alive()


def notifier(environ: Mapping[str, str] = os.environ) -> Notifier:  # noqa: TID251  systemd's own variable
    return Notifier(environ.get("NOTIFY_SOCKET", ""))


def watchdog_interval_ns(environ: Mapping[str, str] = os.environ) -> int:  # noqa: TID251  systemd's own variables
    """After how long without a word systemd acts on this very process; 0: never."""
    interval_us, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not interval_us.isdecimal() or (pid and pid != str(os.getpid())):
        return 0
    return int(interval_us) * NS_PER_US
