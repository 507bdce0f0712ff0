"""How long to wait before the next attempt to connect."""

from __future__ import annotations

from collections.abc import Callable

MAX_DOUBLINGS = 32


def delay_s(attempt: int, *, minimum_s: float, maximum_s: float, random: float) -> float:
    """Exponential back-off with full jitter: uniform between the minimum and minimum * 2 ** attempt, capped.

    attempt: 1 for the first failure. random: uniform in [0, 1).
    """
    cap_s = min(maximum_s, minimum_s * 2.0 ** min(attempt, MAX_DOUBLINGS))
    return minimum_s + random * (cap_s - minimum_s)


class Backoff:
    """Counts failures in a row; only a connection that lasted ends the row, so accept-then-kick slows down too."""

    def __init__(
        self, *, minimum_s: float, maximum_s: float, stable_after_s: float, random: Callable[[], float]
    ) -> None:
        self.attempts = 0
        self._minimum_s = minimum_s
        self._maximum_s = maximum_s
        self._stable_after_ns = round(stable_after_s * 1e9)
        self._random = random
        self._connected_ns: int | None = None

    def connected(self, now_ns: int) -> None:
        self._connected_ns = now_ns

    def lasted(self, now_ns: int) -> bool:
        """Whether there is a connection, or was until now, that has lasted."""
        return self._connected_ns is not None and now_ns - self._connected_ns >= self._stable_after_ns

    def failed(self, now_ns: int, *, longest: bool = False) -> float:
        """A connection was lost, or could not be had: seconds to wait.

        longest: trying soon is pointless (the broker refused us); wait half the maximum or more.
        """
        if self.lasted(now_ns):
            self.attempts = 0
        self._connected_ns = None
        self.attempts += 1
        if longest:
            return self._maximum_s * (0.5 + 0.5 * self._random())
        return delay_s(self.attempts, minimum_s=self._minimum_s, maximum_s=self._maximum_s, random=self._random())
