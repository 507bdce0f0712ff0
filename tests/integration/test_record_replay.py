"""Record at a real broker, replay to one and without one, held against the daemon's own results."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from broker import Broker, until
from daemon import Daemon, subscribed, write_config
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

import edge_runtime
from edge_runtime import report
from edge_runtime.cli import main
from edge_runtime.config import load
from edge_runtime.demo.pump import PUMPS, RATE_HZ, Pump, to_int16
from edge_runtime.mqtt.client import MqttClient
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.record import FINISH_S, RecordLimits, RecordSummary, plain_filter
from edge_runtime.record import record as run_record
from edge_runtime.records import Message, Properties
from edge_runtime.replay import ReplaySummary, _Tape, through_pipelines
from edge_runtime.stream.recording import Recording, RecordingHeader, RecordingWriter

pytestmark = pytest.mark.broker

STILL, MOVING = [[1, 0]] * 4, [[0, 1]] * 4
MS = 1_000_000
BY_SENSOR_TIME = """
[pipelines.q]
source = { topic = "in/+machine/v", path = "v", seq_field = "n", time_field = "t" }
window = { hop = 2, max_gap_samples = 4 }
model = "means"
decide = { alarm_on = "not still", score = 0.7, k = 2, n = 3 }

[pipelines.raw]
source = { topic = "raw/+machine", format = "raw", seq_property = "seq", time_property = "t" }
model = "means"
"""
PUMP_CONFIG = """
[node]
id = "n1"
[mqtt]
url = "mqtt://localhost"
[models.pump]
bundle = "{bundle}"
[pipelines.vibration]
source = {{ topic = "plant/+pump/vib", format = "raw", dtype = "int16", scale = 0.000488, seq_property = "seq" }}
model = "pump"
decide = {{ alarm_on = "not ok", score = 0.5 }}
[pipelines.uncounted]
source = {{ topic = "plant/+pump/vib", format = "raw", dtype = "int16", scale = 0.000488 }}
window = {{ hop = 256 }}
model = "pump"
"""

Start = Callable[..., subprocess.Popen[bytes]]


def command(*arguments: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", "edge_runtime", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, timeout=60, env={**os.environ, **environment}, check=False)
    assert not check or done.returncode == 0, done.stderr.decode()
    return done


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[subprocess.Popen[bytes]] = []

    def run(*arguments: object, shell: str = "") -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", "edge_runtime", *map(str, arguments)]
        line = ["sh", "-c", f'{shell}; exec "$@"', "sh", *line] if shell else line
        made.append(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return made[-1]

    yield run
    for process in made:
        process.kill()
        process.communicate()


@pytest.fixture
def run_daemon() -> Iterator[Callable[[Path], Daemon]]:
    made: list[Daemon] = []

    def run(config: Path) -> Daemon:
        made.append(Daemon(config))
        made[-1].wait_connected()
        return made[-1]

    yield run
    for daemon in made:
        daemon.close()


def recording_begun(broker: Broker, times: int = 1) -> None:
    until(lambda: broker.log.count("Sending SUBACK to edge-runtime-record-") >= times, what="record has subscribed")


def ended(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def payload(n: int, rows: list[list[float]], boot: int = 0) -> bytes:
    return json.dumps({"n": n, "t": 1_700_000_000 + 1000 * boot + n * 0.5, "v": rows}).encode()


def properties(n: int) -> Properties:
    return Properties(user=(("seq", str(n)), ("t", str(1_700_000_000 + n))))


def troubled() -> list[Message]:
    """Gaps, duplicates, late and broken messages, restarts, a topic nobody takes, retained state; 10 ms apart."""
    numbers = [0, 1, 2, 2, 3, 6, 7, 5, 30, 31, 32, 33, 33, 34, 0, 1, 2, 3, 4, 3, 5, 6]
    found = []
    for i, n in enumerate(numbers):
        boot = int(i >= 14)
        rows = (MOVING if n % 7 > 3 else STILL)[: 2 + n % 3]
        found += [Message(f"in/{machine}/v", payload(n, rows, boot), 0, qos=1) for machine in ("a", "b")]
        raw = b"".join(bytes.fromhex("0000803f00000000") for _ in range(4))
        found.append(Message("raw/c", raw, 0, qos=1, properties=properties(n)))
        found.append(Message("in/a/v", b"{" * (i % 2) + b"[]", 0, qos=1))
    found.append(Message("other/topic", b"1", 0, qos=1))
    found.append(Message("in/a/v", payload(99, STILL), 0, retain=True))
    return [msgspec.structs.replace(message, received_ns=i * 10 * MS) for i, message in enumerate(found)]


def write(path: Path, messages: list[Message]) -> Path:
    with closing(RecordingWriter(path, RecordingHeader("0123abcd", 1_700_000_000 * 10**9), start_ns=0)) as writer:
        for message in messages:
            writer.write(message)
    return path


def by_topic(documents: list[tuple[str, dict]]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for topic, document in documents:
        found.setdefault(topic, []).append({key: value for key, value in document.items() if key != "lat_ms"})
    return found


def through(recording: Path, config: Path, seen: list[Message]) -> ReplaySummary:
    """An offline replay in this process; seen: gets the messages that the loop was handed."""
    known, poll = load(config), _Tape.poll

    def spy(tape: _Tape, timeout_s: float) -> list[Message]:
        messages = poll(tape, timeout_s)
        seen.extend(messages)
        return messages

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Tape, "poll", spy)
        return through_pipelines(Recording(recording), known, str(config), lambda _line: None)


def offline(recording: Path, config: Path) -> dict[str, list[dict]]:
    lines = command("replay", recording, config, "--offline").stdout.splitlines()
    return by_topic([(line["topic"], line["payload"]) for line in map(json.loads, lines)])


def is_near(found: dict, wanted: dict) -> None:
    """Equal, but for times of receipt, which may differ by half a second."""
    for key in ("t0", "t1", "since", "start", "end", "peak_at"):
        if key in wanted:
            assert found.pop(key) == pytest.approx(wanted.pop(key), abs=0.5)
    assert found == wanted


def test_an_offline_replay_gives_what_the_daemon_published_on_the_same_messages(
    broker: Broker, start: Start, run_daemon: Callable[[Path], Daemon], tmp_path: Path
) -> None:
    config = write_config(tmp_path, broker.url, more=BY_SENSOR_TIME)
    daemon = run_daemon(config)
    subscribed(broker, tmp_path)
    record = start("record", config, "-o", tmp_path / "a.rec", "--json")
    recording_begun(broker)
    probe = broker.probe("edge/v1/n1/p/#")
    sent = [message for message in troubled() if not message.retain and message.topic != "other/topic"]
    for message in sent:
        found = PahoProperties(PacketTypes.PUBLISH)
        if message.properties.user:
            found.UserProperty = list(message.properties.user)
        probe.publish(message.topic, message.payload, qos=message.qos, properties=found)
    until(lambda: len(list(Recording(tmp_path / "a.rec"))) == len(sent), what="all is recorded")
    summary = ended(record)
    ledger = daemon.stop()["ledger"]

    assert (summary["messages"], summary["topics"], summary["disconnects"]) == (len(sent), 3, 0)
    assert summary["bytes"] == (tmp_path / "a.rec").stat().st_size
    again = offline(tmp_path / "a.rec", config)
    live = by_topic([(m.topic, json.loads(m.payload)) for m in probe.seen()])
    letters = {topic: live.pop(topic) for topic in list(live) if topic.endswith("/dead")}
    assert {topic: len(documents) for topic, documents in live.items()} == {
        topic: len(documents) for topic, documents in again.items() if not topic.endswith("/dead")
    }
    for topic, documents in live.items():
        for found, wanted in zip(again[topic], documents, strict=True):
            if "/p/p/" in topic:
                is_near(found, wanted)
            else:
                assert found == wanted
    for topic, documents in letters.items():
        assert documents == again[topic][: len(documents)]
    assert sum(len(documents) for topic, documents in live.items() if "/out/" in topic) > 40
    assert any("/state/" in topic for topic in live)
    account = json.loads(command("replay", tmp_path / "a.rec", config, "--offline", "-o", os.devnull, "--json").stdout)
    assert account["ledger"]["pipelines"] == ledger["pipelines"]


def test_a_replay_to_a_broker_gives_a_daemon_there_the_same_results(
    broker: Broker, run_daemon: Callable[[Path], Daemon], tmp_path: Path
) -> None:
    config = write_config(tmp_path, broker.url, more=BY_SENSOR_TIME)
    sent = troubled()
    recording = write(tmp_path / "a.rec", sent)
    wanted = offline(recording, config)
    daemon = run_daemon(config)
    subscribed(broker, tmp_path)
    probe, inputs = broker.probe("edge/v1/n1/p/#"), broker.probe("in/#", "raw/#", "other/#")
    summary = json.loads(command("replay", recording, config, "--speed", "max", "--json").stdout)
    received = inputs.wait_for(len(sent) - 1)
    daemon.stop()

    assert (summary["published"], summary["retained"], summary["refused"]) == (len(sent) - 1, 1, {})
    assert summary["behind_s"] is None
    assert [(m.topic, m.payload) for m in received] == [(m.topic, m.payload) for m in sent[:-1]]
    live = by_topic([(m.topic, json.loads(m.payload)) for m in probe.seen()])
    for pipeline in ("q", "raw"):
        topics = [topic for topic in wanted if f"/p/{pipeline}/" in topic and not topic.endswith("/dead")]
        assert topics
        assert {topic: live[topic] for topic in topics} == {topic: wanted[topic] for topic in topics}


def test_the_same_recording_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    config = write_config(tmp_path, "mqtt://localhost", more=BY_SENSOR_TIME + OVERLAPPING)
    recording = write(tmp_path / "a.rec", troubled())
    first = command("replay", recording, config, "--offline", PYTHONHASHSEED="1")
    second = command("replay", recording, config, "--offline", "-o", tmp_path / "b", "--json", PYTHONHASHSEED="2")

    assert first.stdout == (tmp_path / "b").read_bytes()
    summary = json.loads(second.stdout)
    assert summary["balanced"]
    assert summary["documents"] == first.stdout.count(b"\n") > 100
    accounts = {account["pipeline"]: account for account in summary["ledger"]["pipelines"]}
    assert accounts["p"]["duplicates"] > 0
    assert accounts["p"]["restarts"] == 2  # of two streams
    assert accounts["p"]["lost_before_us"] > 0
    assert accounts["p"]["dropped"]["stale_retained"] == 1
    assert accounts["p"]["dead_lettered"] == 22
    assert "-" not in accounts
    assert summary["unrouted"] == 1
    assert b"skipped 1 unrouted" in first.stderr
    lines = [json.loads(line) for line in first.stdout.splitlines()]
    assert not [line for line in lines if line["topic"] == "edge/v1/n1/p/-/dead"]
    assert sum(line["topic"] == "edge/v1/n1/p/p/dead" for line in lines) == 22
    assert not any("lat_ms" in line["payload"] for line in lines)
    assert b"balanced" in first.stderr


def test_a_message_is_finished_by_every_pipeline_before_the_next_is_taken(tmp_path: Path) -> None:
    config = write_config(tmp_path, "mqtt://localhost", more=OVERLAPPING.replace('publish = "change"', ""))
    recording = write(tmp_path / "a.rec", [Message("in/a/v", payload(n, STILL), n) for n in range(3)])
    lines = command("replay", recording, config, "--offline").stdout.splitlines()

    results = [topic for topic in (json.loads(line)["topic"] for line in lines) if "/out/" in topic]
    assert results == ["edge/v1/n1/p/p/out/a", "edge/v1/n1/p/unnumbered/out/a/v"] * 3


OVERLAPPING = """
[pipelines.unnumbered]
source = { topic = "in/#rest", path = "v" }
model = "means"
publish = "change"
"""


def test_a_quantized_network_gives_the_same_bytes_twice_through_gaps_and_restarts(tmp_path: Path) -> None:
    bundle = Path(edge_runtime.__file__).parent / "demo" / "pump-vibration.edge"
    config = tmp_path / "pump.toml"
    config.write_text(PUMP_CONFIG.format(bundle=bundle))
    sent = []
    for pump, (name, spec) in enumerate(PUMPS.items()):
        simulated = Pump(spec, seed=3)
        for i, seq in enumerate([*range(10), *range(14, 24), *range(10)]):
            body = to_int16(simulated.chunk(round(RATE_HZ * 0.25))).tobytes()
            at_ns = i * 250 * MS + pump * MS
            sent.append(Message(f"plant/{name}/vib", body, at_ns, 1, properties=Properties(user=(("seq", str(seq)),))))
    recording = write(tmp_path / "a.rec", sorted(sent, key=lambda message: message.received_ns))
    first, second = (
        command("replay", recording, config, "--offline", PYTHONHASHSEED=str(seed)).stdout for seed in (1, 2)
    )

    assert first == second
    results = [json.loads(line)["payload"] for line in first.splitlines() if b"/out/" in line]
    assert {result["pipeline"] for result in results} == {"vibration", "uncounted"}
    assert len(results) > 300
    assert len({result["id"] for result in results}) == len(results)
    assert [r["t1"] for r in results] != sorted({r["t1"] for r in results})
    assert min(r["t0"] for r in results) == pytest.approx(1_700_000_000, abs=1.0)


def test_a_torn_recording_is_replayed_up_to_the_tear_and_says_so(tmp_path: Path) -> None:
    config = write_config(tmp_path, "mqtt://localhost")
    recording = write(tmp_path / "a.rec", [Message("in/a/v", payload(n, STILL), n) for n in range(3)])
    recording.write_bytes(recording.read_bytes()[:-5])
    done = command("replay", recording, config, "--offline")
    apart = command("replay", recording, config, "--offline", "-o", tmp_path / "out", "--json")

    assert len(done.stdout.splitlines()) == 2 + 1
    for found in (done, apart):
        assert found.stderr.count(b"warning: the last ") == 1
        assert b"bytes of the recording are unread: cut off" in found.stderr
    assert "cut off" in json.loads(apart.stdout)["problem"]


def test_a_torn_recording_is_published_up_to_the_tear_and_says_so(broker: Broker, tmp_path: Path) -> None:
    recording = write(tmp_path / "a.rec", [Message("in/a/v", payload(n, STILL), n) for n in range(3)])
    recording.write_bytes(recording.read_bytes()[:-5])
    done = command("replay", recording, "--broker", broker.url, "--json")

    assert json.loads(done.stdout)["published"] == 2
    assert b"warning: the last " in done.stderr


def test_offline_a_pipeline_gets_what_its_subscriptions_would_bring_it(tmp_path: Path) -> None:
    lowered = BY_SENSOR_TIME.replace(
        'source = { topic = "in/+machine/v"', 'source = { topic = "low/+machine/v", qos = 0'
    )
    config = write_config(tmp_path, "mqtt://localhost", more=lowered)
    dup = [
        Message(topic, json.dumps(STILL).encode(), n * MS, qos=1, dup=n % 2 == 1)
        for topic in ("raw/a", "low/a/v", "other/topic", "low//v", "\x00low/\\xff/v", "\x00other/\\xff")
        for n in range(2)
    ]
    seen: list[Message] = []
    found = through(write(tmp_path / "a.rec", dup), config, seen)

    assert [(m.topic, m.qos, m.dup) for m in seen] == [
        ("raw/a", 1, False),
        ("raw/a", 1, True),
        *[("low/a/v", 0, False)] * 2,
        *[("low//v", 0, False)] * 2,
        *[("\x00low/\\xff/v", 0, False)] * 2,
    ]
    assert (found.messages, found.unrouted) == (8, 4)
    letters = {a.pipeline: a.dead_lettered for a in found.ledger.pipelines}
    assert letters["-"] == 4  # the daemon is subscribed to them: an empty level, and text that is not UTF-8


def test_an_output_that_exists_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    config = write_config(tmp_path, "mqtt://localhost")
    recording = write(tmp_path / "a.rec", [Message("in/a/v", payload(n, STILL), n) for n in range(3)])
    folder = tmp_path / "results"
    folder.mkdir()
    output = folder / "out.jsonl"
    output.write_bytes(b"precious")
    link = folder / "link"
    link.symlink_to(output)
    bundle = tmp_path / "broken.toml"
    bundle.write_text(config.read_text().replace(".edge", ".gone"))
    failed = command("replay", recording, bundle, "--offline", "-o", link, check=False)

    assert failed.returncode != 0
    assert output.read_bytes() == b"precious"
    command("replay", recording, config, "--offline", "-o", link)
    assert output.read_bytes().count(b"\n") == 3 + 1  # results, and the first state
    assert link.is_symlink()
    assert {path.name for path in folder.iterdir()} == {"out.jsonl", "link"}


def test_properties_come_back_as_they_were_recorded(broker: Broker, start: Start, tmp_path: Path) -> None:
    probe = broker.probe("in/#")
    record = start("record", "--broker", broker.url, "--topic", "in/#", "-o", tmp_path / "a.rec", "--messages", 1)
    recording_begun(broker)
    sent = PahoProperties(PacketTypes.PUBLISH)
    sent.ContentType, sent.ResponseTopic, sent.CorrelationData = "text/plain", "answer/here", b"\x00\x01"
    sent.UserProperty, sent.MessageExpiryInterval = [("seq", "7"), ("seq", "8"), ("", "ü")], 60
    probe.publish("in/a", b"hello", properties=sent)
    assert record.wait(20) == 0
    command("replay", tmp_path / "a.rec", "--broker", broker.url)
    first, again = probe.wait_for(2)

    for found in (first, again):
        assert (found.payload, found.qos, found.retain) == (b"hello", 1, False)
        assert vars(found.properties) == vars(first.properties)
    assert again.properties.UserProperty == [("seq", "7"), ("seq", "8"), ("", "ü")]
    assert again.properties.CorrelationData == b"\x00\x01"


def test_on_mqtt_3_stored_state_is_recorded_as_such_and_properties_lost_in_a_replay_are_counted(
    broker: Broker, start: Start, tmp_path: Path
) -> None:
    config = write_config(tmp_path, broker.url, mqtt='protocol = "3.1.1"')
    probe = broker.probe()
    probe.publish("in/a/v", payload(0, STILL), retain=True)
    record = start("record", config, "-o", tmp_path / "a.rec", "--messages", 2)
    recording_begun(broker)
    probe.publish("in/b/v", payload(1, STILL), retain=True)
    assert record.wait(20) == 0
    found = [(message.topic, message.retain) for message in Recording(tmp_path / "a.rec")]

    assert found == [("in/a/v", True), ("in/b/v", False)]
    sent = write(tmp_path / "b.rec", [Message("x", b"", 0, properties=properties(1)), Message("x", b"", 0)])
    summary = json.loads(command("replay", sent, config, "--json").stdout)
    assert (summary["published"], summary["without_properties"]) == (2, 1)


@pytest.mark.parametrize(("speed", "gap_ms"), [(1, 100), (20, 2000)])
def test_messages_go_out_in_their_time(broker: Broker, tmp_path: Path, speed: int, gap_ms: int) -> None:
    sent = [Message("in/a", b"x", 10**12 + n * gap_ms * MS, qos=n % 2) for n in range(5)]
    recording = write(tmp_path / "a.rec", sent)
    probe = broker.probe("in/#")
    done = command("replay", recording, "--broker", broker.url, "--speed", speed, "--json")
    summary = json.loads(done.stdout)

    assert len(probe.wait_for(5)) == 5
    assert 0.4 <= summary["seconds"] < 2.4
    assert 0 < summary["behind_s"] < 1


def test_a_replay_outlives_its_broker_and_publishes_everything(broker: Broker, start: Start, tmp_path: Path) -> None:
    messages = [Message("in/a", str(n).encode(), n * 2 * MS, qos=1) for n in range(500)]
    recording = write(tmp_path / "a.rec", messages)
    probe = broker.probe("in/#")
    replay = start("replay", recording, "--broker", broker.url, "--json")
    before = probe.wait_for(50)
    broker.kill()
    broker.start()
    out, err = replay.communicate(timeout=30)
    summary = json.loads(out)

    assert replay.returncode == 0, err
    assert len(before) == 50
    assert (summary["published"], summary["refused"]) == (500, {})
    assert broker.log.count(" as edge-runtime-replay-") == 2


def test_a_replay_that_is_asked_to_stop_counts_what_went_out(broker: Broker, start: Start, tmp_path: Path) -> None:
    recording = write(tmp_path / "a.rec", [Message("in/a", b"x", n * 3_600_000 * MS, qos=1) for n in range(3)])
    probe = broker.probe("in/#")
    replay = start("replay", recording, "--broker", broker.url, "--json")
    probe.wait_for(1)

    assert ended(replay)["published"] == 1


def test_messages_that_are_refused_are_counted_by_reason(start_broker: Callable[..., Broker], tmp_path: Path) -> None:
    broker = start_broker(acl=("topic write in/a",))
    sent = [Message(topic, b"x", 0, qos=1) for topic in ("in/a", "in/b", "in/b", "\x00in/c")]
    done = command("replay", write(tmp_path / "a.rec", sent), "--broker", broker.url, "--json", check=False)
    summary = json.loads(done.stdout)

    assert done.returncode == 1
    assert summary["published"] == 1
    assert summary["refused"]["Not authorized"] == 2
    assert sum(summary["refused"].values()) == 3


def test_overlapping_filters_record_a_message_once(broker: Broker, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    filters = [word for name in ("in/+/v", "in/a/#", "#", "in/#") for word in ("--topic", name)]
    record = start("record", "--broker", broker.url, *filters, "-o", path, "--json")
    recording_begun(broker, 4)
    probe = broker.probe()
    topics = ["in/a/v", "in/a/w", "in/b/v", "out"] * 10
    for n, topic in enumerate(topics):
        probe.publish(topic, str(n).encode())
    until(lambda: len(list(Recording(path))) >= len(topics), what="all is recorded")

    assert ended(record)["messages"] == len(topics)
    assert sorted(int(message.payload) for message in Recording(path)) == list(range(len(topics)))


def test_a_killed_record_leaves_a_file_with_all_it_acknowledged_and_no_session(
    broker: Broker, start: Start, make_client: Callable[..., MqttClient], tmp_path: Path
) -> None:
    path = tmp_path / "a.rec"
    record = start("record", "--broker", broker.url, "--topic", "in/#", "-o", path)
    recording_begun(broker)
    probe = broker.probe()
    for n in range(50):
        probe.publish("in/a", str(n).encode())
    until(lambda: broker.log.count("Received PUBACK from edge-runtime-record-") == 50, what="all is acknowledged")
    record.kill()
    record.wait(60)

    assert [message.payload for message in Recording(path)] == [str(n).encode() for n in range(50)]
    (client_id,) = set(re.findall(r" as (edge-runtime-record-\S+)", broker.log))
    again = make_client(broker.url, client_id=client_id)
    until(lambda: again.poll(0.01) == [] and again.connected, what="connected as the one that was killed")
    assert again.counters.connects == 1
    assert f"Sending CONNACK to {client_id} (1," not in broker.log
    assert broker.log.count(f"Sending CONNACK to {client_id} (0,") == 2


def test_a_full_disk_is_one_line_and_leaves_what_was_written(broker: Broker, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    record = start("record", "--broker", broker.url, "--topic", "in/#", "-o", path, shell="ulimit -f 64")
    recording_begun(broker)
    probe = broker.probe()
    for n in range(80):
        probe.publish("in/a", bytes([n]) * 1000)
    _, err = record.communicate(timeout=20)

    assert record.returncode == 1
    assert err.decode().count("\n") == 1
    assert "cannot be written any more: File too large; what came before can be read" in err.decode()
    assert [message.payload[0] for message in Recording(path)] == list(range(len(list(Recording(path)))))
    assert len(list(Recording(path))) > 25


def test_a_recording_ends_at_its_limit_of_messages_of_bytes_and_of_time(
    broker: Broker, start: Start, tmp_path: Path
) -> None:
    limits = {"--messages": 7, "--max-mb": 0.01, "--seconds": 1.5}
    common = ("--broker", broker.url, "--topic", "in/+machine", "--json")
    begun_s = time.monotonic()
    running = {
        name: start("record", *common, "-o", tmp_path / f"{name}.rec", name, most) for name, most in limits.items()
    }
    recording_begun(broker, 3)
    probe = broker.probe()
    for n in range(20):
        probe.publish("in/a", bytes([n]) * 1000)
    summaries = {name: json.loads(process.communicate(timeout=20)[0]) for name, process in running.items()}

    assert time.monotonic() - begun_s > 1.5
    assert summaries["--messages"]["messages"] == 7
    assert summaries["--max-mb"]["messages"] == 10
    assert 10_000 < summaries["--max-mb"]["bytes"] < 11_000
    assert summaries["--seconds"]["seconds"] >= 1.5
    for name, summary in summaries.items():
        assert len(list(Recording(tmp_path / f"{name}.rec"))) == summary["messages"]


def test_a_broker_that_refuses_or_is_away_is_one_line_and_leaves_no_file(
    start_broker: Callable[..., Broker], tmp_path: Path
) -> None:
    broker = start_broker(users={"device": "secret"})
    path = tmp_path / "a.rec"
    recording = write(tmp_path / "b.rec", [Message("in/a", b"", 0)])
    for line in (["record", "--topic", "in/#", "-o", path], ["replay", recording]):
        done = command(*line, "--broker", broker.url, check=False)
        assert done.returncode == 1
        assert b"Not authorized" in done.stderr
        assert b"Traceback" not in done.stderr
    assert not path.exists()


class Asked:
    """A request to stop, made by a test."""

    asked = False


def recorded_behind_a_backlog(
    broker: Broker, path: Path, stop: Asked, *, sent: int, seconds: float, protocol: str = "5", size: int = 3
) -> RecordSummary:
    """Record, but look at the connection again only when so many messages are confirmed to their publisher.

    size: of each message, bytes at least.
    """
    probe = broker.probe()
    settings = MqttSettings(url=broker.url, protocol=protocol)
    begun_s = time.monotonic()
    waiting = deque(str(n).encode().ljust(size) for n in range(sent))

    def hold_up(_found: RecordSummary) -> None:
        while waiting:
            probe.publish("in/a", waiting.popleft())
        stop.asked = seconds == math.inf
        until(lambda: stop.asked or time.monotonic() - begun_s > seconds, what="the end of the recording")

    return run_record(path, settings, ["in/#"], limits=RecordLimits(seconds=seconds), stop=stop, progress=hold_up)


@pytest.mark.parametrize(("seconds", "protocol"), [(math.inf, "5"), (math.inf, "3.1.1"), (0.5, "5")])
def test_what_was_confirmed_to_its_publisher_before_the_end_is_recorded(
    broker: Broker, tmp_path: Path, seconds: float, protocol: str
) -> None:
    found = recorded_behind_a_backlog(broker, tmp_path / "a.rec", Asked(), sent=900, seconds=seconds, protocol=protocol)

    assert (found.messages, found.unfinished) == (900, False)
    assert [int(message.payload) for message in Recording(tmp_path / "a.rec")] == list(range(900))


def test_an_end_that_takes_too_long_is_cut_and_says_so(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.record.FINISH_S", 1e-6)
    found = recorded_behind_a_backlog(broker, tmp_path / "a.rec", Asked(), sent=900, seconds=math.inf, size=1_000)

    assert found.unfinished
    assert found.messages < 900
    assert "more was still coming in" in report.recorded(found)


def test_steady_traffic_does_not_hold_up_the_end(broker: Broker, start: Start, tmp_path: Path) -> None:
    record = start("record", "--broker", broker.url, "--topic", "in/#", "-o", tmp_path / "a.rec", "--json")
    recording_begun(broker)
    probe = broker.probe()
    probe.publish("in/a", b"x")
    record.send_signal(signal.SIGTERM)
    sent = 1
    while record.poll() is None:
        probe.publish("in/a", b"x")
        sent += 1
    summary = json.loads(record.communicate()[0])

    assert not summary["unfinished"]
    assert summary["seconds"] < FINISH_S
    assert 1 <= summary["messages"] <= sent


def test_two_thousand_messages_before_sigterm_are_all_recorded(broker: Broker, start: Start, tmp_path: Path) -> None:
    record = start("record", "--broker", broker.url, "--topic", "in/#", "-o", tmp_path / "a.rec", "--json")
    recording_begun(broker)
    probe = broker.probe()
    record.send_signal(signal.SIGSTOP)
    for n in range(2000):
        probe.publish("in/a", bytes([n % 256]) * 200)
    record.send_signal(signal.SIGTERM)
    record.send_signal(signal.SIGCONT)
    out, err = record.communicate(timeout=20)

    assert record.returncode == 0, err
    assert json.loads(out)["messages"] == 2000 == len(list(Recording(tmp_path / "a.rec")))


@pytest.mark.parametrize(
    ("topic", "wanted"),
    [("+1/+", "+/+"), ("+/+0/+2/#", "+/+/+/#"), ("a/+/#0", "a/+/#"), ("+/+", "+/+"), ("+0/+1/+2/+", "+/+/+/+")],
)
def test_wildcards_without_a_name_never_share_one(topic: str, wanted: str) -> None:
    assert plain_filter(topic) == wanted


def test_an_existing_file_is_not_written_over(broker: Broker, tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    path.write_bytes(b"precious")
    done = command("record", "--broker", broker.url, "--topic", "in/#", "-o", path, check=False)

    assert done.returncode == 1
    assert b"exists already" in done.stderr
    assert path.read_bytes() == b"precious"


def test_what_cannot_be_meant_is_wrong_usage(tmp_path: Path) -> None:
    config = write_config(tmp_path, "mqtt://localhost")
    recording = write(tmp_path / "a.rec", [])
    output = tmp_path / "b.rec"
    for line in (
        ["record", config, "--broker", "mqtt://h", "-o", output],
        ["record", "--broker", "mqtt://h", "-o", output],
        ["record", config, "--topic", "a/b+", "-o", output],
        ["replay", recording],
        *(["replay", recording, config, "--speed", speed] for speed in ("0", "1e-320", "1e7", "nan", "inf", "fast")),
        ["replay", recording, config, "--offline", "--speed", "1"],
        ["replay", recording, config, "-o", output],
        ["replay", recording, config, "--offline", "-o", recording],
        ["replay", recording, "--broker", "mqtt://h", "--offline"],
    ):
        with pytest.raises(click.UsageError):
            main.main([str(word) for word in line], standalone_mode=False)
    assert not output.exists()
    assert list(Recording(recording)) == []
