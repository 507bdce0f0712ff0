"""An outbox over a real store, with a broker that answers when it is told to."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from edge_runtime.delivery.journal import PARCEL, Basis, Journal
from edge_runtime.delivery.ledger import Ledger, as_row, from_row
from edge_runtime.delivery.outbox import Outbox
from edge_runtime.delivery.parcels import REPLAYED, Kind, Parcels
from edge_runtime.delivery.store import Store, StoreSettings
from edge_runtime.mqtt.transport import is_permanent
from edge_runtime.records import Outgoing
from edge_runtime.testing import ManualClock, MemoryClient

NOT_AUTHORIZED, TOO_LARGE = "Not authorized: by the ACL", "packet too large: 9 bytes, the broker takes 5"
PLAIN = StoreSettings(replay_per_s=1e6)


class Box:
    """An outbox over a real store; the broker answers when it is told to."""

    def __init__(
        self, folder: Path, options: StoreSettings = PLAIN, *, clock: ManualClock | None = None, max_waiting: int = 1000
    ) -> None:
        self.folder, self.options = folder, options
        self.clock = clock or ManualClock(monotonic_ns=1_000_000_000)
        self.client, self.ledger = _Client(), Ledger()
        self.client.withhold_confirmations = True
        self.store = Store(folder / "store.db", options, now_ns=lambda: self.clock.monotonic_ns)
        parcels = Parcels(now_ns=self.clock.monotonic_ns, unix_s=self.clock.unix_ns / 1e9)
        records = self.store.load(taken=parcels.take)
        self.journal = Journal(self.store, memory=8, bases={"p": Basis("", "")})
        self.journal.restore(records)
        self.jitter = 0.0
        self.letters: list[tuple[str, str, bytes, str]] = []
        self.outbox = Outbox(
            self.client,
            ledger=self.ledger,
            journal=self.journal,
            settings=options,
            max_waiting=max_waiting,
            is_permanent=is_permanent,
            on_refused=lambda pipeline, stream, message, why: self.letters.append(
                (pipeline, stream, message.payload, why)
            ),
            now_ns=lambda: self.clock.monotonic_ns,
            unix_s=lambda: self.clock.unix_ns / 1e9,
            uniform=lambda: self.jitter,
        )
        self.outbox.restore(parcels.oldest_first(self.store.holds))
        for key in self.journal.settled.accounts():
            self.ledger.restore(from_row(as_row(self.journal.settled.account(*key))))

    def send(self, *names: str, stream: str = "a", kind: Kind = "result", durable: bool = True, qos: int = 1) -> None:
        """Messages of one turn, named by their payloads, through a commit."""
        streams = [stream] * len(names)
        messages = [Outgoing(f"out/{stream}", name.encode(), qos, content_type="application/json") for name in names]
        parcels = self.outbox.pack("p", kind, streams, messages, durable=durable)
        self.journal.commit(sync=False)
        self.outbox.hand_over("p", kind, streams, messages, parcels)
        self.outbox.register()

    def answer(self, tokens: Sequence[int] | None = None, *, refuse: str = "") -> None:
        """The broker takes, or refuses, these messages, or all it was given and has not answered."""
        tokens = self.client._unconfirmed if tokens is None else tokens
        for token in list(tokens):
            self.client._unconfirmed.remove(token)
            if refuse:
                self.outbox.failed(token, refuse)
            else:
                self.outbox.delivered([token])

    def sent(self) -> list[str]:
        """What was published, with a mark on what was said to be replayed; it is forgotten here."""
        published, self.client.published = self.client.published, _Tail(len(self.client.published))
        return [("*" if out.user == REPLAYED else "") + out.payload.decode() for out in published]

    def wait(self, s: float) -> None:
        self.clock.advance(s)
        self.outbox.review()
        self.outbox.replay()
        self.journal.commit(sync=False)

    @property
    def waiting(self) -> int:
        return sum(self.outbox.waiting().values())

    def dropped(self, stream: str = "a") -> dict[str, int]:
        return self.ledger.account("p", stream).results_dropped

    def again(self) -> Box:
        """The process is killed; the next one."""
        after = self.folder.with_name(self.folder.name + "'")
        shutil.copytree(self.folder, after)
        self.store.close()
        return Box(after, self.options, clock=self.clock)

    def on_disk(self) -> int:
        """Parcels that lie there."""
        with TemporaryDirectory() as folder:
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)
            store = Store(Path(folder) / "store.db", self.options)
            kinds = [record.kind for record in store.load()]
            store.close()
        return kinds.count(PARCEL)


class _Client(MemoryClient):
    def publish_all(self, messages: Sequence[Outgoing]) -> int:
        assert messages, "at least one, says transport.Client"
        return super().publish_all(messages)


class _Tail(list[Outgoing]):
    """What is published from now on, with tokens that go on counting."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self._before = before

    def __len__(self) -> int:
        return super().__len__() + self._before

    def __iadd__(self, other):
        self.extend(other)
        return self
