"""After an end that was not in order, what comes again is taken one by one: one of it may have been the reason."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
from broker import until
from durable import Node, Plan, SessionBroker, row

from edge_runtime.delivery.journal import NOTE
from edge_runtime.delivery.overload import QueueSettings
from edge_runtime.delivery.store import StoreSettings
from edge_runtime.records import Turn
from edge_runtime.testing import ModelOfMeans

BOTH = {"p": Plan(), "m": Plan(delivery="memory")}


def sends(node: Node, n: int, *, first: int = 0, topic: str = "in/a") -> None:
    for i in range(first, first + n):
        node.broker.send(topic, row(i, 0.0))


class Killer(ModelOfMeans):
    """A model that a window of a certain height kills the process with."""

    def predict(self, inputs):
        if inputs.max() > 5:
            raise KeyboardInterrupt
        return super().predict(inputs)


def test_a_message_that_killed_the_process_twice_after_it_was_noted_is_dead_lettered(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    node = Node(folder, model=Killer())
    sends(node, 3)
    node.broker.send("in/a", row(3, 9.0))
    node.broker.send("in/b", row(0, 0.0))
    sends(node, 5, first=4)
    for life in range(3):
        with pytest.raises(KeyboardInterrupt):
            node.loop.step(0.0)
        node = Node(node.crash(), node.broker, node.plans, model=Killer())
        assert life == 0 or node.records()[NOTE] == 1
    node.steps(3, s=1.1)

    letters = [body for _, body in node.broker.documents("/dead")]
    assert [(one["reason"], one["stream"]) for one in letters] == [("poison", "a")]
    assert node.broker.unacknowledged == {}
    assert [body["seq"] for _, body in node.broker.documents("/out/")] == [[4, 7]]
    account = node.account()
    assert (account.dead_lettered, account.accepted, account.lost_before_us) == (1, 9, 0)
    sends(node, 1, first=9)
    node.steps(3, s=1.1)
    assert not node.lanes["p"].careful
    assert node.records()[NOTE] == 0


def test_a_message_does_not_suffer_for_another_pipeline_that_kills_the_process(tmp_path: Path) -> None:
    def die(_turn: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "x"
    folder.mkdir()
    node = Node(folder, plans=BOTH)
    sends(node, 3)
    for _ in range(4):
        node.lanes["m"].pipeline.predict = die
        with pytest.raises(KeyboardInterrupt):
            node.loop.step(0.0)
        node = Node(node.crash(), node.broker, BOTH)
    node.steps(2)

    assert (node.account("p").accepted, node.account("p").dead_lettered) == (3, 0)


@pytest.mark.parametrize("worker", [False, True])
def test_what_comes_again_is_not_dropped_for_being_taken_one_by_one(tmp_path: Path, worker: bool) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    plans = {"p": Plan(queue=QueueSettings(max=5))}
    node = Node(folder, plans=plans, store=StoreSettings(commit_wait_ms=1e9), worker=worker)
    for n in range(4):
        for stream in "abc":
            sends(node, 5, first=5 * n, topic=f"in/{stream}")
        node.loop.step(0.0)
        node.until(lambda: not any(lane.in_flight or len(lane.queue) for lane in node.lanes.values()))
    assert node.broker.acknowledged == []
    after, let_go = Node(node.crash(), node.broker, plans, worker=worker), threading.Event()
    predict = after.model.predict
    after.model.predict = lambda inputs: (let_go.wait(10) if worker else None, predict(inputs))[1]
    after.client.poll = _by(after.client.poll, after.client, 10)
    for _ in range(8):
        after.loop.step(0.0)
        assert len(after.lanes["p"].in_flight) <= 1
    let_go.set()
    after.until(lambda: not after.broker.unacknowledged)
    after.until(lambda: after.account().waiting == 0)
    assert (after.account().accepted, after.account().dropped) == (60, {})
    after.end()


def _by(poll, client, most):
    """A read that holds no more than so many messages."""

    def polled(timeout_s: float):
        kept, client._arrived = list(client._arrived)[most:], type(client._arrived)(list(client._arrived)[:most])
        found = poll(timeout_s)
        client._arrived.extend(kept)
        return found

    return polled


def test_of_two_pipelines_on_the_worker_only_the_one_that_kills_the_process_loses_a_message(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    plans = {name: Plan(source=msgspec.structs.replace(Plan().source, topic=f"{name}/+machine")) for name in "ab"}

    def started(folder: Path, broker: SessionBroker | None = None) -> Node:
        node = Node(folder, broker, plans, worker=True)
        predict = node.lanes["a"].pipeline.predict

        def or_die(turn: Turn) -> None:
            if any(b"9.0" in message.payload for run in turn.messages for message in run.messages):
                raise KeyboardInterrupt
            predict(turn)

        node.lanes["a"].pipeline.predict = or_die
        return node

    node = started(folder)
    node.broker.send("a/x", row(0, 9.0))
    sends(node, 4, topic="b/y")
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            node.steps(1000)
        node = started(node.crash(), node.broker)
    until(lambda: node.loop.step(0.005) or not node.broker.unacknowledged, what="everything is acknowledged")
    node.worker.stop()

    assert [(node.account(name).accepted, node.account(name).dead_lettered) for name in "ab"] == [(0, 1), (4, 0)]


def test_a_careful_pipeline_whose_sensor_is_silent_holds_up_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    plans = {name: Plan(source=msgspec.structs.replace(Plan().source, topic=f"{name}/+machine")) for name in "ab"}
    node = Node(folder, plans=plans)
    sends(node, 1, topic="b/y")
    node.steps(2)
    node = Node(node.crash(), node.broker, plans, worker=True)
    let_go = threading.Event()
    predict = node.lanes["b"].pipeline.predict
    node.lanes["b"].pipeline.predict = lambda turn: (let_go.wait(10), predict(turn))
    sends(node, 8, first=1, topic="b/y")
    for _ in range(4):
        node.loop.step(0.0)
    sends(node, 8, first=9, topic="b/y")
    for _ in range(4):
        node.loop.step(0.0)

    assert node.lanes["a"].careful
    assert len(node.lanes["b"].in_flight) == 2
    let_go.set()
    node.until(lambda: not node.broker.unacknowledged)
    node.worker.stop()
