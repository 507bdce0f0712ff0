"""THE HOT PATH: messages in, windows through the model, results out. Ingest, predict, emit."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, TypeVar

import msgspec

from edge_runtime.errors import DecodeError
from edge_runtime.records import (
    DeadLetter,
    Floats,
    InputSpec,
    Message,
    Prediction,
    Queued,
    Result,
    Samples,
    Stage,
    StateChange,
    Turn,
    Window,
)
from edge_runtime.stream.decide import Decider, Decision
from edge_runtime.stream.decode import Decoder
from edge_runtime.stream.inputs import InputBuffer, InputPool
from edge_runtime.stream.segments import Segments
from edge_runtime.stream.sequence import SequenceTracker, Sighting
from edge_runtime.stream.states import StreamStates
from edge_runtime.stream.window import Windower, WindowSettings

RESULT_SCHEMA = 1
RESULT_STAGES: tuple[Stage, ...] = ("receive", "queue", "decode", "window", "infer", "decide")
Key = TypeVar("Key")
NS_PER_MS, NS_PER_S = 1e6, 1e9


class Predictor(Protocol):
    """Runs a batch. inputs: (batch, ...) in the model's layout; returns (batch, labels)."""

    model_id: str

    def predict(self, inputs: Floats) -> Floats: ...


class Recorder(Protocol):
    """Takes stage durations in ns."""

    def record(self, stage: Stage, duration_ns: int) -> None: ...


class Ledger(Protocol):
    """Takes what only ingest sees; the rest is settled with the turn."""

    def windows_completed(self, pipeline: str, stream: str, n: int = 1) -> None: ...

    def lost_before_us(self, pipeline: str, stream: str, n: int = 1) -> None: ...

    def producer_restarted(self, pipeline: str, stream: str) -> None: ...


class Clock(NamedTuple):
    """Both clocks, in ns; tests pass their own."""

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    unix_ns: Callable[[], int] = time.time_ns


class _Stream:
    def __init__(self, name: str, run_id: str, memory: int, settings: WindowSettings, spec: InputSpec) -> None:
        self.sequence = SequenceTracker(name, run_id, memory=memory)
        self.windower = Windower(settings, channels=len(spec.channels), rate_hz=spec.rate_hz, lead_in=spec.lead_in)
        self.published: tuple[str, bool | None] | None = None
        self.given_up = 0
        self.dropped_at_gap = False


