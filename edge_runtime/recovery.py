"""What the run before has left: read from the store, and put back where it belongs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from edge_runtime.config import Config, PipelineSettings
from edge_runtime.delivery.journal import Basis, Journal, Node
from edge_runtime.delivery.ledger import NO_PIPELINE, Ledger, as_row, from_row
from edge_runtime.delivery.parcels import Parcel, Parcels
from edge_runtime.delivery.store import Store
from edge_runtime.lanes import Lane
from edge_runtime.loop import Loop
from edge_runtime.model.manifest import Manifest
from edge_runtime.mqtt.publications import Publications
from edge_runtime.stream.pipeline import Clock

log = logging.getLogger(__name__)

STORE = "store.db"
NS = 1e9


def basis(settings: PipelineSettings, manifest: Manifest, digest: str) -> Basis:
    """What the stored windows and model states of a pipeline depend on. digest: of the bundle."""
    cut = msgspec.json.encode((settings.source, settings.window, manifest.input))
    return Basis(hashlib.blake2b(cut, digest_size=8).hexdigest(), digest[:16])


def open_journal(config: Config, bases: Mapping[str, Basis], clock: Clock) -> tuple[Journal, list[Parcel]]:
    """The journal of the node, and what waits to be sent. bases: of the durable pipelines.

    A store that cannot be read is moved aside, one that cannot be written is made good for later: neither keeps the
    daemon from starting. Raises StoreBusyError when another process has it.
    """
    store = Store(Path(config.node.state_dir) / STORE, config.store)
    parcels = Parcels(now_ns=clock.monotonic_ns(), unix_s=clock.unix_ns() / NS)
    records = store.load(taken=parcels.take)
    memory = config.mqtt.receive_maximum
    journal = Journal(store, memory=memory, bases=bases)
    try:
        journal.restore(records)
        return journal, parcels.oldest_first(store.holds)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        store.reject(f"a record of this version was expected: {error}")
        return Journal(store, memory=memory, bases=bases), []


def take_up(
    journal: Journal,
    parcels: Iterable[Parcel],
    loop: Loop,
    lanes: Mapping[str, Lane],
    *,
    bases: Mapping[str, Basis],
    ledger: Ledger,
    publications: Publications,
) -> None:
    """Go on where the run before has ended: streams, results to be sent, alarms, the ledger."""
    loop.outbox.restore(parcels)
    waiting = loop.outbox.waiting()
    for pipeline in journal.pipelines() - {*bases, NO_PIPELINE}:
        journal.forget(pipeline, account=not any(name == pipeline for name, _ in waiting))
    for name, wanted in bases.items():
        journal.forget_silent(name, most=lanes[name].queue.max_streams, waiting=waiting)
        for found, streams in journal.remembered(name).items():
            same_windows, same_model = found.windows == wanted.windows, found.model == wanted.model
            lanes[name].pipeline.restore(streams, same_windows=same_windows, same_model=same_model)
            same = {"same_windows": same_windows, "same_model": same_model}
            log.info("taken_up", extra={"pipeline": name, "streams": len(streams), **same})
    for key in journal.settled.accounts():
        ledger.restore(from_row(as_row(journal.settled.account(*key))))
    loop.states.restore(publications.state_change(pipeline, change) for pipeline, change in journal.shown())
    if journal.before is not None and journal.before.clean:
        journal.forget_notes()
    journal.write_node(Node(clean=False, sessions=journal.before.sessions if journal.before else {}))
    journal.commit(sync=False)
