"""Samples to windows: a linear buffer and views into it, one windower a stream.

Windows depend on the samples alone, never on how the stream was cut into messages.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from edge_runtime.marks import WindowMark
from edge_runtime.records import Floats, MessageKey, Samples, Window
from edge_runtime.stream.bursts import Burst
from edge_runtime.stream.sequence import NEXT, Sighting

NS = 1_000_000_000
BUFFERED_WINDOWS = 4
MOST_ROWS = 1024
RECEIPT_JITTER_S = 0.5
SENSOR_JITTER_S = 0.01

Keep = Callable[[Floats], Floats]
KeepAll = Callable[[Floats], Sequence[Floats]]
Placed = tuple[int, int, Samples]
"""A message's samples with the position of the first one and its number."""
_Origin = tuple[int, int, int, bool]


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


def most_windows_per_sample(settings: WindowSettings) -> int:
    """How many windows a message of one sample may complete, by itself and by a gap that is bridged before it."""
    most_bridged = settings.samples - 1
    if settings.on_gap != "hold":
        most_bridged = min(most_bridged, settings.max_gap_samples)
    return most_bridged // settings.hop + 1


class Windower:
    """Cuts one stream. `keep` copies a view of (length, channels) to where the window's samples live on.

    Positions count samples since the start or the last gap that reset the stream; `_base` is that of the buffer's
    first row, `_due` the number of rows at which the next window is complete. `_origins` says where the samples from
    a position on came from: the position, the message's number, the time of its first sample, whether by receipt.
    always_fits: so many samples never complete more windows than a message may. resets: how often a gap has reset it.
    """

    def __init__(self, settings: WindowSettings, *, channels: int, rate_hz: float | None, lead_in: int = 0) -> None:
        """lead_in: zeros before the first sample, less than a window."""
        self._settings, self._lead_in = settings, lead_in
        self._length, self._hop = settings.samples, settings.hop
        self._rate_hz = rate_hz
        self._ns_per_sample = NS / rate_hz if rate_hz else 0.0
        self._room = self._length * BUFFERED_WINDOWS + MOST_ROWS
        self._buffer: Floats = np.empty((self._room, channels), np.float32)
        self._bridges = bridges = settings.max_gap_samples > 0 or settings.on_gap == "hold"
        self.always_fits = settings.max_windows_per_message * settings.hop
        self._whole = self._length if self._hop >= self._length and not bridges else 0
        self._views = sliding_window_view(self._buffer, self._length, axis=0).swapaxes(1, 2)
        jitter_s = settings.jitter_s
        self._jitter_s = (RECEIPT_JITTER_S, SENSOR_JITTER_S) if jitter_s is None else (jitter_s, jitter_s)
        self._end_ns: tuple[int, bool] | None = None
        self._usual_n = self.resets = 0
        self._clear()

    def _clear(self) -> None:
        self._filled = self._lead_in
        self._buffer[: self._lead_in] = 0.0
        self._fresh = True
        self._base, self._due = 0, self._length
        self._origins: deque[_Origin] = deque()
        self._held: deque[tuple[int, int]] = deque()
        self._joints: deque[int] = deque()

    @property
    def end(self) -> int:
        """Position after the last sample."""
        return self._base + self._filled

    @property
    def needed(self) -> int:
        """Position of the oldest sample that windows to come may need: their first, or the last, for a bridge."""
        start = self._base + self._due - self._length
        return max(0, min(start, self._base + self._filled - 1)) if self._bridges else start

    @property
    def mark(self) -> WindowMark:
        needed, base, end_ns = self.needed, self._base, self._end_ns
        return WindowMark(
            self.resets, base + self._filled, base + self._due, needed, self._fresh, self._usual_n,
            end_ns[0] if end_ns is not None and end_ns[1] else None,
            tuple([(at, n) for at, n in self._held if at + n > needed]) if self._held else (),
            tuple([at for at in self._joints if at > needed]) if self._joints else (),
        )  # fmt: skip

    def restore(self, mark: WindowMark, inputs: Sequence[Placed], *, unix_offset_ns: int) -> bool:
        """Take up where another run of the process ended; whether the inputs are all that was needed for it.

        If they are not, the stream begins anew. inputs: messages, oldest first. unix_offset_ns: as for `push`.
        """
        base = min(mark.needed, mark.end)
        inputs = inputs[max(0, bisect_right(inputs, base, key=itemgetter(0)) - 1) :]
        rows = self._rows_of(inputs, mark, base)
        if len(rows) != mark.end - base or len(rows) > self._room:
            self.resets = mark.resets + 1
            return False
        self._buffer[: len(rows)] = rows
        self._filled, self._base, self._due = len(rows), base, mark.due - base
        self.resets, self._fresh, self._usual_n = mark.resets, mark.fresh, mark.usual_n
        self._end_ns = None if mark.end_unix_ns is None else (mark.end_unix_ns, True)
        self._held, self._joints = deque(mark.held), deque(mark.joints)
        for begin, number, samples in inputs:
            start_ns, n = samples.sensor_unix_ns, len(samples.values)
            receipt_ns = samples.received_ns + unix_offset_ns - int((n - 1) * self._ns_per_sample)
            self._origins.append((begin, number, receipt_ns if start_ns is None else start_ns, start_ns is None))
        return True

    def _rows_of(self, inputs: Sequence[Placed], mark: WindowMark, base: int) -> Floats:
        """The samples from that position on, as far as the inputs follow each other."""
        channels = self._buffer.shape[1]
        end = max(base, self._lead_in)
        parts: list[Floats] = [np.zeros((end - base, channels), np.float32)]
        for i, (begin, _, samples) in enumerate(inputs):
            values = samples.values
            if begin > end and i and (end, begin - end) in mark.held:
                parts.append(np.broadcast_to(inputs[i - 1][2].values[-1], (begin - max(end, base), channels)))
            elif begin > end or (begin < end and i):
                break
            parts.append(values[max(0, end - begin) :])
            end = begin + len(values)
        return np.concatenate(parts)

    def completes(self, n: int) -> int:
        """How many windows the next n samples complete, if no gap lies before them."""
        return max(0, (self._filled + n - self._due) // self._hop + 1)

    def push(
        self,
        samples: Samples,
        key: MessageKey,
        sighting: Sighting = NEXT,
        *,
        unix_offset_ns: int,
        keep: Keep = np.copy,
    ) -> list[Window]:
        """Add one message's samples; the windows they complete, oldest first.

        samples.values: (n, channels) float32, n from 1 up. unix_offset_ns: wall clock minus monotonic clock, for
        samples without a sensor time.
        """
        windows: list[Window] = []
        values, start_ns = samples.values, samples.sensor_unix_ns
        n = len(values)
        if sighting is not NEXT or (self._rate_hz and samples.seq is None):
            self._close_gap(samples, key, sighting, windows, keep)
        self._usual_n = n
        by_receipt = start_ns is None
        if start_ns is None:
            start_ns = samples.received_ns + unix_offset_ns - int((n - 1) * self._ns_per_sample)
        filled = self._filled
        if n == self._whole and not filled and n == self._due and not self._joints:
            windows.append(self._whole_window(samples, key, start_ns, by_receipt, keep))
            return windows
        self._origins.append((self._base + filled, key[1], start_ns, by_receipt))
        self._append(values, samples, key, windows, keep)
        return windows

    def following(self, burst: Burst) -> int:
        """How many of the first messages of a burst no pause tells of a gap before."""
        if burst.rows.seqs is not None or self._rate_hz is None:
            return len(burst.messages)
        before = self._end_ns
        for i, end in enumerate(self._ends(burst)):
            if self._pause(before, end, 1):
                return i
            before = end
        return len(burst.messages)

    def sees_gaps(self, samples: Samples) -> bool:
        """Whether samples tell by themselves what is missing before them: by a number, or the sensor's clock."""
        return samples.seq is not None or (samples.sensor_unix_ns is not None and self._rate_hz is not None)

    def paused(self, samples: Samples) -> int:
        """Messages that could have come in the pause before samples; 0 where it is none, or not measured."""
        n = len(samples.values)
        pause = self._pause(self._end_ns, self._end_of(samples.received_ns, samples.sensor_unix_ns, n), n)
        return -(-pause // (self._usual_n or n))

    def excuse_pause(self) -> None:
        """However long it takes until the next samples, it is no gap."""
        self._end_ns = None

    def push_burst(
        self, burst: Burst, epoch: str, numbers: range, *, unix_offset_ns: int, keep_all: KeepAll
    ) -> list[Window]:
        """Add messages that follow, at most MOST_ROWS, as `push` does one after the other.

        epoch, numbers: their keys.
        """
        n, length = len(numbers), self._length
        if self._filled + n > self._room:
            self._compact()
        filled, due, end, position = self._filled, self._due, self._filled + n, self._base + self._filled
        received_ns, sensor_ns = burst.received_ns, burst.rows.sensor_unix_ns
        by_receipt = sensor_ns is None
        times_ns = [at_ns + unix_offset_ns for at_ns in received_ns] if sensor_ns is None else sensor_ns
        self._buffer[filled:end] = burst.rows.values
        self._filled, self._usual_n = end, 1
        if self._rate_hz and burst.rows.seqs is None:
            self._end_ns = self._end_of(received_ns[-1], None if sensor_ns is None else sensor_ns[-1], 1)
        if not self._origins:
            self._origins.append((position, numbers[0], times_ns[0], by_receipt))
        windows: list[Window] = []
        stream, key, fresh = burst.stream, f"{burst.stream}|{epoch}|", self._fresh
        for values in keep_all(self._views[due - length : end - length + 1 : self._hop]) if end >= due else ():
            begin, last = due - length - filled, due - filled - 1
            start, number = position + begin, numbers[last]
            if begin >= 0:
                first_seq, t0_ns, first_by_receipt = numbers[begin], times_ns[begin], by_receipt
            else:
                _, first_seq, t0_ns, first_by_receipt = self._origin(start)
            windows.append(
                Window(
                    stream, values, first_seq, number, t0_ns, times_ns[last], first_by_receipt, received_ns[last],
                    self._missing(start, start + length) if self._held else 0,
                    self._joined(start, start + length) if self._joints else False,
                    f"{key}{number}", 0, fresh,
                )
            )  # fmt: skip
            fresh = False
            due += self._hop
        self._due, self._fresh = due, fresh
        self._keep_origins(position, numbers, times_ns, by_receipt=by_receipt)
        return windows

    def _keep_origins(self, position: int, numbers: range, times_ns: list[int], *, by_receipt: bool) -> None:
        """Of consecutive samples: those where windows to come can begin, and the last, which a bridge may repeat."""
        n, begin = len(numbers), self._base + self._due - self._length - position
        if begin > 0:
            self._origins.clear()
        starts = range(begin if begin > 0 else begin % self._hop, n - 1, self._hop)
        self._origins += [(position + i, numbers[i], times_ns[i], by_receipt) for i in (*starts, n - 1)]

    def _append(self, values: Floats, samples: Samples, key: MessageKey, windows: list[Window], keep: Keep) -> None:
        if self._filled + len(values) > self._room:
            values = self._make_room(values, samples, key, windows, keep)
        end = self._filled + len(values)
        self._buffer[self._filled : end] = values
        self._filled = end
        while end >= self._due:
            windows.append(self._window(samples, key, len(windows), keep))
            self._due += self._hop

    def _make_room(
        self, values: Floats, samples: Samples, key: MessageKey, windows: list[Window], keep: Keep
    ) -> Floats:
        """Drop what no open window needs; of values too long even then, take the first ones and return the rest."""
        self._compact()
        while len(values) > (room := self._room - self._filled):
            self._append(values[:room], samples, key, windows, keep)
            values = values[room:]
            self._compact()
        return values

    def _compact(self) -> None:
        done = min(self._due - self._length, self._filled)
        rest = self._filled - done
        self._buffer[:rest] = self._buffer[done : self._filled]
        self._base += done
        self._due -= done
        self._filled = rest
        self._forget_origins(self._base)

    def _whole_window(self, samples: Samples, key: MessageKey, start_ns: int, by_receipt: bool, keep: Keep) -> Window:
        """A message that is exactly a window: it does not go through the buffer, where no gap may need its last row."""
        self._base += self._length
        self._due = self._hop
        fresh, self._fresh = self._fresh, False
        epoch, number = key
        stream = samples.stream
        end_ns = start_ns + int((self._length - 1) * self._ns_per_sample)
        return Window(
            stream, keep(samples.values), number, number, start_ns, end_ns, by_receipt, samples.received_ns, 0, False,
            f"{stream}|{epoch}|{number}", 0, fresh,
        )  # fmt: skip

    def _window(self, samples: Samples, key: MessageKey, ordinal: int, keep: Keep) -> Window:
        stop_row = self._due
        start_row = stop_row - self._length
        start, stop = self._base + start_row, self._base + stop_row
        _, first_seq, t0_ns, by_receipt = self._origin(start)
        position, _, t1_ns, _ = self._origins[-1]
        fresh, self._fresh = self._fresh, False
        epoch, number = key
        stream = samples.stream
        end_ns = t1_ns + int((stop - 1 - position) * self._ns_per_sample)
        return Window(
            stream, keep(self._buffer[start_row:stop_row]), first_seq, number, t0_ns, end_ns, by_receipt,
            samples.received_ns,
            self._missing(start, stop) if self._held else 0,
            self._joined(start, stop) if self._joints else False,
            f"{stream}|{epoch}|{number}", ordinal, fresh,
        )  # fmt: skip

    def _origin(self, start: int) -> _Origin:
        """Where the samples from that position on came from."""
        self._forget_origins(start)
        position, number, t_unix_ns, by_receipt = self._origins[0]
        return start, number, t_unix_ns + int((start - position) * self._ns_per_sample), by_receipt

    def _forget_origins(self, start: int) -> None:
        origins = self._origins
        while len(origins) > 1 and origins[1][0] <= start:
            origins.popleft()

    def _missing(self, start: int, stop: int) -> int:
        while self._held and sum(self._held[0]) <= start:
            self._held.popleft()
        return sum(max(0, min(stop, at + n) - max(start, at)) for at, n in self._held)

    def _joined(self, start: int, stop: int) -> bool:
        while self._joints and self._joints[0] <= start:
            self._joints.popleft()
        return any(at < stop for at in self._joints)

    def _close_gap(
        self, samples: Samples, key: MessageKey, sighting: Sighting, windows: list[Window], keep: Keep
    ) -> None:
        missing = self._missing_before(samples, sighting)
        position = self._base + self._filled
        if not missing or position == self._lead_in:
            return
        bridged = missing <= self._settings.max_gap_samples or self._settings.on_gap == "hold"
        if self._settings.on_gap == "mark" and not (bridged and missing < self._length):
            self._joints.append(position)
        elif bridged and missing < self._length:
            self._held.append((position, missing))
            last_row = self._buffer[self._filled - 1].copy()
            self._append(np.broadcast_to(last_row, (missing, len(last_row))), samples, key, windows, keep)
        else:
            self._clear()
            self.resets += 1

    def _missing_before(self, samples: Samples, sighting: Sighting) -> int:
        """Samples that never came between the last message and this one."""
        n = len(samples.values)
        if sighting.restarted:
            return self._length
        lost = sighting.lost * (self._usual_n or n)
        if samples.seq is not None or self._rate_hz is None:
            return lost
        previous, self._end_ns = self._end_ns, self._end_of(samples.received_ns, samples.sensor_unix_ns, n)
        return lost or self._pause(previous, self._end_ns, n)

    def _pause(self, previous: tuple[int, bool] | None, now: tuple[int, bool], n: int) -> int:
        """Samples that n samples up to now come too late for, by the time of those before them."""
        if self._rate_hz is None or previous is None or previous[1] != now[1]:
            return 0
        excess_s = (now[0] - previous[0]) / NS - n / self._rate_hz
        return round(excess_s * self._rate_hz) if excess_s > self._jitter_s[now[1]] else 0

    def _ends(self, burst: Burst) -> list[tuple[int, bool]]:
        """When each of its samples ended."""
        received_ns = burst.received_ns
        return list(map(self._end_of, received_ns, burst.rows.sensor_unix_ns or repeat(None), repeat(1)))

    def _end_of(self, received_ns: int, sensor_unix_ns: int | None, n: int) -> tuple[int, bool]:
        """When n samples ended, and whether by the sensor's clock."""
        if sensor_unix_ns is None:
            return received_ns, False
        return sensor_unix_ns + int(n * self._ns_per_sample), True