class Pipeline:
    """One pipeline: its streams, decoder, model and decision.

    The caller bounds the number of streams. max_age_ns: older messages are dropped undecoded, 0 = none are.
    states: of a streaming model, which then predicts in the predictor's stead.
    publish: a result per window, or only when label or alarm change. run_id: of this run of the process. memory:
    messages of a stream remembered against redelivery. max_windows: a turn that holds so many takes no more messages.
    """

    def __init__(
        self,
        name: str,
        *,
        spec: InputSpec,
        window: WindowSettings,
        decode: Decoder,
        predictor: Predictor,
        decider: Decider,
        recorder: Recorder,
        ledger: Ledger,
        run_id: str,
        memory: int = 1024,
        max_windows: int = 256,
        max_age_ns: int = 0,
        states: StreamStates | None = None,
        publish: Literal["window", "change"] = "window",
        clock: Clock = Clock(),  # noqa: B008  immutable
    ) -> None:
        self.name = name
        self._spec, self._window, self._run_id = spec, window, run_id
        self._decode, self._predictor, self._decider = decode, predictor, decider
        self._states = states
        self._record, self._ledger, self._clock = recorder.record, ledger, clock
        self._max_age_ns, self._on_change = max_age_ns, publish == "change"
        self._memory, self._max_windows = memory, max_windows
        self._streams: dict[str, _Stream] = {}
        self._segments = Segments()
        self._pool = InputPool(spec)
        self._buffers: dict[int, InputBuffer] = {}

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
        turn = Turn(self.name, [], self._clock.monotonic_ns())
        offset_ns = self._clock.unix_ns() - turn.taken_ns
        buffer = self._buffers[id(turn)] = self._pool.take()
        for queued in messages:
            if len(turn.windows) >= self._max_windows:
                break
            turn.messages.append(queued)
            self._take_in(turn, queued, offset_ns, buffer)
        turn.inputs = buffer.batch()
        return turn

    def predict(self, turn: Turn) -> None:
        """Run the turn's windows through the model; may be called from the worker thread."""
        if turn.windows and turn.inputs is not None:
            start_ns = self._clock.monotonic_ns()
            if self._states is None:
                scores = self._predictor.predict(turn.inputs)
            else:
                scores, turn.model_states = self._states.predict(turn.windows, turn.inputs)
            turn.prediction = Prediction(scores, self._predictor.model_id, self._clock.monotonic_ns() - start_ns)

    def emit(self, turn: Turn) -> None:
        """Decide every window of the turn and build its results; the turn's input buffer is free afterwards."""
        if turn.prediction is not None:
            for i, row in enumerate(turn.prediction.scores.tolist()):
                self._emit_one(turn, turn.prediction, i, row)
        turn.inputs = None
        self._pool.give(self._buffers.pop(id(turn)))

    def _take_in(self, turn: Turn, queued: Queued, offset_ns: int, buffer: InputBuffer) -> None:
        stream, message, now_ns = queued.stream, queued.message, self._clock.monotonic_ns
        start_ns = now_ns()
        receive_ns, queue_ns = queued.queued_ns - message.received_ns, start_ns - queued.queued_ns
        self._record("receive", receive_ns)
        self._record("queue", queue_ns)
        if message.retain:
            _add(turn.dropped, (stream, "stale_retained"))
            return
        state = self._streams.get(stream) or self._open(stream)
        state.given_up += queued.given_up
        samples = self._decode_one(turn, queued, state, start_ns)
        if samples is None:
            state.given_up += 1
            return
        decoded_ns = now_ns()
        sighting = self._see(turn, samples, message, state)
        if sighting is None:
            return
        windows = state.windower.push(samples, sighting, unix_offset_ns=offset_ns, keep=buffer.keep)
        turn.accepted.append((stream, sighting.key, message))
        turn.marks[stream] = sighting.mark
        cut_ns = now_ns()
        self._record("decode", decoded_ns - start_ns)
        self._record("window", cut_ns - decoded_ns)
        if windows:
            turn.windows += windows
            self._ledger.windows_completed(self.name, stream, len(windows))
            turn.times_ns += [(receive_ns, queue_ns, decoded_ns - start_ns, cut_ns - decoded_ns)] * len(windows)

    def _decode_one(self, turn: Turn, queued: Queued, state: _Stream, now_ns: int) -> Samples | None:
        """The message's samples, or None when it is expired or was dead-lettered."""
        message = queued.message
        if self._max_age_ns and now_ns - message.received_ns > self._max_age_ns:
            _add(turn.dropped, (queued.stream, "expired"))
            return None
        try:
            samples = self._decode(message, queued.stream)
            self._check_size(state.windower.completes(len(samples.values)), message.topic)
        except DecodeError as error:
            turn.dead_letters.append(DeadLetter(queued.stream, error.reason, error.detail, message))
            return None
        return samples

    def _see(self, turn: Turn, samples: Samples, message: Message, state: _Stream) -> Sighting | None:
        """Place a message in its stream; None when it is a duplicate or late.

        Messages given up here leave a hole like lost ones, but are not counted as lost before us.
        """
        stream = samples.stream
        sighting = state.sequence.see(message, samples.seq)
        if sighting.verdict == "duplicate":
            _add(turn.duplicates, stream)
            return None
        if sighting.verdict == "late":
            _add(turn.dropped, (stream, "late"))
            self._ledger.lost_before_us(self.name, stream, -1)
            return None
        given_up, state.given_up = state.given_up, 0
        if sighting.restarted:
            self._ledger.producer_restarted(self.name, stream)
        elif samples.seq is None:
            return msgspec.structs.replace(sighting, lost=given_up) if given_up else sighting
        elif sighting.lost > given_up:
            self._ledger.lost_before_us(self.name, stream, sighting.lost - given_up)
        return sighting

    def _open(self, stream: str) -> _Stream:
        state = self._streams[stream] = _Stream(stream, self._run_id, self._memory, self._window, self._spec)
        return state

    def _check_size(self, windows: int, topic: str) -> None:
        most = self._window.max_windows_per_message
        if windows > most:
            raise DecodeError(topic, "too_large", f"completes {windows} windows, max_windows_per_message is {most}")

    def _emit_one(self, turn: Turn, prediction: Prediction, index: int, row: list[float]) -> None:
        window = turn.windows[index]
        stream = window.stream
        start_ns = self._clock.monotonic_ns()
        self._record("infer", prediction.infer_ns)
        state = self._streams[stream]
        if not math.isfinite(sum(row)):
            _add(turn.window_drops, (stream, "not_finite"))
            state.dropped_at_gap |= window.fresh or window.gap
            return
        decision = self._decider.decide(stream, row, window.t1_unix_ns)
        result = self._result(window, decision, prediction.model)
        decide_ns = self._clock.monotonic_ns() - start_ns
        self._record("decide", decide_ns)
        alarm = decision.alarm
        if alarm is not None:
            turn.alarms[stream] = alarm
            if decision.changed:
                since = alarm.since_unix_ns / NS_PER_S
                change = StateChange(alarm.on, decision.label, decision.score, since, result.id, stream)
                turn.state_changes.append(change)
            self._follow_segment(turn, result, decision.evidence, fresh=window.fresh or state.dropped_at_gap)
            state.dropped_at_gap = False
        published = (decision.label, alarm.on if alarm else None)
        if self._on_change and published == state.published:
            _add(turn.unchanged, stream)
            return
        state.published = published
        costs_ns = (*turn.times_ns[index], prediction.infer_ns, decide_ns)
        result.lat_ms.update(zip(RESULT_STAGES, [round(ns / NS_PER_MS, 4) for ns in costs_ns], strict=True))
        turn.emitted_ns.append((window.received_ns, start_ns + decide_ns))
        turn.results.append(result)

    def _follow_segment(self, turn: Turn, result: Result, evidence: float, *, fresh: bool) -> None:
        ended = self._segments.see(result, evidence, fresh=fresh)
        if ended is not None:
            turn.events.append(ended)
        if ended is not None or result.alarm:
            turn.segments[result.stream] = self._segments.open.get(result.stream)

    def _result(self, window: Window, decision: Decision, model: str) -> Result:
        identity = f"{self.name}|{window.key}|{window.ordinal}".encode()
        flags = (("receipt_time",) if window.by_receipt else ()) + (("gap",) if window.gap else ())
        return Result(
            v=RESULT_SCHEMA,
            id=hashlib.blake2b(identity, digest_size=16).hexdigest(),
            pipeline=self.name,
            stream=window.stream,
            model=model,
            label=decision.label,
            score=decision.score,
            scores=decision.scores,
            alarm=decision.alarm.on if decision.alarm else None,
            t0=window.t0_unix_ns / NS_PER_S,
            t1=window.t1_unix_ns / NS_PER_S,
            n=self._window.samples,
            seq=(window.first_seq, window.last_seq),
            missing=window.missing,
            flags=flags,
            lat_ms={},
        )


def _add(counts: dict[Key, int], key: Key) -> None:
    counts[key] = counts.get(key, 0) + 1
