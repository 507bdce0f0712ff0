"""How far each stream has come: what a pipeline remembers of it over a restart. Written to the store as they are.

`*_unix_ns` is the wall clock, as nothing else means anything in another run of the process.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

GIVEN_UP = "!"
"""In the place of an epoch: of messages that were given up, and have no number."""


class Seen(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Messages that were dealt with, but without them: what is remembered of them against redelivery."""

    stream: str
    epoch: str
    first: int
    contents: Sequence[int]


class KeptMessage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What decoding a message again takes. received_unix_ns: its time of receipt."""

    topic: str
    payload: bytes
    received_unix_ns: int
    content_type: str = ""
    user: tuple[tuple[str, str], ...] = ()


class Kept(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Consecutive accepted messages of one stream, with no gap between, that its open windows need.

    epoch, first: the key of the first one. begin: position of its first sample; end: that after the last sample of
    the last one. Positions count samples since the reset of that number (WindowMark).
    """

    stream: str
    epoch: str
    first: int
    resets: int
    begin: int
    end: int
    messages: list[KeptMessage]


class WindowMark(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where the windows of one stream stand; positions count samples since the last reset, bridged ones included.

    resets: how often the stream was reset. end: position after the last sample. due: position after the last sample
    of the next window. needed: of the oldest sample that windows to come may need. fresh: as in Window. usual_n:
    samples of the last message. end_unix_ns: when the last sample ended by the sensor's clock, None when it has none.
    held: (position, samples) of bridged gaps that are still needed. joints: positions of marked gaps likewise.
    """

    resets: int
    end: int
    due: int
    needed: int
    fresh: bool
    usual_n: int
    end_unix_ns: int | None = None
    held: tuple[tuple[int, int], ...] = ()
    joints: tuple[int, ...] = ()


class StreamMark(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was seen of one stream.

    number, epoch: the key of the newest message, -1 and "" before there is one; numbered: whether the producer gives
    the numbers. first: where the epoch began; missing: (number, how many) that were not seen since then and are not
    older than what is remembered. restarts: of the producer's numbering. given_up: messages given up here since the
    last one that was taken in.
    """

    number: int
    epoch: str
    numbered: bool
    first: int
    missing: tuple[tuple[int, int], ...]
    restarts: int
    given_up: int
    window: WindowMark
