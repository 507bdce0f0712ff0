"""Nothing lost, everything counted: three equations for every pipeline and stream, which can be checked at any time.

    messages received = accepted + duplicates + dropped{reason} + dead-lettered + queued
    windows completed = results + dropped{reason} + in flight
    results = confirmed + waiting to be sent + unchanged + dropped{reason}

Each event is posted once, by the room that sees it, and the three gauges are counted where the things lie, never
derived from the other terms; otherwise the check could not fail.

    the loop, a message read               received; if no pipeline takes it `dead_lettered` too, under NO_PIPELINE
    overload, at a queue                   dropped (queue_full, expired, ...)
    stream/pipeline.py, ingest             windows_completed
    the loop, a turn is done               settle: the turn's messages, and its windows that became results
    the loop, windows given up             window_dropped (shutdown, ...)
    mqtt, PUBACK or written at QoS 0       confirmed
    the outbox, a result given up          result_dropped (expired, rejected, shutdown, ...)
    the outbox, an event given up          event_dropped; events are in no equation
    gauge: loop and queues                 queued: messages in queues and in turns not yet settled
    gauge: loop                            in_flight: windows in turns not yet settled
    gauge: outbox                          waiting: results settled and not yet confirmed
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal, TypeVar

import msgspec

from edge_runtime.records import Turn

NO_PIPELINE = "-"
ALL = "*"
MOST_SHOWN = 10

Key = tuple[str, str]
T = TypeVar("T")
Equation = Literal["messages", "windows", "results"]


class Account(msgspec.Struct):
    """What was counted of one stream of a pipeline, or, with "*" as its name, of several together.

    dropped: messages by reason; windows_dropped, results_dropped likewise. unchanged: results not published because
    nothing changed. events: segments that ended; events_dropped: those that will not be sent, by reason.
    lost_before_us: message numbers that never came. restarts: of producers' numbering.
    queued (messages), in_flight (windows), waiting (results) are the gauges, as they were told.
    """

    pipeline: str
    stream: str
    received: int = 0
    accepted: int = 0
    duplicates: int = 0
    dropped: dict[str, int] = {}
    dead_lettered: int = 0
    queued: int = 0
    windows: int = 0
    windows_dropped: dict[str, int] = {}
    in_flight: int = 0
    results: int = 0
    confirmed: int = 0
    waiting: int = 0
    unchanged: int = 0
    results_dropped: dict[str, int] = {}
    events: int = 0
    events_dropped: dict[str, int] = {}
    lost_before_us: int = 0
    restarts: int = 0


REASONS = ("dropped", "windows_dropped", "results_dropped", "events_dropped")
COUNTS = tuple(field for field in Account.__struct_fields__[2:] if field not in REASONS)
_counts = attrgetter(*COUNTS)


class Imbalance(msgspec.Struct, frozen=True):
    """An equation that does not hold: what came in (left) and what became of it (right)."""

    pipeline: str
    stream: str
    equation: Equation
    left: int
    right: int

    def __str__(self) -> str:
        verb = {"messages": "received", "windows": "completed", "results": "made"}[self.equation]
        return f"{self.pipeline} {self.stream}: {self.left:,} {self.equation} {verb}, {self.right:,} accounted for"


class LedgerView(msgspec.Struct, frozen=True):
    """The ledger at one moment: an account per pipeline, one over all, and every stream's equation that is off."""

    pipelines: tuple[Account, ...]
    overall: Account
    imbalances: tuple[Imbalance, ...]


