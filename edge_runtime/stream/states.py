"""The state that a streaming model carries from window to window: one a stream, touched by predict alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.records import Carried, Floats, State, Window


class StreamingModel(Protocol):
    """Runs one window of each of several streams. inputs: (streams, ...) in the model's layout."""

    def initial(self) -> State: ...

    def step(self, inputs: Floats, states: Sequence[State]) -> tuple[Floats, list[State]]: ...


class StateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a stream's state begins anew, beside at its start.

    on_gap: whether a gap that resets the window resets the state. max_windows: after so many; 0 = never.
    """

    on_gap: Literal["reset", "keep"] = "reset"
    max_windows: Annotated[int, msgspec.Meta(ge=0)] = 0


class StreamStates:
    """The states of one pipeline's streams, as many as the pipeline has streams."""

    def __init__(self, model: StreamingModel, settings: StateSettings) -> None:
        self._model, self._settings = model, settings
        self._initial = Carried(model.initial())
        self._streams: dict[str, Carried] = {}

    def predict(self, windows: Sequence[Window], inputs: Floats) -> tuple[Floats, dict[str, Carried]]:
        """Scores of every window, and what every stream among them now carries.

        A stream's windows run in their order, one a run; those of different streams share a run where the model
        allows it. A window that leaves a state behind which is not finite gets scores that are not, and its stream
        begins anew with the next one. inputs: (windows, ...) in the model's layout.
        """
        order = rounds(windows)
        parts = []
        for indices in order:
            carried = [self._before(windows[i]) for i in indices]
            found, states = self._model.step(inputs[indices], [one.state for one in carried])
            parts.append(found)
            for row, (i, before, state) in enumerate(zip(indices, carried, states, strict=True)):
                if all(map(_is_finite, state)):
                    self._streams[windows[i].stream] = Carried(state, before.windows + 1)
                else:
                    found[row] = np.nan
                    self._streams[windows[i].stream] = self._initial
        joined = np.concatenate(parts)
        scores = np.empty_like(joined)
        scores[[i for indices in order for i in indices]] = joined
        return scores, {window.stream: self._streams[window.stream] for window in windows}

    def restore(self, stream: str, carried: Carried) -> bool:
        """Take up where another run of the process ended; whether the state is one of this model."""
        fits = [(a.shape, a.dtype) for a in carried.state] == [(a.shape, a.dtype) for a in self._initial.state]
        if fits:
            self._streams[stream] = carried
        return fits

    def _before(self, window: Window) -> Carried:
        carried = self._streams.get(window.stream, self._initial)
        over = self._settings.max_windows and carried.windows >= self._settings.max_windows
        fresh = window.fresh and self._settings.on_gap == "reset"
        return self._initial if over or fresh else carried


def _is_finite(array: npt.NDArray[Any]) -> bool:
    return 0 not in np.isfinite(array).tobytes()  # all() of numpy's takes three times as long


def rounds(windows: Sequence[Window]) -> list[list[int]]:
    """Indices of the windows: first those that come first in their stream, then those that come second, ..."""
    seen: dict[str, int] = {}
    found: list[list[int]] = []
    for index, window in enumerate(windows):
        place = seen.get(window.stream, 0)
        seen[window.stream] = place + 1
        if place == len(found):
            found.append([])
        found[place].append(index)
    return found
