from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from broker import Broker, free_port, until
from bundles import means_model, slow_model, write_means_bundle
from daemon import Daemon, account, payload, subscribed, write_config
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

pytestmark = pytest.mark.broker

STILL, MOVING = [[1, 0]] * 4, [[0, 1]] * 4
RunDaemon = Callable[..., Daemon]


@pytest.fixture
def run_daemon(tmp_path: Path) -> Iterator[RunDaemon]:
    made: list[Daemon] = []

    def run(url: str, *, model: bytes | None = None, **options: str) -> Daemon:
        config = write_config(tmp_path, url, **options)
        if model is not None:
            write_means_bundle(tmp_path / "means.edge", model=model)
        made.append(Daemon(config))
        return made[-1]

    yield run
    for daemon in made:
        daemon.close()


@pytest.fixture
def serving(broker: Broker, run_daemon: RunDaemon, tmp_path: Path) -> Daemon:
    daemon = run_daemon(broker.url)
    daemon.wait_connected()
    subscribed(broker, tmp_path)
    return daemon


def bodies(messages: list) -> list[dict]:
    return [json.loads(message.payload) for message in messages]


def test_sensor_messages_become_results_and_the_ledger_balances(broker: Broker, serving: Daemon) -> None:
    probe = broker.probe("edge/v1/n1/p/p/out/#")
    for n in range(30):
        for machine in ("a", "b"):
            probe.publish(f"in/{machine}/v", payload(n, MOVING if n % 2 else STILL))
    results = bodies(probe.wait_for(60))

    assert [r["label"] for r in results if r["stream"] == "b"] == ["still", "moving"] * 15
    assert [r["seq"] for r in results if r["stream"] == "a"] == [[n, n] for n in range(30)]
    assert len({r["id"] for r in results}) == 60
    summary = serving.stop()
    assert summary["balanced"]
    assert summary["drained"]
    found = account(summary)
    assert (found["received"], found["accepted"], found["confirmed"]) == (60, 60, 60)
    assert summary["latency"]["p"]["e2e"]["count"] == 60


def test_the_latency_log_is_on_the_device_and_readable_by_public_tools(broker: Broker, serving: Daemon) -> None:
    probe = broker.probe("edge/v1/n1/p/p/out/#")
    for n in range(20):
        probe.publish("in/a/v", payload(n, STILL))
    probe.wait_for(20)
    summary = serving.stop()

    reader = HistogramLogReader(summary["latency_log"], HdrHistogram(1_000, 60_000_000_000, 2))
    with closing(reader):
        counts = Counter[str]()
        for interval in iter(reader.get_next_interval_histogram, None):
            counts[interval.get_tag()] += interval.get_total_count()
    assert counts["p/infer"] == counts["p/e2e"] == 20


BAD = {
    "not JSON": (b"hello", "malformed"),
    "truncated": (b'{"n":1,"v":[[1', "malformed"),
    "wrong field": (b'{"n":1,"w":[[1,0]]}', "shape"),
    "wrong shape": (b'{"n":1,"v":[[1,0,0]]}', "shape"),
    "NaN": (b'{"n":1,"v":[[NaN,0]]}', "malformed"),
    "infinite": (b'{"n":1,"v":[[1e39,0]]}', "not_finite"),
    "empty": (b"", "empty"),
    "10 MB": (b"[" + b"1," * 5_000_000 + b"1]", "too_large"),
    "deeply nested": (b'{"n":1,"x":' + b"[" * 40_000 + b"]" * 40_000 + b',"v":[[1,0]]}', "malformed"),
    "not UTF-8": ('{"n":1,"v":[[1,0]]}'.encode("utf-16"), "malformed"),
}


