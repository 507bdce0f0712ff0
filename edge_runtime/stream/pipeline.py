"""THE HOT PATH: messages in, windows through the model, results out. Ingest, predict, emit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from edge_runtime.marks import Seen
from edge_runtime.records import DeadLetter, Floats, InputSpec, Message, Prediction, Queued, Remembered, Turn
from edge_runtime.stream.decide import Decider
from edge_runtime.stream.decode import Decoder
from edge_runtime.stream.inputs import InputBuffer, InputPool
from edge_runtime.stream.intake import Intake, Ledger
from edge_runtime.stream.results import Results
from edge_runtime.stream.rows import RowsDecoder
from edge_runtime.stream.states import StreamStates
from edge_runtime.stream.window import WindowSettings

log = logging.getLogger(__name__)


class Predictor(Protocol):
    """Runs a batch. inputs: (batch, ...) in the model's layout; returns (batch, labels)."""

    model_id: str

    def predict(self, inputs: Floats) -> Floats: ...


class Clock(NamedTuple):
    """Both clocks, in ns; tests pass their own."""

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    unix_ns: Callable[[], int] = time.time_ns


class Pipeline:
    """One pipeline: messages to windows (Intake), through the model, to results (Results)."""

    def __init__(
        self,
        name: str,
        *,
        spec: InputSpec,
        window: WindowSettings,
        decode: Decoder,
        decode_rows: RowsDecoder | None = None,
        predictor: Predictor,
        decider: Decider,
        ledger: Ledger,
        run_id: str,
        memory: int = 1024,
        max_windows: int = 256,
        max_age_ns: int = 0,
        keep: bool = False,
        states: StreamStates | None = None,
        publish: Literal["window", "change"] = "window",
        clock: Clock = Clock(),  # noqa: B008  immutable
    ) -> None:
        """The caller bounds the number of streams.

        decode_rows: for messages of one sample each, many at a time. max_age_ns: older messages are dropped undecoded,
        0 = none are. states: of a streaming model, which then predicts in the predictor's stead. publish: a result per
        window, or only when label or alarm change. run_id: of this run of the process. memory: messages of a stream
        remembered against redelivery. max_windows: a turn that holds so many takes no more messages. keep: turns tell
        what it takes to go on in another run of the process.
        """
        self.name = name
        self._now_ns, self._unix_ns = clock
        self._predictor, self._states = predictor, states
        self._intake = Intake(
            name,
            spec=spec,
            window=window,
            decode=decode,
            decode_rows=decode_rows,
            ledger=ledger,
            run_id=run_id,
            memory=memory,
            max_windows=max_windows,
            max_age_ns=max_age_ns,
            keep=keep,
            now_ns=clock.monotonic_ns,
        )
        self._results = Results(
            name,
            samples=window.samples,
            decider=decider,
            on_change=publish == "change",
            now_ns=clock.monotonic_ns,
        )
        self._pool = InputPool(spec)
        self._buffers: dict[int, InputBuffer] = {}

    @property
    def transit(self) -> bool:
        """Whether the sensors' clocks can be trusted, so that the way from there to here is timed too."""
        return self._intake.transit

    @transit.setter
    def transit(self, trusted: bool) -> None:
        self._intake.transit = trusted

    def restore(self, streams: Mapping[str, Remembered], *, same_windows: bool, same_model: bool) -> int:
        """Take up where another run of the process ended, before any message comes; how many streams begin anew.

        same_windows, same_model: whether what is kept was cut, and carried, by the settings and the model of now. A
        stream whose kept inputs are not all that its windows need begins anew, as after a gap, and is logged.
        """
        offset_ns, begun_anew = self._unix_ns() - self._now_ns(), 0
        for stream, remembered in streams.items():
            reason = self._intake.restore(stream, remembered, same_windows=same_windows, offset_ns=offset_ns)
            self._results.restore(stream, remembered)
            states, carried = self._states, remembered.carried if same_model else None
            if states is not None and carried is not None and not states.restore(stream, carried):
                reason = reason or "the model's state is of another shape"
            if reason:
                begun_anew += 1
                log.warning("stream_begins_anew", extra={"pipeline": self.name, "stream": stream, "reason": reason})
        return begun_anew

    def session_lost(self, epoch: int) -> None:
        """The broker had forgotten us when a connection began; to be told before its first message comes."""
        self._intake.session_lost(epoch)

    def gave_way(self, stream: str, message: Message) -> Seen:
        """A message gave way before its turn; what it is known by when it comes again."""
        return self._intake.gave_way(stream, message)

    def process(self, messages: Sequence[Queued]) -> Turn:
        """One turn from start to end in the calling thread."""
        turn = self.ingest(messages)
        self.predict(turn)
        self.emit(turn)
        return turn

    def ingest(self, messages: Sequence[Queued]) -> Turn:
        """Decode messages and cut windows; what cannot be used is counted or dead-lettered, never raised.

        turn.messages are those it took: all of them, unless the turn was full before.
        """
        buffer = self._pool.take()
        turn = Turn(self.name, [], self._now_ns())
        self._buffers[id(turn)] = buffer
        self._intake.take(turn, messages, buffer, offset_ns=self._unix_ns() - turn.taken_ns)
        turn.inputs = buffer.batch()
        return turn

    def reject(self, run: Queued, letter: DeadLetter) -> Turn:
        """A turn of a message that must not be looked at."""
        turn = Turn(self.name, [], self._now_ns(), dead_letters=[letter])
        self._intake.give_up(turn, run)
        return turn

    def predict(self, turn: Turn) -> None:
        """Run the turn's windows through the model; may be called from the worker thread."""
        if turn.windows and turn.inputs is not None:
            started_ns = self._now_ns()
            if self._states is None:
                scores = self._predictor.predict(turn.inputs)
            else:
                scores, turn.model_states = self._states.predict(turn.windows, turn.inputs)
            infer_ns = self._now_ns() - started_ns
            turn.prediction = Prediction(scores, self._predictor.model_id, infer_ns, started_ns)

    def emit(self, turn: Turn) -> None:
        """Decide every window of the turn and build its results; the turn's input buffer is free afterwards."""
        if turn.prediction is not None:
            self._results.tell(turn, turn.prediction)
        turn.inputs = None
        self._pool.give(self._buffers.pop(id(turn)))
