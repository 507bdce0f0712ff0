"""Samples to windows: a linear buffer and views into it, one windower a stream.

Windows depend on the samples alone, never on how the stream was cut into messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
import numpy as np

from edge_runtime.records import Floats, Samples, Window
from edge_runtime.stream.sequence import Sighting

NS = 1_000_000_000
BUFFERED_WINDOWS = 4
RECEIPT_JITTER_S = 0.5
SENSOR_JITTER_S = 0.01


class WindowSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a stream is cut.

    samples, hop: length of a window and samples between window starts; 0 = as the bundle says.
    A gap is seen in the sequence numbers, or, without them, in time: a pause more than jitter_s longer than the
    samples account for (by default 0.01 s by the sensor's clock, 0.5 s by time of receipt). One of at most
    max_gap_samples is bridged by repeating the last row. A longer one follows on_gap: `reset` drops the open
    samples, `hold` bridges it too, `mark` joins what is left and flags the windows across it. A gap as long as a
    window is never bridged. max_windows_per_message bounds what one message may complete.
    """

    samples: Annotated[int, msgspec.Meta(ge=0)] = 0
    hop: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_gap_samples: Annotated[int, msgspec.Meta(ge=0)] = 0
    on_gap: Literal["reset", "hold", "mark"] = "reset"
    jitter_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    max_windows_per_message: Annotated[int, msgspec.Meta(ge=1)] = 1024


class _Origin(msgspec.Struct, frozen=True):
    """Where the samples from position on came from. t_unix_ns: time of the first of them."""

    position: int
    number: int
    t_unix_ns: int
    by_receipt: bool