def test_bad_input_is_dead_lettered_with_a_reason_and_the_next_message_served(broker: Broker, serving: Daemon) -> None:
    dead, out = broker.probe("edge/v1/n1/p/p/dead"), broker.probe("edge/v1/n1/p/p/out/#")
    for n, (name, (body, reason)) in enumerate(BAD.items()):
        out.publish("in/a/v", body)
        (letter,) = bodies(dead.wait_for(1))
        assert (name, letter["reason"]) == (name, reason)
        assert letter["payload_bytes"] == len(body)
        assert len(letter["detail"]) > 5
        out.publish("in/a/v", payload(n, STILL))
        assert bodies(out.wait_for(1))[0]["label"] == "still"

    summary = serving.stop()
    assert summary["balanced"]
    assert account(summary)["dead_lettered"] == len(BAD)


def test_a_retained_message_is_never_inferred_on(broker: Broker, run_daemon: RunDaemon, tmp_path: Path) -> None:
    probe = broker.probe("edge/v1/n1/p/p/out/#")
    probe.publish("in/a/v", payload(0, MOVING), retain=True)
    daemon = run_daemon(broker.url)
    daemon.wait_connected()
    subscribed(broker, tmp_path)
    probe.publish("in/a/v", payload(1, STILL))

    assert [r["label"] for r in bodies(probe.wait_for(1))] == ["still"]
    assert daemon.stop()["balanced"]


def test_the_node_tells_its_state_what_it_runs_and_its_metrics(
    broker: Broker, run_daemon: RunDaemon, tmp_path: Path
) -> None:
    probe = broker.probe("edge/v1/n1/status", "edge/v1/n1/info", "edge/v1/n1/metrics")
    daemon = run_daemon(broker.url)
    first = {message.topic.rsplit("/", 1)[1]: json.loads(message.payload) for message in probe.wait_for(3)}

    assert first["status"]["state"] == "online"
    assert first["info"]["models"]["means"]["version"] == "1.0.0"
    assert first["info"]["pipelines"]["p"]["topic"] == "in/+machine/v"
    subscribed(broker, tmp_path)
    probe.publish("in/a/v", payload(0, STILL))

    def counted() -> bool:
        found = [json.loads(m.payload) for m in probe.seen() if m.topic.endswith("metrics")]
        return any(m["ledger"]["overall"]["confirmed"] == 1 and m["latency"]["p"]["e2e"]["count"] == 1 for m in found)

    until(counted, what="metrics count the message")
    daemon.stop()
    retained = {
        m.topic: json.loads(m.payload) for m in broker.probe("edge/v1/n1/status", "edge/v1/n1/metrics").wait_for(2)
    }
    assert retained["edge/v1/n1/status"]["state"] == "stopped"
    assert retained["edge/v1/n1/metrics"]["ledger"]["overall"]["confirmed"] == 1


def test_an_alarm_is_retained_for_those_who_come_later(broker: Broker, serving: Daemon) -> None:
    probe = broker.probe("edge/v1/n1/p/p/state/a")
    for n, rows in enumerate((STILL, MOVING, MOVING)):
        probe.publish("in/a/v", payload(n, rows))

    assert [change["on"] for change in bodies(probe.wait_for(2))] == [False, True]
    (late,) = broker.probe("edge/v1/n1/p/p/state/#").wait_for(1)
    assert (late.retain, json.loads(late.payload)["on"]) == (True, True)


def test_a_killed_daemon_is_announced_offline(broker: Broker, run_daemon: RunDaemon, tmp_path: Path) -> None:
    probe = broker.probe("edge/v1/n1/status")
    daemon = run_daemon(broker.url, mqtt="will_delay_s = 0")
    assert bodies(probe.wait_for(1))[0]["state"] == "online"
    daemon.process.kill()

    assert bodies(probe.wait_for(1))[0]["state"] == "offline"


def test_a_broker_that_is_absent_at_start_is_one_clear_line_and_then_served(
    new_broker: Callable[..., Broker], run_daemon: RunDaemon, tmp_path: Path
) -> None:
    broker = new_broker(port=free_port())
    daemon = run_daemon(broker.url)
    until(lambda: bool(daemon.events("mqtt_unreachable")), what="the line about the broker")
    (line,) = daemon.events("mqtt_unreachable")
    assert (line["host"], line["port"]) == ("127.0.0.1", broker.port)
    assert "refused" in line["reason"]

    broker.start()
    daemon.wait_connected()
    subscribed(broker, tmp_path)
    probe = broker.probe("edge/v1/n1/p/p/out/#")
    probe.publish("in/a/v", payload(0, STILL))
    probe.wait_for(1)
    assert len(daemon.events("mqtt_unreachable")) == 1
    assert "Traceback" not in daemon.log