class Ledger:
    """Counts what happened, per pipeline and stream, since it was made. Called by one thread.

    It holds an account for every (pipeline, stream) it was told of; whoever opens streams bounds their number.
    """

    def __init__(self) -> None:
        self._accounts: dict[Key, Account] = {}

    def received(self, pipeline: str, stream: str, n: int = 1) -> None:
        """Messages were read off the wire for this stream."""
        self._account(pipeline, stream).received += n

    def dropped(self, pipeline: str, stream: str, reason: str, n: int = 1) -> None:
        """Messages were dropped before a turn took them (those a turn drops come with `settle`)."""
        _add(self._account(pipeline, stream).dropped, reason, n)

    def dead_lettered(self, pipeline: str, stream: str, n: int = 1) -> None:
        """Messages were rejected outside of a turn."""
        self._account(pipeline, stream).dead_lettered += n

    def windows_completed(self, pipeline: str, stream: str, n: int = 1) -> None:
        """The windower cut windows; posted at ingest, long before the turn is settled."""
        self._account(pipeline, stream).windows += n

    def window_dropped(self, pipeline: str, stream: str, reason: str, n: int = 1) -> None:
        """Windows of a turn that will never be settled were given up."""
        _add(self._account(pipeline, stream).windows_dropped, reason, n)

    def confirmed(self, pipeline: str, stream: str, n: int = 1) -> None:
        """The broker has results (PUBACK), or they were written at QoS 0."""
        self._account(pipeline, stream).confirmed += n

    def result_dropped(self, pipeline: str, stream: str, reason: str, n: int = 1) -> None:
        """Settled results will not be sent."""
        _add(self._account(pipeline, stream).results_dropped, reason, n)

    def event_dropped(self, pipeline: str, stream: str, reason: str, n: int = 1) -> None:
        """Events of settled turns will not be sent; in no equation."""
        _add(self._account(pipeline, stream).events_dropped, reason, n)

    def accounts(self) -> list[Key]:
        """(pipeline, stream) of every account."""
        return list(self._accounts)

    def account(self, pipeline: str, stream: str) -> Account:
        """The account of a stream, as it is at this moment; whoever asks only reads it."""
        return self._account(pipeline, stream)

    def restore(self, account: Account) -> None:
        """Go on counting where another run has ended."""
        self._accounts[account.pipeline, account.stream] = account

    def forget(self, pipeline: str, stream: str) -> None:
        """Of a pipeline that is no longer there."""
        self._accounts.pop((pipeline, stream), None)

    def fold(self, pipeline: str, stream: str) -> None:
        """Count a stream from now on among those of its pipeline that are no longer told apart."""
        account = self._accounts.pop((pipeline, stream), None)
        if account is not None:
            self._accounts[pipeline, ALL] = _total(pipeline, ALL, (self._account(pipeline, ALL), account))

    def settle(self, turn: Turn) -> None:
        """Count what became of a turn's messages and windows; once a turn.

        turn.results are those to be sent; a result that is not published is in turn.unchanged only.
        """
        pipeline = turn.pipeline
        for accepted in turn.accepted:
            self._account(pipeline, accepted.stream).accepted += len(accepted.messages)
        for stream, n in turn.duplicates.items():
            self._account(pipeline, stream).duplicates += n
        for (stream, reason), n in turn.dropped.items():
            self.dropped(pipeline, stream, reason, n)
        for letter in turn.dead_letters:
            self.dead_lettered(pipeline, letter.stream)
        for (stream, reason), n in turn.window_drops.items():
            self.window_dropped(pipeline, stream, reason, n)
        for stream, n in tally([result.stream for result in turn.results]).items():
            self._account(pipeline, stream).results += n
        for stream, n in turn.unchanged.items():
            account = self._account(pipeline, stream)
            account.results += n
            account.unchanged += n
        self._settle_beside(turn)

    def _settle_beside(self, turn: Turn) -> None:
        """What is in no equation."""
        pipeline = turn.pipeline
        for segment in turn.events:
            self._account(pipeline, segment.stream).events += 1
        if turn.lost_before_us or turn.restarts:
            self._settle_producers(turn)

    def _settle_producers(self, turn: Turn) -> None:
        """Numbers that never came, and numberings begun anew; in no equation."""
        for stream, n in turn.lost_before_us.items():
            self._account(turn.pipeline, stream).lost_before_us += n
        for stream, n in turn.restarts.items():
            self._account(turn.pipeline, stream).restarts += n

    def snapshot(
        self, queued: Mapping[Key, int], in_flight: Mapping[Key, int], waiting: Mapping[Key, int]
    ) -> tuple[Account, ...]:
        """A copy of every stream's account with the gauges in it, sorted.

        queued: messages in queues and unsettled turns. in_flight: windows of unsettled turns. waiting: settled
        results not yet confirmed. Each per (pipeline, stream); a stream with none may be left out.
        """
        accounts = self._gauged(queued, in_flight, waiting)
        return tuple(_total(account.pipeline, account.stream, (account,)) for account in accounts)

    def balance(
        self, queued: Mapping[Key, int], in_flight: Mapping[Key, int], waiting: Mapping[Key, int]
    ) -> list[Imbalance]:
        """Every equation of every stream that does not hold; gauges as in `snapshot`."""
        return [off for account in self._gauged(queued, in_flight, waiting) for off in imbalances(account)]

    def totals(self, queued: Mapping[Key, int], in_flight: Mapping[Key, int], waiting: Mapping[Key, int]) -> LedgerView:
        """An account per pipeline and one over all, checked stream by stream; gauges as in `snapshot`."""
        accounts = self._gauged(queued, in_flight, waiting)
        by_pipeline: dict[str, list[Account]] = {}
        for account in accounts:
            by_pipeline.setdefault(account.pipeline, []).append(account)
        pipelines = tuple(_total(pipeline, ALL, group) for pipeline, group in by_pipeline.items())
        return LedgerView(
            pipelines=pipelines,
            overall=_total(ALL, ALL, pipelines),
            imbalances=tuple(off for account in accounts for off in imbalances(account)),
        )

    def _gauged(
        self, queued: Mapping[Key, int], in_flight: Mapping[Key, int], waiting: Mapping[Key, int]
    ) -> list[Account]:
        """The accounts themselves, sorted, with the gauges of this moment in them."""
        accounts = [self._account(*key) for key in sorted({*self._accounts, *queued, *in_flight, *waiting})]
        for account in accounts:
            key = account.pipeline, account.stream
            account.queued, account.in_flight = queued.get(key, 0), in_flight.get(key, 0)
            account.waiting = waiting.get(key, 0)
        return accounts

    def _account(self, pipeline: str, stream: str) -> Account:
        account = self._accounts.get((pipeline, stream))
        if account is None:
            account = self._accounts[pipeline, stream] = Account(pipeline, stream)
        return account


