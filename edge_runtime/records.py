"""The records that flow through the daemon: bytes in, results out.

Shapes and units stand with each record. `*_ns` is the monotonic clock, `*_unix_ns` the wall clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.marks import Kept, Seen, StreamMark

Floats = npt.NDArray[np.float32]
State = tuple[npt.NDArray[Any], ...]

Layout = Literal["NTC", "NCT", "NT", "NF", "N1TC", "N1CT", "NTC1"]
Stage = Literal["transit", "queue", "decode", "window", "wait", "infer", "decide", "commit", "publish", "puback"]
STAGES: tuple[Stage, ...] = (
    "transit", "queue", "decode", "window", "wait", "infer", "decide", "commit", "publish", "puback",
)  # fmt: skip


class Properties(msgspec.Struct, frozen=True, gc=False):
    """The MQTT 5 properties the daemon uses; empty on MQTT 3.1.1 (MQTT 5.0, section 3.3.2.3)."""

    content_type: str = ""
    user: tuple[tuple[str, str], ...] = ()
    message_expiry_s: int | None = None
    response_topic: str = ""
    correlation_data: bytes = b""


NO_PROPERTIES = Properties()


class Message(msgspec.Struct, frozen=True, gc=False):
    """One PUBLISH as it came off the wire.

    received_ns: when the read that completed it began. mid: the packet id, 0 at QoS 0.
    epoch: number of the connection it came in on, unique within the process; a packet id means
    nothing outside its epoch.
    """

    topic: str
    payload: bytes
    received_ns: int
    qos: int = 0
    mid: int = 0
    retain: bool = False
    dup: bool = False
    properties: Properties = NO_PROPERTIES
    epoch: int = 0


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """One PUBLISH to be written. content_type and all after it are sent on MQTT 5 only."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    content_type: str = ""
    message_expiry_s: int | None = None
    user: tuple[tuple[str, str], ...] = ()
    response_topic: str = ""
    correlation_data: bytes = b""


class InputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one window is: length samples of the named channels, in the given units.

    rate_hz: samples per second, or None when unknown. layout: NTC (batch, length, channels), NCT (batch, channels,
    length), NT (batch, length) for a single channel, NF (batch, length * channels), N1TC, N1CT and NTC1 with an axis
    of 1.
    lead_in: zeros that stand before the first sample of a stream, and again after a gap that resets it.
    """

    name: str
    channels: tuple[str, ...]
    units: tuple[str, ...]
    length: int
    hop: int
    rate_hz: float | None = None
    layout: Layout = "NTC"
    lead_in: int = 0

    def shape(self) -> tuple[int, ...]:
        """Shape of one window in the model's layout."""
        length, channels = self.length, len(self.channels)
        shapes: dict[Layout, tuple[int, ...]] = {
            "NTC": (length, channels),
            "NCT": (channels, length),
            "NT": (length,),
            "NF": (length * channels,),
            "N1TC": (1, length, channels),
            "N1CT": (1, channels, length),
            "NTC1": (length, channels, 1),
        }
        return shapes[self.layout]

    @property
    def channels_first(self) -> bool:
        """Whether a channel's samples lie together in the model's layout."""
        return self.layout in ("NCT", "N1CT")


class Samples(msgspec.Struct, frozen=True, gc=False):
    """Consecutive samples of one stream, as one message carried them.

    values: (n, channels) float32, n >= 1, in physical units, all finite.
    seq: the producer's message number, or None; a stream's messages all have one, or none has.
    sensor_unix_ns: time of the first sample, or None.
    """

    stream: str
    values: Floats
    received_ns: int
    seq: int | None = None
    sensor_unix_ns: int | None = None