def test_a_broker_that_goes_away_is_found_again(broker: Broker, serving: Daemon, tmp_path: Path) -> None:
    broker.kill()
    until(lambda: bool(serving.events("mqtt_lost")), what="the loss is logged")
    broker.start()
    serving.wait_connected(2)
    subscribed(broker, tmp_path, 2)
    probe = broker.probe("edge/v1/n1/p/p/out/#")
    probe.publish("in/a/v", payload(0, MOVING))

    assert bodies(probe.wait_for(1))[0]["label"] == "moving"
    assert serving.stop()["balanced"]


def test_sigterm_under_load_drains_within_five_seconds(broker: Broker, serving: Daemon) -> None:
    probe = broker.probe("edge/v1/n1/p/p/out/#")
    loader = broker.probe()
    for n in range(3000):
        loader._client.publish("in/a/v", payload(n, STILL), 1)
    probe.wait_for(50)
    start_s = time.monotonic()
    summary = serving.stop()

    assert time.monotonic() - start_s < 5.0
    assert summary["balanced"]
    assert summary["drained"]
    found = account(summary)
    assert found["confirmed"] == found["accepted"] > 0


def test_sigterm_ends_within_five_seconds_while_the_broker_says_nothing(broker: Broker, serving: Daemon) -> None:
    probe = broker.probe("edge/v1/n1/p/p/out/#")
    probe.publish("in/a/v", payload(0, STILL))
    probe.wait_for(1)
    broker._process.send_signal(signal.SIGSTOP)
    try:
        start_s = time.monotonic()
        summary = serving.stop()
    finally:
        broker._process.send_signal(signal.SIGCONT)

    assert time.monotonic() - start_s < 5.5
    assert summary["balanced"]


def test_a_second_signal_ends_the_process_at_once(broker: Broker, serving: Daemon) -> None:
    broker._process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: serving.process.poll() is None, what="running")
        time.sleep(0.5)  # a metrics message is now unconfirmed, which keeps the first signal draining
        serving.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        start_s = time.monotonic()
        serving.process.send_signal(signal.SIGTERM)
        code = serving.process.wait(60)
    finally:
        broker._process.send_signal(signal.SIGCONT)

    assert code == 128 + signal.SIGTERM
    assert time.monotonic() - start_s < 1.0


def test_a_signal_during_the_start_is_obeyed(broker: Broker, run_daemon: RunDaemon) -> None:
    daemon = run_daemon(broker.url)
    until(lambda: _handles_sigterm(daemon.process.pid), what="the handlers are installed")

    assert daemon.stop()["drained"]


def _handles_sigterm(pid: int) -> bool:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_sigterm_while_a_slow_model_runs_on_the_worker_ends_cleanly_in_time(
    broker: Broker, run_daemon: RunDaemon, tmp_path: Path
) -> None:
    daemon = run_daemon(broker.url, pipeline='execution = "worker"', model=slow_model(length=4, channels=2))
    daemon.wait_connected()
    subscribed(broker, tmp_path)
    probe = broker.probe()
    probe.publish("in/a/v", payload(0, [[1e9, 0]] * 4))
    until(lambda: _thread_cpu_s(daemon.process.pid) > 0.2, what="the worker predicts")
    start_s = time.monotonic()
    summary = daemon.stop()

    assert time.monotonic() - start_s < 5.0
    assert not summary["drained"]
    assert summary["balanced"]


