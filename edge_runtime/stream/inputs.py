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
        self._channels_first = spec.channels_first
        self._array: Floats = np.empty((FIRST_ROWS, *spec.shape()), np.float32)
        self._used = 0

    def keep(self, values: Floats) -> Floats:
        """Copy one window of (length, channels) into the next row; the row, in the model's layout."""
        if self._used == len(self._array):
            grown = np.empty((2 * self._used, *self._array.shape[1:]), np.float32)
            grown[: self._used] = self._array
            self._array = grown
        row: Floats = self._array[self._used]
        ordered = values.T if self._channels_first else values
        row.reshape(ordered.shape)[...] = ordered
        self._used += 1
        return row

    def batch(self) -> Floats:
        """(windows, ...) contiguous float32."""
        return self._array[: self._used]

    @property
    def rows(self) -> int:
        """Rows it has room for."""
        return len(self._array)

    def clear(self) -> None:
        self._used = 0


class InputPool:
    """Buffers for the turns in flight of one pipeline."""

    def __init__(self, spec: InputSpec) -> None:
        self._spec = spec
        self._free: list[InputBuffer] = []

    def take(self) -> InputBuffer:
        return self._free.pop() if self._free else InputBuffer(self._spec)

    def give(self, buffer: InputBuffer) -> None:
        buffer.clear()
        if len(self._free) < POOLED_BUFFERS and buffer.rows <= POOLED_ROWS:
            self._free.append(buffer)
