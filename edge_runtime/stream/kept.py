"""Accepted inputs that open windows need: which of a turn's, and messages made of them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

from edge_runtime.marks import Kept, KeptMessage, WindowMark
from edge_runtime.records import NO_PROPERTIES, Accepted, Message, Properties


class Run(NamedTuple):
    """Accepted messages, where their samples stand: resets, begin and end as Kept has them.

    Where there are several messages, each has one sample.
    """

    accepted: Accepted
    resets: int
    begin: int
    end: int


def needed_inputs(runs: Sequence[Run], mark: WindowMark, offset_ns: int) -> Iterator[Kept]:
    """What the open windows of a stream need of a turn's runs. offset_ns: wall clock minus monotonic clock.

    A run before the oldest needed sample counts when the next one begins after it: a bridged gap lies between.
    """
    open_runs = [run for run in runs if run.resets == mark.resets]
    for run, following in pairwise(chain(open_runs, [None])):
        if run is None or (run.end if following is None else following.begin) <= mark.needed:
            continue
        accepted, resets, begin, end = run
        skipped = max(0, min(mark.needed - begin, len(accepted.messages) - 1))
        messages = [_kept(message, offset_ns) for message in accepted.messages[skipped:]]
        yield Kept(accepted.stream, accepted.epoch, accepted.first + skipped, resets, begin + skipped, end, messages)


def _kept(message: Message, offset_ns: int) -> KeptMessage:
    properties = message.properties
    return KeptMessage(
        message.topic, message.payload, message.received_ns + offset_ns, properties.content_type, properties.user
    )


def as_message(kept: KeptMessage, offset_ns: int) -> Message:
    """The message again, as far as its decoding goes."""
    plain = not kept.content_type and not kept.user
    properties = NO_PROPERTIES if plain else Properties(kept.content_type, kept.user)
    return Message(kept.topic, kept.payload, kept.received_unix_ns - offset_ns, properties=properties)
