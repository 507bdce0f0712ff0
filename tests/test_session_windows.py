"""A stream without numbers or sensor times over the restart of a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from broker import Broker, until
from bundles import means_manifest

from edge_runtime.delivery.ledger import Ledger
from edge_runtime.delivery.overload import InputQueue, QueueSettings
from edge_runtime.lanes import Connection, Lane
from edge_runtime.loop import Loop
from edge_runtime.monitor.latency import NoRecorder
from edge_runtime.mqtt.client import MqttClient
from edge_runtime.mqtt.publications import DeadLetterSettings, Publications
from edge_runtime.mqtt.topics import Routes, Tree, parse_source
from edge_runtime.records import Message, Turn
from edge_runtime.stream.decide import Decider, DecideSettings
from edge_runtime.stream.decode import SourceSettings, make_decoder
from edge_runtime.stream.pipeline import Clock, Pipeline
from edge_runtime.stream.window import WindowSettings
from edge_runtime.testing import MemoryClient, ModelOfMeans

MANIFEST = means_manifest(length=4, hop=4, rate_hz=10.0)
SOURCE = SourceSettings(topic="in/+machine")
AWAY_S = 5.0
Told = tuple[tuple[int, int], int, bool]
"""Numbers of a window's first and last message, samples missing, whether it spans a marked gap."""


class Ahead:
    """The monotonic clock, and so much more as a test has put it ahead."""

    def __init__(self) -> None:
        self.by_s = 0.0

    def __call__(self) -> int:
        return time.monotonic_ns() + round(self.by_s * 1e9)


class Node:
    """A pipeline of windows of four samples for each of the clients, in one loop."""

    def __init__(self, *clients: MqttClient | MemoryClient, on_gap: str = "reset", now_ns: Ahead) -> None:
        self.ledger, self.now_ns = Ledger(), now_ns
        self.told = [list[Told]() for _ in clients]
        names = [f"p{i}" for i in range(len(clients))]
        routes = [Routes([(name, parse_source(SOURCE.topic))]) for name in names]
        connections = [Connection(client, found) for client, found in zip(clients, routes, strict=True)]
        lanes = [self._lane(i, connection, on_gap) for i, connection in enumerate(connections)]
        self.loop = Loop(
            connections,
            lanes,
            ledger=self.ledger,
            publications=Publications(
                Tree("edge/v1", "n"), result_qos=dict.fromkeys(names, 1), dead_letters=DeadLetterSettings()
            ),
            worker=None,
            max_waiting=1000,
            now_ns=self.now_ns,
        )

    def _lane(self, i: int, connection: Connection, on_gap: str) -> Lane:
        pipeline = Pipeline(
            f"p{i}",
            spec=MANIFEST.input,
            window=WindowSettings(samples=4, hop=4, on_gap=on_gap),
            decode=make_decoder(SOURCE, 2),
            predictor=ModelOfMeans(),
            decider=Decider(DecideSettings(), labels=MANIFEST.labels),
            ledger=self.ledger,
            run_id="run",
            clock=Clock(self.now_ns, time.time_ns),
        )
        emit = pipeline.emit

        def noted(turn: Turn) -> None:
            self.told[i] += [((w.first_seq, w.last_seq), w.missing, w.gap) for w in turn.windows]
            emit(turn)

        pipeline.emit = noted
        return Lane(pipeline, InputQueue(QueueSettings(), max_streams=9), NoRecorder(), connection, inline=True)

    def taken(self) -> int:
        """Messages of the first pipeline, but for those that came again."""
        return sum(one.received - one.duplicates for one in self.loop.account().pipelines if one.pipeline == "p0")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        until(lambda: self.loop.step(0.01) or condition(), what=what)


@pytest.mark.broker
@pytest.mark.parametrize(
    ("kept", "on_gap", "wanted"),
    [
        (2, "reset", [((0, 3), 0, False), ((4, 7), 0, False)]),
        (0, "reset", [((2, 5), 0, False)]),
        (0, "mark", [((0, 3), 0, True)]),
    ],
)
def test_windows_over_the_restart_of_the_broker_are_whole_where_it_kept_our_messages(
    make_client: Callable[..., MqttClient],
    new_broker: Callable[..., Broker],
    kept: int,
    on_gap: str,
    wanted: list[Told],
) -> None:
    """Two messages before, two while we are away, of which so many are kept, four after."""
    broker = new_broker()
    broker.lines = (f"persistence {str(kept > 0).lower()}", f"persistence_location {broker.folder}/")
    broker.start()
    clock = Ahead()
    client = make_client(broker.url, subscriptions=[("in/+", 1)], now_ns=clock)
    node = Node(client, on_gap=on_gap, now_ns=clock)
    node.until(lambda: client.subscribed, "subscribed")
    publish(broker, 2)
    node.until(lambda: node.taken() == 2, "two messages")

    broker.stop()
    node.until(lambda: not client.connected, "the end of the connection")
    broker.start()
    publish(broker, 2)
    clock.by_s += AWAY_S
    node.until(lambda: client.subscribed, "subscribed again")
    publish(broker, 4)
    node.until(lambda: node.taken() == 6 + kept, "the last message")

    assert client.counters.sessions_lost == (not kept)
    assert node.told == [wanted]
    assert node.loop.account().imbalances == ()


def publish(broker: Broker, n: int) -> None:
    sensor = broker.probe()
    for _ in range(n):
        sensor.publish("in/a", b"[1, 0]")


def test_a_lost_session_is_told_to_the_pipelines_of_its_connection_alone() -> None:
    clients, clock = [MemoryClient(), MemoryClient()], Ahead()
    node = Node(*clients, now_ns=clock)

    def arrive(n: int, *epochs: int) -> None:
        for client, epoch in zip(clients, epochs, strict=True):
            client.arrive(*[Message("in/a", b"[1, 0]", clock(), 1, mid + 1, epoch=epoch) for mid in range(n)])
        node.loop.step(0.0)

    arrive(2, 1, 2)
    clients[1].lost_at = 3
    arrive(6, 4, 3)

    assert node.told == [[((0, 3), 0, False), ((4, 7), 0, False)], [((2, 5), 0, False)]]