class Rows(msgspec.Struct, frozen=True, gc=False):
    """Messages of one sample each, by columns.

    values: (messages, channels) float32, as Samples has them. seqs, sensor_unix_ns: per message; None where they
    carry none.
    """

    values: Floats
    seqs: list[int] | None = None
    sensor_unix_ns: list[int] | None = None

    def part(self, begin: int, end: int) -> Rows:
        """Those of consecutive messages."""
        cut, seqs, times_ns = slice(begin, end), self.seqs, self.sensor_unix_ns
        return Rows(self.values[cut], seqs and seqs[cut], times_ns and times_ns[cut])


class Window(msgspec.Struct, frozen=True, gc=False):
    """The most recent ``length`` samples of one stream.

    values: the model's layout of (length, channels) float32, in physical units; kept until its turn was emitted.
    first_seq, last_seq: message numbers of the first and the completing message (the producer's, or a count).
    t0_unix_ns, t1_unix_ns: time of the first and the last sample; by_receipt says they are the device's
    receipt times because the sensor gave none.
    received_ns: of the message that completed it. missing: samples in it that were never received.
    gap: it spans a gap that was marked, not filled. key: identity of the completing message.
    fresh: the first window of its stream, or the first one after a gap that reset it.
    """

    stream: str
    values: Floats
    first_seq: int
    last_seq: int
    t0_unix_ns: int
    t1_unix_ns: int
    by_receipt: bool
    received_ns: int
    missing: int
    gap: bool
    key: str
    ordinal: int
    fresh: bool = False


class Prediction(msgspec.Struct, frozen=True):
    """scores: (batch, labels) float32 in [0, 1], or (batch, 1) reconstruction error. model: "name@version".

    started_ns: monotonic, when the run began.
    """

    scores: Floats
    model: str
    infer_ns: int
    started_ns: int


class StageTimes(msgspec.Struct, frozen=True, gc=False):
    """What the stages up to the decision cost one window, ms.

    queue: from the read of its last message until the pipeline began with it. decode, window: of that message.
    wait: for the rest of the micro-batch, or the worker. infer: the run it was in.
    """

    queue: float
    decode: float
    window: float
    wait: float
    infer: float
    decide: float


class Result(msgspec.Struct, frozen=True, gc=False):
    """What subscribers read: one per window, JSON with these keys.

    t0, t1: Unix seconds. seq: first and last message number. lat_ms: what the stages up to the decision cost.
    flags: "receipt_time" (t0 and t1 are receipt times), "gap" (a marked gap lies inside).
    """

    v: int
    id: str
    pipeline: str
    stream: str
    model: str
    label: str
    score: float
    scores: dict[str, float]
    alarm: bool | None
    t0: float
    t1: float
    n: int
    seq: tuple[int, int]
    missing: int
    flags: tuple[str, ...]
    lat_ms: StageTimes


class AlarmState(msgspec.Struct, frozen=True):
    """Whether a stream's alarm is on, and the last n windows: bit i of on_bits or off_bits is the window i ago."""

    on: bool = False
    on_bits: int = 0
    off_bits: int = 0
    since_unix_ns: int = 0


class StateChange(msgspec.Struct, frozen=True):
    """The retained document published when a stream's alarm changes.

    since: Unix seconds. id: of the result.
    """

    on: bool
    label: str
    score: float
    since: float
    id: str
    stream: str


class Segment(msgspec.Struct, frozen=True):
    """Consecutive windows of one stream for which its alarm was on; published as an event when that has ended.

    id: the same in every run that cuts the same windows. start, end: t0 of the first and t1 of the last window.
    label, model, peak_score, peak_at: of the window that spoke loudest for the alarm, and its t1. All times in Unix
    seconds. windows: how many. seq: first and last message number. flags: those of its windows, and "gap" too when a
    gap inside it reset the stream.
    """

    v: int
    id: str
    pipeline: str
    stream: str
    model: str
    label: str
    start: float
    end: float
    peak_score: float
    peak_at: float
    windows: int
    seq: tuple[int, int]
    flags: tuple[str, ...]


MessageKey = tuple[str, int]
"""A message within its stream: the epoch of the producer's numbers, or the run that counted it; and the number."""