def _thread_cpu_s(pid: int) -> float:
    """CPU time of the busiest thread beside the main one."""
    tasks = [task for task in Path(f"/proc/{pid}/task").iterdir() if task.name != str(pid)]
    ticks = [sum(map(int, (task / "stat").read_text().rsplit(")", 1)[1].split()[11:13])) for task in tasks]
    return max(ticks, default=0) / os.sysconf("SC_CLK_TCK")


def test_several_connections_to_a_silent_broker_are_left_in_time(
    broker: Broker, run_daemon: RunDaemon, tmp_path: Path
) -> None:
    daemon = run_daemon(broker.url, more=OVERLAPPING + OVERLAPPING.replace(".q]", ".r]").replace("in/#", "in/+x/#"))
    daemon.wait_connected(3)
    broker._process.send_signal(signal.SIGSTOP)
    try:
        start_s = time.monotonic()
        summary = daemon.stop()
    finally:
        broker._process.send_signal(signal.SIGCONT)

    assert time.monotonic() - start_s < 5.0
    assert summary["balanced"]


def test_a_broker_that_forgot_everything_is_told_the_alarms_again(
    broker: Broker, serving: Daemon, tmp_path: Path
) -> None:
    probe = broker.probe("edge/v1/n1/p/p/state/#")
    probe.publish("in/a/v", payload(0, MOVING))
    assert bodies(probe.wait_for(1))[0]["on"]
    broker.kill()
    broker.start()
    serving.wait_connected(2)

    (again,) = broker.probe("edge/v1/n1/p/p/state/#").wait_for(1)
    assert json.loads(again.payload)["on"]


def test_mqtt_3_1_1_does_the_same(broker: Broker, run_daemon: RunDaemon, tmp_path: Path) -> None:
    daemon = run_daemon(broker.url, mqtt='protocol = "3.1.1"')
    daemon.wait_connected()
    subscribed(broker, tmp_path)
    probe = broker.probe("edge/v1/n1/p/p/out/#", protocol="3.1.1")
    for n in range(5):
        probe.publish("in/a/v", payload(n, MOVING))

    assert [r["label"] for r in bodies(probe.wait_for(5))] == ["moving"] * 5
    assert daemon.stop()["balanced"]


