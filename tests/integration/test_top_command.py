"""`edge-runtime top` beside real daemons and a real broker, as a user calls it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
from broker import WAIT_S, Broker, until
from daemon import Daemon, payload, subscribed, write_config

from edge_runtime.cli import main

pytestmark = pytest.mark.broker

ROOT = Path(__file__).resolve().parents[2]
STILL, MOVING = [[1, 0]] * 4, [[0, 1]] * 4
TWO_MORE = """
[pipelines.q]
source = { topic = "in/+machine/v", path = "v", seq_field = "n" }
model = "means"
deadline_ms = 1000.0
execution = "worker"
"""
RunDaemon = Callable[..., Daemon]
Ended = subprocess.CompletedProcess[str]


def top(*arguments: str) -> Ended:
    """What the command printed into pipes."""
    command = [sys.executable, "-m", "edge_runtime", "top", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def run_daemon(tmp_path: Path) -> Iterator[RunDaemon]:
    """Starts the node n1 by device.toml, connected and subscribed."""
    made: list[Daemon] = []

    def run(broker: Broker, *, interval_s: float = 0.2, **options: str) -> Daemon:
        config = write_config(tmp_path, broker.url, **options)
        config.write_text(config.read_text().replace("metrics_interval_s = 0.2", f"metrics_interval_s = {interval_s}"))
        made.append(Daemon(config))
        made[-1].wait_connected()
        subscribed(broker, tmp_path)
        return made[-1]

    yield run
    for daemon in made:
        daemon.close()


def send(broker: Broker, count: int, *, pipelines: int = 1) -> None:
    """Messages, and wait until every result is out."""
    probe = broker.probe("edge/v1/n1/p/+/out/#")
    for n in range(count):
        probe.publish("in/a/v", payload(n, MOVING if n % 2 else STILL))
    probe.wait_for(count * pipelines)


def metrics_of(broker: Broker, wanted: Callable[[dict], bool]) -> dict:
    """The first metrics of the node for which it holds."""
    probe = broker.probe("edge/v1/n1/metrics")
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = json.loads(probe.wait_for(1)[0].payload)
        if wanted(found):
            return found
    raise AssertionError("no such metrics")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_daemon_is_shown_at_once_with_its_pipelines_however_long_its_interval(
    broker: Broker, run_daemon: RunDaemon, tmp_path: Path, protocol: str
) -> None:
    run_daemon(broker, mqtt=f'protocol = "{protocol}"', more=TWO_MORE, interval_s=3600)
    begun_s = time.monotonic()
    found = top(str(tmp_path / "device.toml"))

    assert found.returncode == 0, found.stderr
    assert time.monotonic() - begun_s < 10
    lines = found.stdout.splitlines()
    assert lines[1].startswith("n1  online  up 0 s, metrics of ")
    assert any(line.startswith("p  means@1.0.0, inline, ") for line in lines)
    assert any(line.startswith("q  means@1.0.0, worker, ") for line in lines)


def test_a_snapshot_shows_what_the_daemon_counted_and_timed(broker: Broker, run_daemon: RunDaemon) -> None:
    run_daemon(broker, more=TWO_MORE)
    send(broker, 12, pipelines=2)
    metrics_of(broker, lambda m: m["ledger"]["overall"]["confirmed"] == 24)
    begun_s = time.monotonic()
    found = top("--broker", broker.url, "--once")

    assert found.returncode == 0, found.stderr
    assert time.monotonic() - begun_s < 10
    assert found.stdout.count("received 12 = accepted 12\n") == 2
    assert found.stdout.count("results 12 = confirmed 12\n") == 2
    assert "deadline 1000 ms missed 0 times" in found.stdout
    stages = [line.split()[0] for line in found.stdout.splitlines() if line.startswith("  ") and line[-1].isdigit()]
    assert {"queue", "decode", "window", "wait", "infer", "decide", "publish", "puback", "e2e"} <= set(stages)


def test_what_a_daemon_publishes_fits_the_schema_and_says_what_happened(broker: Broker, run_daemon: RunDaemon) -> None:
    check = jsonschema.Draft202012Validator(json.loads((ROOT / "docs/schemas/metrics.schema.json").read_text()))
    run_daemon(broker, more=TWO_MORE)
    send(broker, 8, pipelines=2)
    broker.probe().publish("in/a/v", b"no JSON")
    document = metrics_of(broker, lambda m: m["ledger"]["overall"]["dead_lettered"] == 2)

    check.validate(document)
    assert list(document["pipelines"]) == ["p", "q"]
    assert [document["latency"][name]["e2e"]["count"] for name in ("p", "q")] == [8, 8]
    assert (document["problems"], document["every_s"]) == ([], 0.2)
    assert 0 < document["cpu_cores"] < 8
    assert document["mqtt"][0]["connected"]
    quiet = metrics_of(broker, lambda m: m["recent"]["p"] == {})
    check.validate(quiet)
    assert (quiet["pipelines"]["p"]["messages_per_s"], quiet["latency"]["p"]["e2e"]["count"]) == (0.0, 8)


def test_a_node_that_died_is_offline_with_the_last_it_said(broker: Broker, run_daemon: RunDaemon) -> None:
    daemon = run_daemon(broker, mqtt="will_delay_s = 0")
    send(broker, 5)
    metrics_of(broker, lambda m: m["ledger"]["overall"]["confirmed"] == 5)
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait(60)
    until(lambda: "n1  offline  " in top("--broker", broker.url, "--once").stdout, what="the will")
    found = top("--broker", broker.url, "--once")

    assert found.returncode == 0, found.stderr
    assert "received 5 = accepted 5" in found.stdout


def test_who_says_nothing_in_time_is_named_and_fails(broker: Broker, run_daemon: RunDaemon) -> None:
    nobody = top("--broker", broker.url, "--timeout", "0.5")
    run_daemon(broker, interval_s=0)
    other = top("--broker", broker.url, "--node", "n2", "--timeout", "0.5")
    mute = top("--broker", broker.url, "--once", "--timeout", "0.5")

    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr == "error: nothing was heard of any node under edge/v1 within 0.5 s\n"
    assert other.stderr == "error: nothing was heard of node n2 under edge/v1 within 0.5 s\n"
    assert (mute.returncode, mute.stderr) == (
        1,
        "error: no metrics within 0.5 s from n1 (with node.metrics_interval_s = 0 none come)\n",
    )
    assert mute.stdout.split("\n")[1:3] == [
        "n1  online",
        "  no metrics yet; with node.metrics_interval_s = 0 none come",
    ]


def test_metrics_that_cannot_be_read_are_said_to_be_so(broker: Broker) -> None:
    probe = broker.probe()
    probe.publish("edge/v1/n1/status", b'{"state":"online","since":1.0,"boot_id":"b"}', retain=True)
    probe.publish("edge/v1/n1/metrics", b'{"v":2}', retain=True)
    found = top("--broker", broker.url, "--once", "--timeout", "0.5")

    assert (found.returncode, found.stderr) == (1, "error: metrics of n1 cannot be read: v is 2, known is 1\n")
    assert "1 document could not be read; metrics: v is 2, known is 1" in found.stdout


def test_a_broker_that_is_not_there_is_named(new_broker: Callable[..., Broker], tmp_path: Path) -> None:
    url = new_broker().url
    found = top("--broker", url, "--once")

    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith(f"error: {url}: ")
    assert "refused" in found.stderr


def test_documents_come_as_lines_of_json_until_it_is_stopped(broker: Broker, run_daemon: RunDaemon) -> None:
    run_daemon(broker)
    once = [json.loads(line) for line in top("--broker", broker.url, "--json", "--once").stdout.splitlines()]
    command = [sys.executable, "-m", "edge_runtime", "top", "--broker", broker.url, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(5)]
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(60) == 0

    assert {(line["node"], line["kind"], line["retained"]) for line in once} >= {
        ("n1", "status", True),
        ("n1", "metrics", True),
    }
    assert [line["kind"] for line in lines][-1] == "metrics"
    live = [line["document"]["at"] for line in lines if line["kind"] == "metrics"]
    assert live == sorted(set(live))


def test_the_credentials_of_a_config_are_used(
    start_broker: Callable[..., Broker], run_daemon: RunDaemon, tmp_path: Path
) -> None:
    broker = start_broker(users={"device": "secret"})
    password = tmp_path / "pass"
    password.write_text("secret\n")
    password.chmod(0o600)
    run_daemon(broker, mqtt=f'username = "device"\npassword_file = "{password}"')
    known, stranger = top(str(tmp_path / "device.toml")), top("--broker", broker.url)

    assert (known.returncode, "n1  online" in known.stdout) == (0, True)
    assert stranger.returncode == 1
    assert "authorized" in stranger.stderr.lower()


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *arguments: str, rows: int, columns: int) -> None:
        self._screen, line = pty.openpty()
        fcntl.ioctl(line, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(line)
        self._line, self.shown = line, ""
        command = [sys.executable, "-m", "edge_runtime", "top", *arguments]
        environment = {**os.environ, "TERM": "xterm"}
        environment.pop("COLUMNS", None)
        environment.pop("LINES", None)
        self.process = subprocess.Popen(
            command, stdin=line, stdout=line, stderr=line, env=environment, start_new_session=True
        )

    def shows(self, text: str) -> bool:
        while select.select([self._screen], [], [], 0.02)[0]:
            self.shown += os.read(self._screen, 65_536).decode()
        return text in self.shown

    def press(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def attributes(self) -> list:
        return termios.tcgetattr(self._line)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)
        os.close(self._screen)
        os.close(self._line)


def test_the_live_view_follows_the_daemon_and_leaves_the_terminal_as_it_was(
    broker: Broker, run_daemon: RunDaemon
) -> None:
    run_daemon(broker, more=TWO_MORE)
    terminal = Terminal("--broker", broker.url, rows=24, columns=80)
    try:
        until(lambda: terminal.shows("n1"), what=f"the node ({terminal.shown})")
        send(broker, 7, pipelines=2)
        until(lambda: terminal.shows("received 7 = accepted 7"), what="the messages")
        assert terminal.attributes() != terminal.before
        terminal.shown = ""
        until(lambda: terminal.shows("e2e "), what="the next picture")
        assert "missed 0 times" not in terminal.shown
        terminal.press("\x1b[C")
        until(lambda: terminal.shows("missed 0 times"), what="the other pipeline")
        terminal.press("q")
        assert terminal.process.wait(60) == 0
        assert terminal.shows("\x1b[?1049l")
        assert terminal.attributes() == terminal.before
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "name the broker by CONFIG or by --broker, one of them"),
        (["--broker", "mqtt://localhost", "--node", "a/b"], "--node: node 'a/b' is not a name"),
        (["--broker", "mqtt://localhost", "--node", "a", "--all"], "--node or --all, not both"),
        (["--broker", "localhost"], "--broker: "),
    ],
)
def test_wrong_usage_is_said(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["top", *arguments])

    assert ended.value.code == 2
    assert problem in capsys.readouterr().err