Told = tuple[str, bool | None]
"""Label and alarm of a stream as they were last published."""


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that could not be used, and why; acknowledged all the same."""

    stream: str
    reason: str
    detail: str
    message: Message


class Queued(msgspec.Struct, frozen=True, gc=False):
    """Consecutive messages of one stream that wait, undecoded, for their pipeline; at least one.

    messages: nobody changes the list, which pipelines share. given_up: messages of the stream that had to give way
    right before the first one.
    """

    stream: str
    messages: list[Message]
    given_up: int = 0


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """Consecutive messages of one stream that the windower took.

    epoch, first: the key of the first one within the stream, as StreamMark has it; the others' numbers follow.
    contents: what they are known by when they come again, one each; none of those of QoS 0 without numbers.
    """

    stream: str
    epoch: str
    first: int
    messages: list[Message]
    contents: Sequence[int] = ()


class Carried(msgspec.Struct, frozen=True):
    """A stream's model state, and the windows it has seen."""

    state: State
    windows: int = 0


class Remembered(msgspec.Struct):
    """What a pipeline takes up of one stream when it starts again; kept and seen oldest first."""

    mark: StreamMark
    kept: list[Kept] = []
    seen: list[Seen] = []
    alarm: AlarmState | None = None
    segment: Segment | None = None
    told: Told | None = None
    dropped_at_gap: bool = False
    carried: Carried | None = None


class Turn(msgspec.Struct):
    """The unit of work of one pipeline: what its queues held when a slot was free, and what became of it.

    Filled by ingest (accepted .. marks), predict (prediction, model_states) and emit (results .. segments), in that
    order; settled once, whatever it holds.
    messages: what it took; left_over: what it had no room for, one run a stream. accepted: every input the windower
    took; windows: what it cut; both in the order of each stream. inputs: (windows, ...) float32 in the model's layout.
    times_ns: per window, what its completing message cost in (queue, decode, window), and when it was cut.
    spent: what the stages cost, in ns, and how many messages or windows each figure stands for, one figure where those
    are several. messages, accepted and spent are emptied when it is settled.
    dropped counts messages, window_drops windows, by (stream, reason). emitted_ns: per result, when its last message
    was received. decided_ns: when the results were decided; commit_ns: how long it took from there until they were
    safe, 0 where nothing is committed. unchanged: results not published because nothing changed,
    per stream. events: segments that ended. lost_before_us, restarts: numbers that never came, and restarts of the
    producer's numbering, per stream. marks, model_states, alarms, segments (the open one, None after it ended), told,
    dropped_at_gap: the new value of each small state that this turn changed, per stream, as of this turn; marks and
    kept (the accepted inputs that open windows need as of this turn) only of a pipeline that keeps them. given_up:
    what those are known by that were dead-lettered, stale or expired.
    """

    pipeline: str
    messages: list[Queued]
    taken_ns: int
    left_over: list[Queued] = []
    accepted: list[Accepted] = []
    inputs: Floats | None = None
    windows: list[Window] = []
    times_ns: list[tuple[int, int, int, int]] = []
    duplicates: dict[str, int] = {}
    dropped: dict[tuple[str, str], int] = {}
    dead_letters: list[DeadLetter] = []
    lost_before_us: dict[str, int] = {}
    restarts: dict[str, int] = {}
    marks: dict[str, StreamMark] = {}
    kept: list[Kept] = []
    given_up: list[Seen] = []
    prediction: Prediction | None = None
    model_states: dict[str, Carried] = {}
    results: list[Result] = []
    spent: list[tuple[Stage, list[int], int]] = []
    emitted_ns: list[int] = []
    decided_ns: int = 0
    commit_ns: int = 0
    window_drops: dict[tuple[str, str], int] = {}
    unchanged: dict[str, int] = {}
    state_changes: list[StateChange] = []
    events: list[Segment] = []
    alarms: dict[str, AlarmState] = {}
    segments: dict[str, Segment | None] = {}
    told: dict[str, Told] = {}
    dropped_at_gap: dict[str, bool] = {}
