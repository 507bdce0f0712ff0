"""What an operator has to know at once: published when it happens, once each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from edge_runtime.delivery.ledger import LedgerView
from edge_runtime.delivery.store import Store
from edge_runtime.lanes import Connection
from edge_runtime.mqtt.publications import Publications
from edge_runtime.records import Outgoing

Found = tuple[str, dict[str, Any]]


class NodeEvents:
    """Compares what it sees with what it saw last, and publishes what is new. It is logged where it happens."""

    def __init__(
        self,
        publications: Publications,
        publish: Callable[[Outgoing], object],
        *,
        connections: Iterable[Connection],
        store: Store | None,
        unix_s: Callable[[], float],
        problem: Callable[[], str] = str,
    ) -> None:
        """publish: keeps an event until there is a connection. problem: why results cannot be delivered, or ""."""
        self._undelivered, self._cannot_deliver = problem, False
        self._publications, self._publish, self._unix_s = publications, publish, unix_s
        self._connections, self._store = list(connections), store
        self._counted: dict[tuple[str, str], int] = {}
        self._problems: dict[str, str] = {}
        self._problem = self._quarantined = ""
        self._unbalanced: set[tuple[str, str, str]] = set()

    def look(self) -> None:
        """At connections and store; cheap enough to be done often."""
        for event, facts in (*self._of_connections(), *self._of_store()):
            self.tell(event, facts)
        problem = self._undelivered()
        if problem and not self._cannot_deliver:
            self.tell("results_kept_back", {"problem": problem})
        self._cannot_deliver = bool(problem)

    def review(self, view: LedgerView) -> None:
        """At the ledger."""
        for off in view.imbalances:
            key = off.pipeline, off.stream, off.equation
            if key not in self._unbalanced:
                self._unbalanced.add(key)
                self.tell("ledger_imbalance", {"pipeline": off.pipeline, "stream": off.stream, "found": str(off)})

    def tell(self, event: str, facts: dict[str, Any]) -> None:
        self._publish(self._publications.node_event(event, facts, unix_s=self._unix_s()))

    def _of_connections(self) -> Iterator[Found]:
        for connection in self._connections:
            counters = connection.client.counters
            for event, n in (("session_lost", counters.sessions_lost), ("session_taken_over", counters.taken_over)):
                key = connection.session, event
                if n > self._counted.get(key, 0):
                    self._counted[key] = n
                    yield event, {"session": connection.session, "times": n}
            problem = connection.client.problem
            if problem != self._problems.get(connection.session, ""):
                self._problems[connection.session] = problem
                if problem:
                    yield "connection_problem", {"session": connection.session, "problem": problem}

    def _of_store(self) -> Iterator[Found]:
        store = self._store
        if store is None:
            return
        if store.quarantined != self._quarantined:
            self._quarantined = store.quarantined
            yield "store_quarantined", {"moved_to": store.quarantined}
        if bool(store.problem) != bool(self._problem):
            self._problem = store.problem
            yield ("store_degraded", {"problem": store.problem}) if store.problem else ("store_recovered", {})
