"""Messages to windows, and what is done with those that cannot be used.

There are two ways: messages of one sample each, where a turn has several, are decoded and cut together, by columns;
all others go one after the other. Both give each stream the same windows.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from edge_runtime.errors import DecodeError
from edge_runtime.marks import GIVEN_UP, Seen
from edge_runtime.records import (
    Accepted,
    DeadLetter,
    InputSpec,
    Message,
    Queued,
    Remembered,
    Rows,
    Samples,
    Turn,
    Window,
)
from edge_runtime.stream.bursts import Burst
from edge_runtime.stream.decode import Decoder
from edge_runtime.stream.inputs import InputBuffer
from edge_runtime.stream.kept import Run, decoded, needed_inputs
from edge_runtime.stream.rows import RowsDecoder
from edge_runtime.stream.sequence import NEXT, Sighting
from edge_runtime.stream.stale import joined, sorted_out
from edge_runtime.stream.streams import Stream
from edge_runtime.stream.window import MOST_ROWS, Placed, WindowSettings, most_windows_per_sample

Key = TypeVar("Key")
NS = 1_000_000_000
TOGETHER_FROM = 4
"""Messages of a turn from which it pays to take them in together."""
MOST_APART = 16
"""Turns, at most, that are not even tried together after one that could not be."""
MOST_LOST = 16
"""Lost sessions that are remembered: as many as may lie before the messages that wait."""


class Ledger(Protocol):
    """Takes what only ingest sees; the rest is settled with the turn."""

    def windows_completed(self, pipeline: str, stream: str, n: int = 1) -> None: ...


class Intake:
    """The streams of one pipeline, and the way of their messages. The caller bounds the number of streams.

    transit: the sensors' clocks can be trusted, so that the way from there to here is timed too.
    """

    def __init__(
        self,
        pipeline: str,
        *,
        spec: InputSpec,
        window: WindowSettings,
        decode: Decoder,
        decode_rows: RowsDecoder | None,
        ledger: Ledger,
        run_id: str,
        memory: int,
        max_windows: int,
        max_age_ns: int,
        keep: bool,
        now_ns: Callable[[], int],
    ) -> None:
        """max_age_ns: older messages are dropped undecoded, 0 = none are. The others are as Pipeline says."""
        self.streams: dict[str, Stream] = {}
        self.transit = False
        self._pipeline, self._spec, self._window = pipeline, spec, window
        self._decode, self._decode_rows = decode, decode_rows or _no_rows
        self._ledger, self._now_ns = ledger, now_ns
        self._run_id, self._memory = run_id, memory
        self._max_windows, self._max_age_ns = max_windows, max_age_ns or sys.maxsize
        self._most_together = min(max_windows // most_windows_per_sample(window), MOST_ROWS) if decode_rows else 0
        self._apart = self._apart_next = 0
        self._keep = keep
        self._runs: dict[str, list[Run]] = {}
        self._transit_ns: list[int] = []
        self._lost: deque[int] = deque(maxlen=MOST_LOST)
        self._gave_up: set[str] = set()

    def take(self, turn: Turn, runs: Sequence[Queued], buffer: InputBuffer, *, offset_ns: int) -> None:
        """Take in messages until the turn is full. runs: one a stream. offset_ns: wall clock minus monotonic clock."""
        runs, later = self._without_stale(turn, runs)
        n = len(runs[0].messages) if len(runs) == 1 else sum([len(run.messages) for run in runs])
        several = TOGETHER_FROM <= n <= self._most_together and not (self._gave_up and self._come_again(runs))
        if not (several and self._take_together(turn, runs, buffer, offset_ns)):
            self._take_each(turn, runs, buffer, offset_ns)
        if later:
            turn.left_over = joined(turn.left_over, later)
        if self._keep:
            self._mark(turn, offset_ns)
        if self._transit_ns:
            turn.spent.append(("transit", self._transit_ns, 1))
            self._transit_ns = []

    def session_lost(self, epoch: int) -> None:
        """Pipeline.session_lost."""
        self._lost.append(epoch)

    def give_up(self, turn: Turn, run: Queued) -> None:
        """Messages that are not even to be decoded: they leave a hole."""
        turn.messages.append(run)
        turn.given_up += [self.gave_way(run.stream, message) for message in run.messages]
        self._stream(run.stream).given_up += run.given_up + len(run.messages)
        if self._keep:
            self._mark(turn, 0)

    def gave_way(self, stream: str, message: Message) -> Seen:
        """Remember a message that is not taken in, for it may come again; what it is known by then."""
        self._gave_up.add(stream)
        return Seen(stream, GIVEN_UP, 0, self._stream(stream).sequence.give_up(message))

    def _come_again(self, runs: Sequence[Queued]) -> bool:
        """Whether any of these was given up before."""
        found = [(self.streams[run.stream].sequence, run.messages) for run in runs if run.stream in self._gave_up]
        return any(sequence.gave_up(message) for sequence, messages in found for message in messages)

    def restore(self, stream: str, remembered: Remembered, *, same_windows: bool, offset_ns: int) -> str:
        """Take up where another run of the process ended; "" or why the stream's windows begin anew after all."""
        state, mark, reason = self._stream(stream), remembered.mark, "what its open windows need is not all there"
        state.given_up = mark.given_up
        state.sequence.restore(mark, remembered.seen)
        self._gave_up |= {stream for seen in remembered.seen if seen.epoch == GIVEN_UP}
        inputs: list[Placed] = []
        try:
            for kept in remembered.kept if same_windows else ():
                if kept.resets == mark.window.resets:
                    inputs += decoded(kept, self._decode, offset_ns)
        except DecodeError as error:
            reason = str(error)
        if not same_windows:
            state.windower.resets = mark.window.resets + 1
            return ""
        return "" if state.windower.restore(mark.window, inputs, unix_offset_ns=offset_ns) else reason

    def _mark(self, turn: Turn, offset_ns: int) -> None:
        """What to remember of the streams that the turn touched."""
        for run in turn.messages:
            stream = run.stream
            if stream not in turn.marks:
                turn.marks[stream] = mark = self.streams[stream].mark
                if (runs := self._runs.pop(stream, None)) is not None:
                    turn.kept += needed_inputs(runs, mark.window, offset_ns)

    def _without_stale(self, turn: Turn, runs: Sequence[Queued]) -> tuple[Sequence[Queued], list[Queued]]:
        """Give up what is too old to be worth decoding; what is left, and what is left for a later turn.

        Of a run only the first messages are given up: their hole lies before the others. Messages may expire in
        another order than they came in; then those from the next expired one on are for another turn.
        """
        oldest_ns = turn.taken_ns - self._max_age_ns
        found: list[Queued] = []
        later: list[Queued] = []
        for run in runs:
            messages = run.messages
            is_odd = [one for one in messages if one.retain or one.properties.message_expiry_s is not None]
            if not is_odd and messages[0].received_ns >= oldest_ns:
                found.append(run)
                continue
            usable, stale, rest = sorted_out(messages, turn.taken_ns, oldest_ns)
            if stale:
                dropped = Queued(run.stream, stale, 0 if usable else run.given_up)
                self._drop_stale(turn, self._stream(run.stream), dropped)
            if usable:
                found.append(Queued(run.stream, usable, run.given_up))
            if rest:
                later.append(Queued(run.stream, rest))
        return found, later

    def _drop_stale(self, turn: Turn, state: Stream, run: Queued) -> None:
        """They leave a hole, with those before them; but a retained one is not part of the stream."""
        turn.messages.append(run)
        state.given_up += run.given_up
        for message in run.messages:
            if state.sequence.gave_up(message):
                _add(turn.duplicates, run.stream)
                continue
            _add(turn.dropped, (run.stream, "stale_retained" if message.retain else "expired"))
            turn.given_up.append(self.gave_way(run.stream, message))
            state.given_up += not message.retain
        turn.spent.append(("queue", [turn.taken_ns - message.received_ns for message in run.messages], 1))

    def _take_each(self, turn: Turn, runs: Sequence[Queued], buffer: InputBuffer, offset_ns: int) -> None:
        """One after the other. What begins begins when the one before it ended: one reading of the clock for both."""
        now_ns = self._now_ns
        queue_ns: list[int] = []
        decode_ns: list[int] = []
        window_ns: list[int] = []
        end_ns = turn.taken_ns
        for state, run, message in self._until_full(turn, runs):
            start_ns = end_ns
            waited_ns = start_ns - message.received_ns
            queue_ns.append(waited_ns)
            samples = self._decode_one(turn, state, run.stream, message)
            decoded_ns = now_ns()
            windows = None if samples is None else self._place(turn, message, samples, buffer, offset_ns)
            end_ns = now_ns()
            if windows is None:
                continue
            decode_ns.append(decoded_ns - start_ns)
            window_ns.append(end_ns - decoded_ns)
            if windows:
                turn.times_ns += [(waited_ns, decoded_ns - start_ns, end_ns - decoded_ns, end_ns)] * len(windows)
        turn.spent += ("queue", queue_ns, 1), ("decode", decode_ns, 1), ("window", window_ns, 1)

    def _until_full(self, turn: Turn, runs: Sequence[Queued]) -> Iterator[tuple[Stream, Queued, Message]]:
        """One message after the other until the turn holds all the windows it may; the rest is left over.

        The stream whose run was begun is the last of that, for the others to have their turn.
        """
        for place, run in enumerate(runs):
            state = self._stream(run.stream)
            for i, message in enumerate(run.messages):
                if len(turn.windows) >= self._max_windows:
                    taken, rest, others = run.messages[:i], run.messages[i:], runs[place + 1 :]
                    turn.messages += [Queued(run.stream, taken, run.given_up)] if taken else []
                    turn.left_over = [*others, Queued(run.stream, rest)] if taken else [*runs[place:]]
                    return
                if not i:
                    state.given_up += run.given_up
                yield state, run, message
            turn.messages.append(run)

    def _take_together(self, turn: Turn, runs: Sequence[Queued], buffer: InputBuffer, offset_ns: int) -> bool:
        """By columns, if each is one good sample; whether they are: if not, nothing was done.

        Each is said to have taken its share of the time, and to have waited for the rest.
        """
        now_ns, taken_ns = self._now_ns, turn.taken_ns
        messages = runs[0].messages if len(runs) == 1 else [message for run in runs for message in run.messages]
        rows = self._decode_together(messages)
        if rows is None:
            return False
        decoded_ns = now_ns()
        turn.messages += runs
        end = 0
        for run in runs:
            begin, end = end, end + len(run.messages)
            state = self._stream(run.stream)
            state.given_up += run.given_up
            self._place_burst(turn, state, Burst(run.stream, run.messages, rows.part(begin, end)), buffer, offset_ns)
        end_ns = now_ns()
        decode_ns, window_ns = (decoded_ns - taken_ns) // len(messages), (end_ns - decoded_ns) // len(messages)
        cut_ns, n = taken_ns + decode_ns + window_ns, sum([len(accepted.messages) for accepted in turn.accepted])
        turn.times_ns += [(taken_ns - window.received_ns, decode_ns, window_ns, cut_ns) for window in turn.windows]
        waited_ns = [taken_ns - message.received_ns for message in messages]
        turn.spent += ("queue", waited_ns, 1), ("decode", [decode_ns], n), ("window", [window_ns], n)
        return True

    def _decode_together(self, messages: Sequence[Message]) -> Rows | None:
        """One row a message; None where that is not to be had, or not worth a try."""
        if self._apart:
            self._apart -= 1
            return None
        rows = self._decode_rows(messages)
        self._apart_next = min(2 * self._apart_next + 1, MOST_APART) if rows is None else 0
        self._apart = self._apart_next
        return rows

    def _stream(self, stream: str) -> Stream:
        state = self.streams.get(stream)
        if state is None:
            state = Stream(self._spec, self._window, run_id=self._run_id, memory=self._memory)
            self.streams[stream] = state
        return state

    def _decode_one(self, turn: Turn, state: Stream, stream: str, message: Message) -> Samples | None:
        """The message's samples, or None when it was dead-lettered, or had been given up before."""
        if message.dup and state.sequence.gave_up(message):
            _add(turn.duplicates, stream)
            return None
        try:
            samples = self._decode(message, stream)
            if len(samples.values) > state.windower.always_fits:
                self._check_size(state.windower.completes(len(samples.values)), message.topic)
        except DecodeError as error:
            turn.dead_letters.append(DeadLetter(stream, error.reason, error.detail, message))
            turn.given_up.append(self.gave_way(stream, message))
            state.given_up += 1
            return None
        return samples

    def _check_size(self, windows: int, topic: str) -> None:
        most = self._window.max_windows_per_message
        if windows > most:
            raise DecodeError(topic, "too_large", f"completes {windows} windows, max_windows_per_message is {most}")

    def _place(
        self, turn: Turn, message: Message, samples: Samples, buffer: InputBuffer, offset_ns: int
    ) -> list[Window] | None:
        """Put a message into its stream; the windows it completes, None when it is a duplicate or late."""
        stream = samples.stream
        state = self.streams[stream]
        sequence = state.sequence
        sighting = sequence.see(message, samples.seq)
        if sighting is not NEXT or state.given_up or message.epoch != state.epoch:
            weighed = self._weigh(turn, message, samples, state, sighting)
            if weighed is None:
                return None
            sighting = weighed
        key = sequence.epoch, sequence.number
        accepted = Accepted(stream, *key, [message], sequence.contents(message) if self._keep else ())
        turn.accepted.append(accepted)
        windows = state.windower.push(samples, key, sighting, unix_offset_ns=offset_ns, keep=buffer.keep)
        if self._keep:
            self._note(accepted, state, len(samples.values))
        if windows:
            turn.windows += windows
            self._ledger.windows_completed(self._pipeline, stream, len(windows))
        if self.transit and samples.sensor_unix_ns is not None:
            self._transit_ns.append(samples.received_ns + offset_ns - self._end_unix_ns(samples))
        return windows

    def _weigh(
        self, turn: Turn, message: Message, samples: Samples, state: Stream, sighting: Sighting
    ) -> Sighting | None:
        """What a message means for its stream when it is not simply the next one; None when it is not to be used.

        Messages given up here leave a hole like lost ones, but are not counted as lost before us.
        """
        stream = samples.stream
        if sighting.verdict == "duplicate":
            _add(turn.duplicates, stream)
            return None
        if sighting.verdict == "late":
            _add(turn.dropped, (stream, "late"))
            _add(turn.lost_before_us, stream, -1)
            return None
        if message.epoch != state.epoch:
            state.reconnected(message, samples, self._lost)
        given_up, state.given_up = state.given_up, 0
        if sighting.restarted:
            _add(turn.restarts, stream)
        elif samples.seq is None:
            return Sighting("new", given_up) if given_up else sighting
        elif sighting.lost > given_up:
            _add(turn.lost_before_us, stream, sighting.lost - given_up)
        return sighting

    def _place_burst(self, turn: Turn, state: Stream, burst: Burst, buffer: InputBuffer, offset_ns: int) -> None:
        """Put messages of one sample each into their stream: those that follow by columns, any other by itself."""
        while burst.messages:
            n = state.following(burst)
            if n == len(burst.messages):
                self._place_following(turn, state, burst, buffer, offset_ns)
                return
            if n:
                self._place_following(turn, state, burst.part(0, n), buffer, offset_ns)
            else:
                n = 1
                self._place(turn, burst.messages[0], burst.first(), buffer, offset_ns)
            burst = burst.part(n, len(burst.messages))

    def _place_following(self, turn: Turn, state: Stream, burst: Burst, buffer: InputBuffer, offset_ns: int) -> None:
        stream, (numbers, contents) = burst.stream, state.sequence.take(burst)
        epoch = state.sequence.epoch
        accepted = Accepted(stream, epoch, numbers[0], burst.messages, contents if self._keep else ())
        turn.accepted.append(accepted)
        windows = state.windower.push_burst(burst, epoch, numbers, unix_offset_ns=offset_ns, keep_all=buffer.keep_all)
        if self._keep:
            self._note(accepted, state, len(numbers))
        if windows:
            turn.windows += windows
            self._ledger.windows_completed(self._pipeline, stream, len(windows))
        sensor_ns = burst.rows.sensor_unix_ns
        if self.transit and sensor_ns is not None:
            self._transit_ns += [at + offset_ns - sent for at, sent in zip(burst.received_ns, sensor_ns, strict=True)]

    def _note(self, accepted: Accepted, state: Stream, n: int) -> None:
        """Remember until the end of the turn what its open windows may need: messages of n samples together."""
        windower = state.windower
        end = windower.end
        if end > windower.needed:
            self._runs.setdefault(accepted.stream, []).append(Run(accepted, windower.resets, end - n, end))

    def _end_unix_ns(self, samples: Samples) -> int:
        """The time of the last sample by the sensor's clock; of the first where the rate is not known."""
        rate_hz = self._spec.rate_hz
        span_ns = int((len(samples.values) - 1) / rate_hz * NS) if rate_hz else 0
        return (samples.sensor_unix_ns or 0) + span_ns


def _no_rows(_messages: Sequence[Message]) -> None:
    return None


def _add(counts: dict[Key, int], key: Key, n: int = 1) -> None:
    counts[key] = counts.get(key, 0) + n
