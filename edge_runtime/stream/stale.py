"""Messages that are too old to be worth decoding, and retained ones."""

from __future__ import annotations

from edge_runtime.records import Message

NS = 1_000_000_000


def sorted_out(
    messages: list[Message], now_ns: int, oldest_ns: int
) -> tuple[list[Message], list[Message], list[Message]]:
    """Those to use, those given up before them, and the rest from the next expired one on."""
    usable: list[Message] = []
    stale: list[Message] = []
    for i, one in enumerate(messages):
        expiry_s = one.properties.message_expiry_s
        expired = one.received_ns < oldest_ns or (expiry_s is not None and now_ns - one.received_ns >= expiry_s * NS)
        if expired and usable and not one.retain:
            return usable, stale, messages[i:]
        (stale if expired or one.retain else usable).append(one)
    return usable, stale, []
