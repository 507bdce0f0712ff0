"""Messages of one sample each, by columns: what a busy sensor sends between two turns."""

from __future__ import annotations

import msgspec

from edge_runtime.records import Message, Rows, Samples


class Burst(msgspec.Struct, frozen=True, gc=False):
    """Consecutive messages of one stream, of one sample each; at least one. rows: one a message."""

    stream: str
    messages: list[Message]
    rows: Rows

    @property
    def received_ns(self) -> list[int]:
        return [message.received_ns for message in self.messages]

    def part(self, begin: int, end: int) -> Burst:
        """Consecutive ones of them."""
        return Burst(self.stream, self.messages[begin:end], self.rows.part(begin, end))

    def first(self) -> Samples:
        """The samples of the first one by itself."""
        rows = self.rows
        seq = None if rows.seqs is None else rows.seqs[0]
        sensor_unix_ns = None if rows.sensor_unix_ns is None else rows.sensor_unix_ns[0]
        return Samples(self.stream, rows.values[:1], self.messages[0].received_ns, seq, sensor_unix_ns)
