"""The metrics document: what a daemon says of itself every few seconds, and the meter that puts it together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.delivery.ledger import Account, LedgerView
from edge_runtime.device.heat import Heat
from edge_runtime.device.memory import rss_mb
from edge_runtime.device.wear import Wear
from edge_runtime.monitor.latency import StageRecorder, StageSummary, Timed
from edge_runtime.mqtt.transport import Counters

if TYPE_CHECKING:
    from edge_runtime.delivery.journal import Journal
    from edge_runtime.delivery.outbox import Outbox
    from edge_runtime.lanes import Connection, Lane

SCHEMA = 1
MOST_LISTED = 10
NS_PER_MS, NS_PER_S, BYTES_PER_MB = 1e6, 1e9, 1e6


def _none() -> None: ...


class PipelineMetrics(msgspec.Struct, frozen=True):
    """One pipeline at this moment.

    execution: inline in the network thread, or on the worker. delivery: its tier. messages_per_s, results_per_s:
    received and made, over the interval. queue_depth: messages waiting for a turn. oldest_ms: since the one that waits
    longest was received. turns_in_flight: on the worker. deadline_ms: 0 for none. deadline_misses: results written
    later, since the start; recent_misses: over the interval.
    """

    model: str
    execution: str
    delivery: str
    messages_per_s: float
    results_per_s: float
    queue_depth: int
    oldest_ms: float
    turns_in_flight: int
    deadline_ms: float
    deadline_misses: int
    recent_misses: int


class ConnectionMetrics(Counters, kw_only=True):
    """One broker connection, and its counters. client: how it reads and writes, lane or callbacks."""

    client: str
    connected: bool


class StoreMetrics(msgspec.Struct, frozen=True):
    """The store. problem: why it is not written, "" while it is. kept: results and the like that wait, and their bytes.

    replayed: sent from the backlog since the start. quarantined: where an unsound store was moved to, or "".
    """

    problem: str
    kept: int
    kept_mb: float
    replayed: int
    quarantined: str


def store_metrics(journal: Journal | None, outbox: Outbox) -> StoreMetrics | None:
    """None without a store."""
    if journal is None:
        return None
    store, kept_mb = journal.store, round(outbox.kept_bytes / BYTES_PER_MB, 3)
    return StoreMetrics(store.problem, outbox.kept_messages, kept_mb, outbox.replayed, store.quarantined)


class Metrics(msgspec.Struct, frozen=True):
    """The document.

    at: Unix seconds. interval_s: what rates, `recent` and cpu_cores cover: since the document before, or the start.
    every_s: node.metrics_interval_s. latency, recent: per pipeline and stage, since the start and over the interval.
    cpu_cores: CPU time of the process over the interval, 1.0 is one core. temperature_c, throttled (by what), wear
    (what is written to the storage): None when unknown. store: None when all delivery is `memory`.
    """

    v: int
    boot_id: str
    at: float
    uptime_s: float
    interval_s: float
    every_s: float
    problems: tuple[str, ...]
    ledger: LedgerView
    pipelines: dict[str, PipelineMetrics]
    latency: dict[str, dict[str, StageSummary]]
    recent: dict[str, dict[str, StageSummary]]
    mqtt: tuple[ConnectionMetrics, ...]
    publish_refusals: int
    cpu_cores: float
    rss_mb: float
    temperature_c: float | None
    throttled: tuple[str, ...] | None
    store: StoreMetrics | None = None
    wear: Wear | None = None


class Meter:
    """Puts documents together; keeps of the last one what the next one counts from."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        connections: Sequence[Connection],
        recorders: Mapping[str, StageRecorder],
        *,
        models: Mapping[str, str],
        boot_id: str,
        every_s: float,
        started_ns: int,
        counted: Iterable[Account] = (),
        store: Callable[[], StoreMetrics | None] = _none,
        cpu_ns: Callable[[], int] = time.process_time_ns,
    ) -> None:
        """recorders: of the pipelines that are timed. models: "name@version" by pipeline.

        counted: what earlier runs have, by pipeline. cpu_ns: of the process.
        """
        self._store = store
        self._lanes, self._connections, self._recorders, self._models = lanes, connections, recorders, models
        self._boot_id, self._every_s = boot_id, every_s
        self._started_ns = self._last_ns = started_ns
        self._cpu_ns, self._last_cpu_ns = cpu_ns, cpu_ns()
        self._counted = {account.pipeline: account for account in counted}

    def document(
        self,
        view: LedgerView,
        problems: Sequence[str],
        heat: Heat,
        *,
        wear: Wear | None = None,
        publish_refusals: int,
        now_ns: int,
        unix_ns: int,
    ) -> Metrics:
        """What is to be said now; the next interval begins. view: at most MOST_LISTED of its imbalances are told."""
        interval_s = max(now_ns - self._last_ns, 1) / NS_PER_S
        cpu_ns = self._cpu_ns()
        accounts = {account.pipeline: account for account in view.pipelines}
        recent = {name: _plain(recorder.recent()) for name, recorder in self._recorders.items()}
        document = Metrics(
            v=SCHEMA,
            boot_id=self._boot_id,
            at=round(unix_ns / NS_PER_S, 3),
            uptime_s=round((now_ns - self._started_ns) / NS_PER_S, 3),
            interval_s=round(interval_s, 3),
            every_s=self._every_s,
            problems=tuple(problems),
            ledger=msgspec.structs.replace(view, imbalances=view.imbalances[:MOST_LISTED]),
            pipelines={name: self._pipeline(name, accounts.get(name), interval_s, now_ns) for name in self._lanes},
            latency={name: _plain(recorder.summary()) for name, recorder in self._recorders.items()},
            recent=recent,
            mqtt=tuple(map(_connection, self._connections)),
            publish_refusals=publish_refusals,
            cpu_cores=round((cpu_ns - self._last_cpu_ns) / NS_PER_S / interval_s, 3),
            rss_mb=round(rss_mb(), 1),
            temperature_c=heat.temperature_c,
            throttled=heat.throttled,
            store=self._store(),
            wear=wear,
        )
        self._last_ns, self._last_cpu_ns, self._counted = now_ns, cpu_ns, accounts
        return document

    def _pipeline(self, name: str, account: Account | None, interval_s: float, now_ns: int) -> PipelineMetrics:
        lane, recorder, nothing = self._lanes[name], self._recorders.get(name), Account(name, "")
        now, before = account or nothing, self._counted.get(name, nothing)
        oldest_ns = lane.queue.oldest_ns()
        return PipelineMetrics(
            model=self._models[name],
            execution="inline" if lane.inline else "worker",
            delivery=lane.delivery,
            messages_per_s=round((now.received - before.received) / interval_s, 3),
            results_per_s=round((now.results - before.results) / interval_s, 3),
            queue_depth=len(lane.queue),
            oldest_ms=0.0 if oldest_ns is None else round((now_ns - oldest_ns) / NS_PER_MS, 3),
            turns_in_flight=len(lane.in_flight),
            deadline_ms=recorder.deadline_ms if recorder else 0.0,
            deadline_misses=recorder.misses if recorder else 0,
            recent_misses=recorder.recent_misses if recorder else 0,
        )


def _plain(stages: Mapping[Timed, StageSummary]) -> dict[str, StageSummary]:
    return {stage: found for stage, found in stages.items()}  # noqa: C416  other types


def _connection(connection: Connection) -> ConnectionMetrics:
    client = connection.client
    return ConnectionMetrics(client=client.kind, connected=client.connected, **msgspec.structs.asdict(client.counters))


def problems(
    view: LedgerView,
    connections: Iterable[Connection],
    recorders: Iterable[StageRecorder],
    latency_log: str,
    *others: str,
) -> list[str]:
    """Sentences on what is wrong, none while all is well. latency_log, others: a problem each, or ""."""
    found = [str(imbalance) for imbalance in view.imbalances[:MOST_LISTED]]
    more = len(view.imbalances) - len(found)
    found += [f"{more:,} more counts that do not add up"] if more else []
    said = latency_log, *others, *(recorder.problem for recorder in recorders)
    found += [problem for problem in said if problem]
    for connection in connections:
        found += [f"{name}: {why}" for name, why in connection.client.refused_filters.items()]
        found += [connection.client.problem] if connection.client.problem else []
    return found
