"""A running daemon measures what a workstation sends, and its pipelines do not notice."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile
import msgspec
import numpy as np
import psutil
import pytest
from broker import Broker, Probe, until
from bundles import means_model, slow_model
from daemon import Daemon, account, payload, subscribed, write_config
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_runtime.errors import ExportError, TransportError
from edge_runtime.model.compare import Graph, Request
from edge_runtime.mqtt.settings import MqttSettings
from export.artifact import Artifact
from export.measure import Latency
from export.probe import Failure
from export.remote import Remote

pytestmark = pytest.mark.broker

USERS = {"node": "node-secret", "workstation": "workstation-secret", "ann": "ann-secret"}
ACL = (
    "user node", "topic readwrite edge/v1/n1/#", "topic read in/#",
    "user workstation", "topic write edge/v1/+/cmd/bench", "topic read edge/v1/#", "topic write in/#",
    "user ann", "topic write edge/v1/n1/cmd/bench", "topic read edge/v1/n1/status", "topic read edge/v1/n1/info",
    "topic read edge/v1/n1/reply/#",
)  # fmt: skip
"""ann may what docs/remote-bench.md lets her."""
ONES = np.ones((1, 4, 2), np.float32)
FOREVER = np.full((1, 4, 2), 1e12, np.float32)
"""slow_model takes as many rounds as the largest sample says."""
MEANS, SLOW = means_model(length=4, channels=2), slow_model(length=4, channels=2)
WORKSTATION = {"username": "workstation", "password": USERS["workstation"]}
REPLY = "edge/v1/n1/reply/t"
PATCH = "from edge_runtime.model import child; child._give_way = lambda pid: None"
NOT_YIELDING = ("-c", f"{PATCH}; from edge_runtime.__main__ import main; main()")
"""On a machine that is busy with other tests, a child that gives way would not get far."""
RunNode = Callable[..., Daemon]


@pytest.fixture
def broker(start_broker: Callable[..., Broker]) -> Broker:
    return start_broker(users=USERS, acl=ACL)


def secret(folder: Path, user: str) -> Path:
    path = folder / f"{user}.pass"
    path.write_text(USERS[user])
    path.chmod(0o600)
    return path


@pytest.fixture
def run_node(broker: Broker, tmp_path: Path) -> Iterator[RunNode]:
    made: list[Daemon] = []

    def run(limits: str = "", *, allowed: bool = True, yielding: bool = False) -> Daemon:
        access = f'username = "node"\npassword_file = "{secret(tmp_path, "node")}"\nwill_delay_s = 0'
        config = write_config(tmp_path, broker.url, mqtt=access, more=f"[remote_bench]\n{limits}")
        if allowed:
            config.write_text(config.read_text().replace("[mqtt]", "allow_remote_bench = true\n\n[mqtt]"))
        made.append(Daemon(config, program=("-m", "edge_runtime") if yielding else NOT_YIELDING))
        made[-1].wait_connected(1 + allowed)
        subscribed(broker, tmp_path)
        if allowed:
            until(lambda: "Sending SUBACK to edge-runtime-n1-bench" in broker.log, what="SUBACK")
        return made[-1]

    yield run
    for daemon in made:
        daemon.close()


@pytest.fixture
def remote(broker: Broker, tmp_path: Path) -> Remote:
    address = broker.url.replace("://", "://ann@")
    return Remote.of(f"{address}/n1?password_file={secret(tmp_path, 'ann')}")


@pytest.fixture
def probe(broker: Broker) -> Probe:
    return broker.probe(REPLY, **WORKSTATION)


def graph(model: bytes = MEANS, **session: str) -> Artifact:
    return Artifact("m", "float32", model, "x", "y", (), session=session)


def request(candidate: bytes = MEANS, window: np.ndarray = ONES) -> bytes:
    document = Request(1, Graph(MEANS), Graph(candidate), "x", window.shape, window.tobytes(), rounds=20)
    return msgspec.msgpack.encode(document)


def ask(probe: Probe, body: bytes, *, reply: str = REPLY, correlation: bytes = b"1") -> None:
    properties = Properties(PacketTypes.PUBLISH)
    if reply:
        properties.ResponseTopic = reply
    if correlation:
        properties.CorrelationData = correlation
    probe.publish("edge/v1/n1/cmd/bench", body, properties=properties)


def answer(probe: Probe) -> dict[str, Any]:
    message = probe.wait_for(1, timeout_s=60)[0]
    return {**json.loads(message.payload), "correlation": message.properties.CorrelationData}


def children(daemon: Daemon) -> list[psutil.Process]:
    return psutil.Process(daemon.process.pid).children()


def test_a_candidate_is_measured_while_the_pipeline_runs_and_loses_nothing(
    broker: Broker, run_node: RunNode, remote: Remote
) -> None:
    daemon = run_node("timeout_s = 250", yielding=True)
    sensor = broker.probe("edge/v1/n1/p/p/out/#", **WORKSTATION)
    found: list[Latency | Failure] = []
    asking = threading.Thread(target=lambda: found.append(remote.cost(graph(), graph(), ONES, seed=3)))
    asking.start()
    sent = 0
    while asking.is_alive() or sent < 50:
        sensor.publish("in/a/v", payload(sent, [[0, 1]] * 4))
        asking.join(0.01)
        sent += 1
    results = [json.loads(message.payload) for message in sensor.wait_for(sent, timeout_s=20)]
    place = remote.place
    summary = daemon.stop()

    assert isinstance(found[0], Latency)
    assert found[0].rounds == 900
    assert 0 < found[0].p50_us <= found[0].p95_us
    assert remote.device is not None
    assert remote.device.cores == os.cpu_count()
    device = remote.device
    assert place == f"{remote.name}: {device.cpu}, {device.machine}, onnxruntime {device.onnxruntime}"
    assert [result["seq"] for result in results] == [[n, n] for n in range(sent)]
    assert summary["balanced"]
    assert [one["pipeline"] for one in summary["ledger"]["pipelines"]] == ["p"]
    assert account(summary)["confirmed"] == account(summary)["received"] == sent


def test_what_a_hostile_candidate_does_is_an_answer_and_the_next_one_is_measured(
    broker: Broker, run_node: RunNode, remote: Remote, probe: Probe
) -> None:
    daemon = run_node("memory_mb = 600\ncpu_s = 2")

    bomb = remote.cost(graph(), graph(hostile.memory_bomb(at_load=False)), ONES, seed=1)
    outside = remote.cost(graph(), graph(hostile.with_external_data("/etc/passwd")), ONES, seed=1)
    entry = remote.cost(graph(), graph(**{"session.optimized_model_filepath": "/tmp/x"}), ONES, seed=1)
    assert isinstance(bomb, Failure)
    assert "more memory than remote_bench.memory_mb = 600 allows" in bomb.reason
    assert isinstance(outside, Failure)
    assert outside.reason.startswith("refused on n1: the candidate: 1 of 3 tensors have their data outside the model")
    assert isinstance(entry, Failure)
    assert "session entries not allowed" in entry.reason

    ask(probe, request(SLOW, FOREVER), correlation=b"crash")
    until(lambda: bool(children(daemon)), what="a child")
    until(lambda: children(daemon)[0].cpu_times().user > 0.5, what="the child is at work", timeout_s=30)
    children(daemon)[0].send_signal(signal.SIGSEGV)
    crashed = answer(probe)
    assert (crashed["outcome"], crashed["correlation"]) == ("failed", b"crash")
    assert "crashed with SIGSEGV" in crashed["reason"]

    ask(probe, request(SLOW, FOREVER), correlation=b"slow")
    slow = answer(probe)
    assert slow["reason"] == "running the candidate: used more than remote_bench.cpu_s = 2 s of processor time"
    ask(probe, b"\x00garbage", correlation=b"garbage")
    garbage = answer(probe)
    assert (garbage["outcome"], garbage["reason"][:11]) == ("refused", "no request:")

    ask(probe, request())
    assert answer(probe)["outcome"] == "measured"
    assert daemon.stop()["balanced"]


def test_one_request_at_a_time_and_none_that_nobody_could_be_answered(
    broker: Broker, run_node: RunNode, probe: Probe
) -> None:
    daemon = run_node("max_request_bytes = 10_000")
    ask(probe, request(), reply="")
    ask(probe, request(), correlation=b"")
    ask(probe, request(), reply="in/a/v")
    ask(probe, bytes(10_001), correlation=b"large")
    assert (answer(probe)["outcome"], children(daemon)) == ("too_large", [])

    ask(probe, request(SLOW, FOREVER), correlation=b"first")
    until(lambda: bool(children(daemon)), what="a child")
    ask(probe, request(SLOW, FOREVER), correlation=b"first")
    ask(probe, request(), correlation=b"second")
    busy = answer(probe)
    assert (busy["outcome"], busy["correlation"]) == ("busy", b"second")
    child = children(daemon)[0]
    summary = daemon.stop()

    stopping = answer(probe)
    assert (stopping["outcome"], stopping["correlation"]) == ("stopping", b"first")
    assert not child.is_running()
    assert summary["balanced"]
    assert {line["reason"] for line in daemon.events("bench_request_dropped")} == {
        "without response topic or correlation data",
        "response topic not edge/v1/n1/reply/NAME",
        "sent again while it is measured",
    }
    assert probe.seen() == []


def test_off_by_default_nothing_listens_and_the_workstation_is_told(
    broker: Broker, run_node: RunNode, remote: Remote
) -> None:
    daemon = run_node(allowed=False)

    assert "cmd/bench" not in broker.log
    with pytest.raises(ExportError, match="does not allow it: its config needs node.allow_remote_bench = true"):
        remote.cost(graph(), graph(), ONES, seed=1)
    daemon.stop()
    with pytest.raises(ExportError, match="the node is stopped"):
        remote.cost(graph(), graph(), ONES, seed=1)


def test_a_node_that_is_not_there_and_a_broker_that_refuses_are_told_apart(
    broker: Broker, remote: Remote, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="no node of that name has been heard of at edge/v1/n1/status"):
        remote.cost(graph(), graph(), ONES, seed=1)
    with pytest.raises(TransportError, match="Not authorized"):
        Remote(MqttSettings(url=broker.url), "n1").cost(graph(), graph(), ONES, seed=1)


def test_a_request_that_nobody_takes_is_told_at_once(broker: Broker, remote: Remote) -> None:
    node = broker.probe(username="node", password=USERS["node"])
    node.publish("edge/v1/n1/status", b'{"state":"online","since":0,"boot_id":"b"}', retain=True)
    node.publish("edge/v1/n1/info", b'{"remote_bench":{"max_request_bytes":10000,"timeout_s":60}}', retain=True)

    with pytest.raises(ExportError, match="nobody takes requests on edge/v1/n1/cmd/bench"):
        remote.cost(graph(), graph(), ONES, seed=1)
    large = remote.cost(graph(bytes(9_999)), graph(), ONES, seed=1)
    assert isinstance(large, Failure)
    assert "more than remote_bench.max_request_bytes = 10000" in large.reason


def test_a_busy_node_is_asked_again_until_it_has_time(broker: Broker, run_node: RunNode, probe: Probe) -> None:
    run_node("cpu_s = 2")
    password_file = str(secret(broker.folder, "workstation"))
    settings = MqttSettings(url=broker.url, username="workstation", password_file=password_file)
    ask(probe, request(SLOW, FOREVER), correlation=b"first")
    with pytest.raises(ExportError, match="busy: another candidate is being measured"):
        Remote(settings, "n1", busy_s=0.0).cost(graph(), graph(), ONES, seed=1)

    assert isinstance(Remote(settings, "n1").cost(graph(), graph(), ONES, seed=1), Latency)
    assert answer(probe)["outcome"] == "failed"


def test_a_node_that_dies_while_it_measures_is_told_of_and_leaves_no_child(
    run_node: RunNode, remote: Remote, tmp_path: Path
) -> None:
    daemon = run_node()
    found: list[str] = []

    def measure() -> None:
        with pytest.raises(ExportError) as caught:
            remote.cost(graph(), graph(SLOW), FOREVER, seed=1)
        found.append(str(caught.value))

    asking = threading.Thread(target=measure)
    asking.start()
    until(lambda: bool(children(daemon)), what="a child")
    child = children(daemon)[0]
    daemon.process.kill()
    asking.join(20)

    assert found[0].endswith("/n1: the node is offline")
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, what="the child has ended")
    assert isinstance(_again(run_node, remote), Latency)


def _again(run_node: RunNode, remote: Remote) -> Latency | Failure:
    run_node()
    return remote.cost(graph(), graph(), ONES, seed=1)