def test_a_latency_log_that_cannot_be_written_degrades_the_node_and_nothing_else(
    broker: Broker, run_daemon: RunDaemon, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    in_the_way = tmp_path / "state" / "latency"
    in_the_way.write_text("not a folder")
    status, out = broker.probe("edge/v1/n1/status"), broker.probe("edge/v1/n1/p/p/out/#")
    daemon = run_daemon(broker.url, more="[latency]\ninterval_s = 1.0")
    daemon.wait_connected()
    subscribed(broker, tmp_path)
    out.publish("in/a/v", payload(0, STILL))
    out.wait_for(1)
    assert [found["state"] for found in bodies(status.wait_for(2))] == ["online", "degraded"]

    in_the_way.unlink()
    out.publish("in/a/v", payload(1, STILL))
    out.wait_for(1)
    assert bodies(status.wait_for(1))[0]["state"] == "online"
    assert daemon.stop()["balanced"]


OVERLAPPING = """
[pipelines.q]
source = { topic = "in/#rest", path = "v", seq_field = "n", qos = 0 }
model = "means"
execution = "worker"
publish = "change"
result_qos = 0
"""


def test_pipelines_with_overlapping_filters_each_see_every_message_once(
    broker: Broker, run_daemon: RunDaemon, tmp_path: Path
) -> None:
    daemon = run_daemon(broker.url, more=OVERLAPPING)
    daemon.wait_connected(2)
    subscribed(broker, tmp_path, 2)
    p, q = broker.probe("edge/v1/n1/p/p/out/#"), broker.probe("edge/v1/n1/p/q/out/#")
    for n in range(20):
        p.publish("in/a/v", payload(n, MOVING if n >= 10 else STILL))

    assert len(p.wait_for(20)) == 20
    assert [(r["stream"], r["label"]) for r in bodies(q.wait_for(2))] == [("a/v", "still"), ("a/v", "moving")]
    summary = daemon.stop()
    assert summary["balanced"]
    assert (account(summary, "q")["received"], account(summary, "q")["unchanged"]) == (20, 18)


def command(*words: str, hide: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; {f'sys.modules[{hide!r}] = None; ' if hide else ''}from edge_runtime.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_bundle_that_lies_is_refused_at_start_naming_file_and_fact(tmp_path: Path, verb: str) -> None:
    config = write_config(tmp_path, "mqtt://127.0.0.1:1")
    write_means_bundle(tmp_path / "means.edge", model=means_model(length=5, channels=2))
    found = command(verb, str(config))

    assert found.returncode == 1
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'means.edge'}: graph input x is")
    assert "Traceback" not in found.stderr


def test_a_mistyped_key_names_file_key_and_nearest_word(tmp_path: Path) -> None:
    config = write_config(tmp_path, "mqtt://127.0.0.1:1", pipeline="quue = { max = 3 }")
    found = command("check", str(config))

    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    for word in (str(config), "pipelines.p", "quue", "queue"):
        assert word in found.stderr


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ("window = { samples = 5 }", "window.samples = 5, the model takes 4"),
        ("max_streams = 0", "max_streams"),
        ("queue = { max = 5000 }", "receive_maximum"),
        ('delivery = "durable"', "normal"),
        ('publish = "windw"', "window"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(tmp_path: Path, pipeline: str, words: str) -> None:
    found = command("check", str(write_config(tmp_path, "mqtt://127.0.0.1:1", pipeline=pipeline)))

    assert found.returncode == 2
    assert words in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_a_source_that_would_feed_the_daemon_its_own_results_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, "mqtt://127.0.0.1:1")
    config.write_text(config.read_text().replace("in/+machine/v", "edge/+rest/#more"))

    assert "own results" in command("check", str(config)).stderr


def test_check_shows_what_would_run_and_whether_the_broker_is_there(tmp_path: Path, broker: Broker) -> None:
    good = command("check", str(write_config(tmp_path, broker.url)))
    assert (good.returncode, good.stderr) == (0, "")
    assert "ready to run" in good.stdout
    assert "means@1.0.0" in good.stdout

    old = command("check", str(write_config(tmp_path, broker.url, mqtt='protocol = "3.1.1"')))
    assert old.returncode == 0
    before = broker.log.count("Sending PUBLISH to edge-runtime-n1-check")
    broker.probe().publish("in/a/v", payload(0, STILL))
    assert "edge-runtime-n1-check" in broker.log
    assert broker.log.count("Sending PUBLISH to edge-runtime-n1-check") == before
    connects = [line for line in broker.log.splitlines() if "as edge-runtime-n1-check (" in line]
    assert ", c1," in connects[-1]

    bad = command("check", str(write_config(tmp_path, "mqtt://127.0.0.1:1", mqtt="connect_timeout_s = 1")))
    assert (bad.returncode, bad.stderr) == (1, "")
    assert "refused" in bad.stdout


def test_a_missing_onnxruntime_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    found = command("check", str(write_config(tmp_path, "mqtt://127.0.0.1:1")), hide="onnxruntime")

    assert found.returncode == 1
    assert "pip install 'edge-runtime[cpu]'" in found.stderr
    assert "Traceback" not in found.stderr


def test_bench_and_bundle_show_speak_text_and_json(tmp_path: Path) -> None:
    path = str(write_means_bundle(tmp_path / "means.edge"))
    text = command("bench", path, "--seconds", "0.02", "--threads", "1", "--threads", "2")
    assert text.returncode == 0
    assert "windows/s" in text.stdout

    report = json.loads(command("bench", path, "--seconds", "0.02", "--json").stdout)
    assert [row["batch"] for row in report["rows"]] == [1, 2, 4, 8, 16, 32, 64]
    assert all(0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["max_ms"] for row in report["rows"])
    assert report["rss_mb"] > 10

    assert "still, moving" in command("bundle", "show", path).stdout
    assert json.loads(command("bundle", "show", path, "--json").stdout)["name"] == "means"
