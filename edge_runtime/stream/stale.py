"""Messages that are too old to be worth decoding, and retained ones."""

from __future__ import annotations

from collections.abc import Sequence

from edge_runtime.records import Message, Queued

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


def joined(left_over: Sequence[Queued], later: Sequence[Queued]) -> list[Queued]:
    """One run a stream: what had no room, and of each stream what comes after it."""
    found = {run.stream: run for run in left_over}
    for run in later:
        before = found.get(run.stream)
        found[run.stream] = (
            run if before is None else Queued(run.stream, before.messages + run.messages, before.given_up)
        )
    return list(found.values())