def as_row(account: Account) -> tuple[object, ...]:
    """An account as it is stored, without the gauges' meaning."""
    return account.pipeline, account.stream, _counts(account), *(getattr(account, field) for field in REASONS)


def from_row(row: Sequence[Any]) -> Account:
    """The account that `as_row` has made the row of; its gauges are zero."""
    pipeline, stream, counts, *reasons = row
    fields: dict[str, Any] = dict(zip(COUNTS, counts, strict=True))
    fields |= {field: dict(found) for field, found in zip(REASONS, reasons, strict=True)}
    account = Account(pipeline, stream, **fields)
    account.queued = account.in_flight = account.waiting = 0
    return account


def imbalances(account: Account) -> list[Imbalance]:
    """The equations of one stream that do not hold."""
    a = account
    messages = a.accepted + a.duplicates + a.dead_lettered + a.queued + (sum(a.dropped.values()) if a.dropped else 0)
    windows = a.results + a.in_flight + (sum(a.windows_dropped.values()) if a.windows_dropped else 0)
    results = a.confirmed + a.waiting + a.unchanged + (sum(a.results_dropped.values()) if a.results_dropped else 0)
    if a.received == messages and a.windows == windows and a.results == results:
        return []
    equations: tuple[tuple[Equation, int, int], ...] = (
        ("messages", a.received, messages),
        ("windows", a.windows, windows),
        ("results", a.results, results),
    )
    return [Imbalance(a.pipeline, a.stream, *equation) for equation in equations if equation[1] != equation[2]]


def render(view: LedgerView) -> str:
    """The ledger as plain text: three lines a pipeline, then "balanced" or what is off."""
    lines = [line for account in view.pipelines for line in _render_account(account)]
    shown = view.imbalances[:MOST_SHOWN]
    lines += [f"off: {imbalance}" for imbalance in shown]
    if len(view.imbalances) > len(shown):
        lines.append(f"off: {len(view.imbalances) - len(shown)} more")
    if not view.imbalances:
        lines.append("balanced")
    return "\n".join(lines)


def _render_account(a: Account) -> Iterator[str]:
    beside = f"; lost before us {a.lost_before_us:,}" if a.lost_before_us else ""
    beside += f"; producer restarts {a.restarts:,}" if a.restarts else ""
    yield (
        f"{a.pipeline}: messages received {a.received:,} = accepted {a.accepted:,} + duplicates {a.duplicates:,}"
        f" + {_render_drops(a.dropped)} + dead-lettered {a.dead_lettered:,} + queued {a.queued:,}{beside}"
    )
    if a.pipeline == NO_PIPELINE:
        return
    yield (
        f"{a.pipeline}: windows completed {a.windows:,} = results {a.results:,}"
        f" + {_render_drops(a.windows_dropped)} + in flight {a.in_flight:,}"
    )
    events = f"; events {a.events:,}" if a.events else ""
    events += f", {_render_drops(a.events_dropped)}" if a.events_dropped else ""
    yield (
        f"{a.pipeline}: results {a.results:,} = confirmed {a.confirmed:,} + waiting {a.waiting:,}"
        f" + unchanged {a.unchanged:,} + {_render_drops(a.results_dropped)}{events}"
    )


def _render_drops(drops: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(drops.items()) if n)
    return f"dropped {sum(drops.values()):,}" + (f" ({reasons})" if reasons else "")


def _total(pipeline: str, stream: str, accounts: Sequence[Account]) -> Account:
    """The sum of accounts, under a name of its own."""
    total = Account(pipeline, stream)
    for field, n in zip(COUNTS, map(sum, zip(*map(_counts, accounts), strict=True)), strict=False):
        setattr(total, field, n)
    for field in REASONS:
        into = getattr(total, field)
        for account in accounts:
            for reason, n in getattr(account, field).items():
                _add(into, reason, n)
    return total


def tally(streams: Iterable[T]) -> dict[T, int]:
    """How often each occurs. For the few items of a light load a Counter takes ten times as long."""
    counts: dict[T, int] = {}
    for stream in streams:
        counts[stream] = counts.get(stream, 0) + 1
    return counts


def _add(counts: dict[str, int], reason: str, n: int) -> None:
    counts[reason] = counts.get(reason, 0) + n