class Windower:
    """Cuts one stream. `keep` copies a view of (length, channels) to where the window's samples live on."""

    def __init__(self, settings: WindowSettings, *, channels: int, rate_hz: float | None, lead_in: int = 0) -> None:
        """lead_in: zeros before the first sample, less than a window."""
        self._settings, self._lead_in = settings, lead_in
        self._length, self._hop = settings.samples, settings.hop
        self._rate_hz = rate_hz
        self._ns_per_sample = NS / rate_hz if rate_hz else 0.0
        self._buffer: Floats = np.empty((self._length * BUFFERED_WINDOWS + 1024, channels), np.float32)
        self._end_ns: tuple[int, bool] | None = None
        self._usual_n = 0
        self._clear()

    def _clear(self) -> None:
        self._filled = self._lead_in
        self._buffer[: self._lead_in] = 0.0
        self._fresh = True
        self._base = 0
        self._next = 0
        self._origins: deque[_Origin] = deque()
        self._held: deque[tuple[int, int]] = deque()
        self._joints: deque[int] = deque()

    def completes(self, n: int) -> int:
        """How many windows the next n samples complete, if no gap lies before them."""
        return max(0, (self._base + self._filled + n - self._next - self._length) // self._hop + 1)

    def push(
        self, samples: Samples, sighting: Sighting, *, unix_offset_ns: int, keep: Callable[[Floats], Floats] = np.copy
    ) -> list[Window]:
        """Add one message's samples; the windows they complete, oldest first.

        samples.values: (n, channels) float32, n from 1 up. unix_offset_ns: wall clock minus monotonic clock, for
        samples without a sensor time.
        """
        windows: list[Window] = []
        self._close_gap(samples, sighting, windows, keep)
        by_receipt = samples.sensor_unix_ns is None
        n = len(samples.values)
        start_ns = (
            samples.received_ns + unix_offset_ns - int((n - 1) * self._ns_per_sample)
            if samples.sensor_unix_ns is None
            else samples.sensor_unix_ns
        )
        self._origins.append(_Origin(self._base + self._filled, sighting.number, start_ns, by_receipt))
        self._forget_origins(self._next)
        self._append(samples.values, samples, sighting, windows, keep)
        return windows

    def _append(
        self,
        values: Floats,
        samples: Samples,
        sighting: Sighting,
        windows: list[Window],
        keep: Callable[[Floats], Floats],
    ) -> None:
        taken = 0
        while taken < len(values):
            if self._filled == len(self._buffer):
                self._compact()
            part = min(len(values) - taken, len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + part] = values[taken : taken + part]
            self._filled += part
            taken += part
            while self._base + self._filled >= self._next + self._length:
                windows.append(self._window(samples, sighting, len(windows), keep))
                self._next += self._hop

    def _compact(self) -> None:
        """Move the samples that open windows still need to the front."""
        done = min(self._next - self._base, self._filled)
        rest = self._filled - done
        self._buffer[:rest] = self._buffer[done : self._filled]
        self._base += done
        self._filled = rest

    def _window(self, samples: Samples, sighting: Sighting, ordinal: int, keep: Callable[[Floats], Floats]) -> Window:
        start, stop = self._next, self._next + self._length
        self._forget_origins(start)
        first, last = self._origins[0], self._origins[-1]
        fresh, self._fresh = self._fresh, False
        return Window(
            stream=samples.stream,
            values=keep(self._buffer[start - self._base : stop - self._base]),
            first_seq=first.number,
            last_seq=sighting.number,
            t0_unix_ns=first.t_unix_ns + int((start - first.position) * self._ns_per_sample),
            t1_unix_ns=last.t_unix_ns + int((stop - 1 - last.position) * self._ns_per_sample),
            by_receipt=first.by_receipt,
            received_ns=samples.received_ns,
            missing=self._missing(start, stop) if self._held else 0,
            gap=self._joined(start, stop) if self._joints else False,
            key=sighting.key,
            ordinal=ordinal,
            fresh=fresh,
        )

    def _forget_origins(self, start: int) -> None:
        while len(self._origins) > 1 and self._origins[1].position <= start:
            self._origins.popleft()

    def _missing(self, start: int, stop: int) -> int:
        while self._held and sum(self._held[0]) <= start:
            self._held.popleft()
        return sum(max(0, min(stop, at + n) - max(start, at)) for at, n in self._held)

    def _joined(self, start: int, stop: int) -> bool:
        while self._joints and self._joints[0] <= start:
            self._joints.popleft()
        return any(at < stop for at in self._joints)

    def _close_gap(
        self, samples: Samples, sighting: Sighting, windows: list[Window], keep: Callable[[Floats], Floats]
    ) -> None:
        missing = self._missing_before(samples, sighting)
        if not missing or not self._origins:
            return
        bridged = missing <= self._settings.max_gap_samples or self._settings.on_gap == "hold"
        if self._settings.on_gap == "mark" and not (bridged and missing < self._length):
            self._joints.append(self._base + self._filled)
        elif bridged and missing < self._length:
            self._hold(missing, samples, sighting, windows, keep)
        else:
            self._clear()

    def _hold(
        self,
        missing: int,
        samples: Samples,
        sighting: Sighting,
        windows: list[Window],
        keep: Callable[[Floats], Floats],
    ) -> None:
        position = self._base + self._filled
        self._held.append((position, missing))
        last_row = self._buffer[self._filled - 1].copy()
        self._append(np.broadcast_to(last_row, (missing, len(last_row))), samples, sighting, windows, keep)

    def _missing_before(self, samples: Samples, sighting: Sighting) -> int:
        """Samples that never came between the last message and this one."""
        n = len(samples.values)
        end_ns, by_sensor = self._end_of(samples, n)
        previous, self._end_ns = self._end_ns, (end_ns, by_sensor)
        usual_n, self._usual_n = self._usual_n or n, n
        if sighting.restarted:
            return self._length
        if samples.seq is not None or sighting.lost:
            return sighting.lost * usual_n
        if self._rate_hz is None or previous is None or previous[1] != by_sensor:
            return 0
        jitter_s = self._settings.jitter_s
        if jitter_s is None:
            jitter_s = SENSOR_JITTER_S if by_sensor else RECEIPT_JITTER_S
        excess_s = (end_ns - previous[0]) / NS - n / self._rate_hz
        return round(excess_s * self._rate_hz) if excess_s > jitter_s else 0

    def _end_of(self, samples: Samples, n: int) -> tuple[int, bool]:
        if samples.sensor_unix_ns is None:
            return samples.received_ns, False
        return samples.sensor_unix_ns + int(n * self._ns_per_sample), True
