"""Accepted inputs that open windows need: which of a turn's, and messages made of them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edge_runtime.marks import Kept, KeptMessage, WindowMark
from edge_runtime.records import NO_PROPERTIES, Accepted, Message, Properties
from edge_runtime.stream.decode import Decoder
from edge_runtime.stream.window import Placed


class Run(NamedTuple):
    """Accepted messages, where their samples stand: resets, begin and end as Kept has them.

    Where there are several messages, each has one sample.
    """

    accepted: Accepted
    resets: int
    begin: int
    end: int


def needed_inputs(runs: Sequence[Run], mark: WindowMark, offset_ns: int) -> list[Kept]:
    """What the open windows of a stream need of a turn's runs. offset_ns: wall clock minus monotonic clock.

    A run before the oldest needed sample counts when the next one begins after it: a bridged gap lies between.
    """
    found: list[Kept] = []
    until, needed = mark.end, mark.needed
    for accepted, resets, begin, end in reversed(runs):
        if resets != mark.resets or until <= needed:
            break
        skipped = max(0, min(needed - begin, len(accepted.messages) - 1))
        messages = [
            KeptMessage(message.topic, message.payload, message.received_ns + offset_ns)
            if message.properties is NO_PROPERTIES
            else _with_properties(message, offset_ns)
            for message in accepted.messages[skipped:]
        ]
        found.append(
            Kept(accepted.stream, accepted.epoch, accepted.first + skipped, resets, begin + skipped, end, messages)
        )
        until = begin
    found.reverse()
    return found


def _with_properties(message: Message, offset_ns: int) -> KeptMessage:
    properties = message.properties
    received_unix_ns = message.received_ns + offset_ns
    return KeptMessage(message.topic, message.payload, received_unix_ns, properties.content_type, properties.user)


def decoded(kept: Kept, decode: Decoder, offset_ns: int) -> Iterator[Placed]:
    """Kept messages decoded again."""
    begin = kept.begin
    for number, message in enumerate(kept.messages, kept.first):
        samples = decode(as_message(message, offset_ns), kept.stream)
        yield begin, number, samples
        begin += len(samples.values)


def as_message(kept: KeptMessage, offset_ns: int) -> Message:
    """The message again, as far as its decoding goes."""
    plain = not kept.content_type and not kept.user
    properties = NO_PROPERTIES if plain else Properties(kept.content_type, kept.user)
    return Message(kept.topic, kept.payload, kept.received_unix_ns - offset_ns, properties=properties)
