"""Where a turn's windows live: rows of one contiguous array in the model's layout, taken from a small pool."""

from __future__ import annotations

import numpy as np

from edge_runtime.records import Floats, InputSpec

FIRST_ROWS = 8
POOLED_BUFFERS = 4
POOLED_ROWS = 512


class InputBuffer:
    """Grows by doubling; a row handed out stays as it is until the buffer goes back to its pool."""

    def __init__(self, spec: InputSpec) -> None:
        self._spec = spec
        self._used = 0
        self._hold(np.empty((FIRST_ROWS, *spec.shape()), np.float32))

    def keep(self, values: Floats) -> Floats:
        """Copy one window of (length, channels) into the next row; the row, in the model's layout."""
        used = self._used
        if used == self.rows:
            self._grow(2 * used)
        self._used = used + 1
        self._windows[used] = values
        row: Floats = self._array[used]
        return row

    def keep_all(self, values: Floats) -> list[Floats]:
        """Copy windows (n, length, channels) into the next rows; the rows, in the model's layout."""
        used, end = self._used, self._used + len(values)
        if end > self.rows:
            self._grow(max(end, 2 * self.rows))
        self._used = end
        self._windows[used:end] = values
        return list(self._array[used:end])

    def batch(self) -> Floats:
        """(windows, ...) contiguous float32."""
        return self._array[: self._used]

    def clear(self) -> None:
        self._used = 0

    def _grow(self, rows: int) -> None:
        grown = np.empty((rows, *self._array.shape[1:]), np.float32)
        grown[: self._used] = self._array[: self._used]
        self._hold(grown)

    def _hold(self, array: Floats) -> None:
        """Take that array for the rows; windows: the same memory as (rows, length, channels)."""
        channels, rows = len(self._spec.channels), len(array)
        self._array, self.rows = array, rows
        if self._spec.channels_first:
            self._windows: Floats = array.reshape(rows, channels, -1).swapaxes(1, 2)
        else:
            self._windows = array.reshape(rows, -1, channels)


class InputPool:
    """Buffers for the turns in flight of one pipeline."""

    def __init__(self, spec: InputSpec) -> None:
        self._spec = spec
        self._free: list[InputBuffer] = []

    def take(self) -> InputBuffer:
        return self._free.pop() if self._free else InputBuffer(self._spec)

    def give(self, buffer: InputBuffer) -> None:
        if buffer.rows <= POOLED_ROWS and len(self._free) < POOLED_BUFFERS:
            buffer.clear()
            self._free.append(buffer)
