"""Messages of one sample each, by columns: what a busy sensor sends between two turns."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edge_runtime.records import Message, Queued, Rows, Samples


class Burst(msgspec.Struct, frozen=True, gc=False):
    """Messages of one stream, of one sample each; at least one.

    received_ns, given_up: per message, as Message and Queued have them. rows: one a message.
    """

    stream: str
    messages: list[Message]
    received_ns: list[int]
    given_up: list[int]
    rows: Rows

    def part(self, begin: int, end: int) -> Burst:
        """Consecutive ones of them."""
        cut, rows = slice(begin, end), self.rows
        seqs, times_ns = rows.seqs, rows.sensor_unix_ns
        part = Rows(rows.values[cut], seqs and seqs[cut], times_ns and times_ns[cut])
        return Burst(self.stream, self.messages[cut], self.received_ns[cut], self.given_up[cut], part)

    def first(self) -> Samples:
        """The samples of the first one by itself."""
        rows = self.rows
        seq = None if rows.seqs is None else rows.seqs[0]
        sensor_unix_ns = None if rows.sensor_unix_ns is None else rows.sensor_unix_ns[0]
        return Samples(self.stream, rows.values[:1], self.received_ns[0], seq, sensor_unix_ns)


def by_stream(messages: Sequence[Queued], rows: Rows) -> list[Burst]:
    """The bursts of a turn, in the order in which their streams come first. rows: one a message."""
    streams = [queued.stream for queued in messages]
    if streams.count(streams[0]) == len(streams):
        return [_burst(messages, rows)]
    places: dict[str, list[int]] = {}
    for i, stream in enumerate(streams):
        places.setdefault(stream, []).append(i)
    seqs, times_ns = rows.seqs, rows.sensor_unix_ns
    found = []
    for own in places.values():
        own_rows = Rows(rows.values[own], seqs and [seqs[i] for i in own], times_ns and [times_ns[i] for i in own])
        found.append(_burst([messages[i] for i in own], own_rows))
    return found


def _burst(queued: Sequence[Queued], rows: Rows) -> Burst:
    messages = [one.message for one in queued]
    received_ns = [message.received_ns for message in messages]
    return Burst(queued[0].stream, messages, received_ns, [one.given_up for one in queued], rows)
