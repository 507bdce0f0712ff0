"""Whatever happens to parcels, in whatever order: what is said to wait is what waits, and nothing gets lost."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from boxes import NOT_AUTHORIZED, PLAIN, TOO_LARGE, Box
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_runtime.delivery.outbox import PARCEL_MESSAGES

FOLDER = Path("/dev/shm")


class Parcel:
    """What the model knows of a parcel: which of its results wait, and what became of the others."""

    def __init__(self, names: list[str], *, durable: bool) -> None:
        self.names, self.durable = names, durable
        self.waiting = set(names)
        self.confirmed = self.dropped = 0


class Parcels(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.root = TemporaryDirectory(dir=FOLDER if FOLDER.is_dir() else None)
        folder = Path(self.root.name) / "x"
        folder.mkdir()
        self.box = Box(folder, PLAIN)
        self.parcels: list[Parcel] = []
        self.over: list[Parcel] = []
        self.made = 0
        self.published: set[str] = set()

    @rule(n=st.integers(1, 20), durable=st.booleans())
    def send(self, n: int, durable: bool) -> None:
        names = [str(self.made + i) for i in range(n)]
        self.made += n
        for i in range(0, n, PARCEL_MESSAGES):
            self.parcels.append(Parcel(names[i : i + PARCEL_MESSAGES], durable=durable))
        self.box.send(*names, durable=durable)
        self._committed()

    @rule(connected=st.booleans())
    def connection(self, connected: bool) -> None:
        self.box.client.connected = connected

    @rule(data=st.data(), refuse=st.sampled_from(["", "", NOT_AUTHORIZED, TOO_LARGE]))
    def answer(self, data: st.DataObject, refuse: str) -> None:
        tokens = list(self.box.client._unconfirmed)
        if not tokens:
            return
        chosen = data.draw(st.lists(st.sampled_from(tokens), unique=True, max_size=30))
        for token in chosen:
            self._answered(self.box.client.published[token - 1].payload.decode(), refuse)
        self.box.answer(chosen, refuse=refuse)

    def _answered(self, name: str, refuse: str) -> None:
        parcel = next(one for one in self.parcels if name in one.waiting)
        if refuse == NOT_AUTHORIZED and parcel.durable:
            return
        parcel.waiting.remove(name)
        if refuse:
            parcel.dropped += 1
        else:
            parcel.confirmed += 1

    @rule(s=st.sampled_from([0.0, 1.0, 100.0]))
    def wait(self, s: float) -> None:
        self.box.wait(s)
        self._committed()

    @rule(committed=st.booleans())
    def crash(self, committed: bool) -> None:
        self._publish()
        if committed:
            self.box.journal.commit(sync=False)
            self._committed()
        self.box = self.box.again()
        left = [parcel for parcel in self.parcels if parcel.durable and parcel not in self.over]
        self.parcels = [Parcel(parcel.names, durable=True) for parcel in left] + [
            one for one in self.over if one.durable
        ]
        self.over = [one for one in self.over if one.durable]

    @invariant()
    def what_waits_is_what_is_said_to_wait(self) -> None:
        box = self.box
        assert box.waiting == sum(len(parcel.waiting) for parcel in self.parcels)
        kept = [parcel for parcel in self.parcels if parcel.durable and parcel.waiting]
        assert box.outbox.kept_messages == sum(len(parcel.names) for parcel in kept)
        assert (box.outbox.kept_bytes > 0) == bool(kept)
        account = box.ledger.account("p", "a")
        assert account.confirmed == sum(parcel.confirmed for parcel in self.parcels)
        assert sum(account.results_dropped.values()) == sum(parcel.dropped for parcel in self.parcels)

    def teardown(self) -> None:
        with self.root:
            self._send_all()
            self.box.store.close()

    def _send_all(self) -> None:
        """In the end the broker takes everything."""
        self.box.client.connected = True
        for _ in range(100):
            if not self.box.waiting:
                break
            self.box.wait(100.0)
            for token in self.box.client._unconfirmed:
                self._answered(self.box.client.published[token - 1].payload.decode(), "")
            self.box.answer()
        self._publish()
        self.what_waits_is_what_is_said_to_wait()
        self.box.wait(1.0)
        assert (self.box.waiting, self.box.on_disk()) == (0, 0)
        assert self.published >= {name for parcel in self.parcels for name in parcel.names}

    def _publish(self) -> None:
        self.published |= {out.payload.decode() for out in self.box.client.published}

    def _committed(self) -> None:
        """What is over by now does not come again after a crash."""
        self.over += [parcel for parcel in self.parcels if not parcel.waiting and parcel not in self.over]


TestParcels = Parcels.TestCase
TestParcels.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
