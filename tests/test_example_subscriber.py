"""The example subscriber as a user runs it: a process of its own beside a real broker and a real daemon."""

from __future__ import annotations

import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from broker import Broker, free_port, until
from daemon import Daemon, payload, subscribed, write_config

pytestmark = pytest.mark.broker

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "subscriber" / "subscribe.py"
STILL, MOVING = [[1, 0]] * 4, [[0, 1]] * 4


class Subscriber:
    def __init__(self, path: Path, *arguments: str) -> None:
        self._path = path
        with path.open("wb") as out:
            command = [sys.executable, str(SCRIPT), *arguments]
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    def lines(self, part: str = "") -> list[str]:
        return [line for line in self._path.read_text().splitlines() if part in line]

    def wait_for(self, part: str, count: int = 1) -> list[str]:
        until(
            lambda: self.process.poll() is not None or len(self.lines(part)) >= count,
            what=f"{count} lines with {part!r}; there are {self.lines()}",
        )
        return self.lines(part)

    def interrupt(self) -> list[str]:
        """End it as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0, self.lines()
        return self.lines()


@pytest.fixture
def subscribe(tmp_path: Path) -> Iterator[Callable[..., Subscriber]]:
    made: list[Subscriber] = []

    def start(*arguments: str) -> Subscriber:
        made.append(Subscriber(tmp_path / f"subscriber{len(made)}.txt", *arguments))
        return made[-1]

    yield start
    for subscriber in made:
        if subscriber.process.poll() is None:
            subscriber.process.kill()
        subscriber.process.wait(60)


@pytest.fixture
def daemon(broker: Broker, tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(write_config(tmp_path, broker.url, pipeline='window = { on_gap = "mark", hop = 2 }'))
    daemon.wait_connected()
    subscribed(broker, tmp_path)
    yield daemon
    daemon.close()


def test_results_alarms_events_and_gaps_are_shown_and_a_repeat_once(
    broker: Broker, daemon: Daemon, subscribe: Callable[..., Subscriber]
) -> None:
    shown = subscribe(broker.url, "n1")
    shown.wait_for("broker: Success")
    until(lambda: "edge/v1/n1/p/+/event/#" in broker.log, what="the script has subscribed")
    probe = broker.probe("edge/v1/n1/p/p/out/#")
    for n, rows in enumerate([STILL, MOVING, MOVING, STILL]):
        probe.publish("in/a/v", payload(n, rows))
    probe.publish("in/a/v", payload(9, STILL))
    results = probe.wait_for(9)
    for result in results[:2]:
        probe.publish(result.topic, result.payload)
    for n in (10, 11, 12):
        probe.publish("in/a/v", payload(n, STILL))
    probe.wait_for(2 + 6)
    probe.publish("edge/v1/n1/p/p/out/last", results[-1].payload.replace(b'"id":"', b'"id":"last'))
    shown.wait_for("p/last ")

    lines = [line.split(" ", 2) for line in shown.lines("p/a ")]
    told = [text for _, _, text in lines]
    states = [text for text in told if text.startswith("alarm")]
    assert states[:2] == ["alarm off: still 1.000", "alarm on: moving 1.000"]
    assert states[2].startswith("alarm off: still")
    (event,) = [text for text in told if text.startswith("event")]
    assert "event moving: peak 1.000" in event
    assert event.endswith("3 windows")
    texts = [text for text in told if text.startswith("result")]
    assert len(texts) == 15
    assert sum(" ALARM" in text for text in texts) == 3
    assert sum("[spans a gap]" in text for text in texts) == 1
    assert all(" p50 " in text for text in texts)
    assert shown.interrupt()[-1] == f"{len(lines) + 1} documents, 2 repeats"


def test_a_hole_between_results_is_noted(broker: Broker, subscribe: Callable[..., Subscriber]) -> None:
    shown = subscribe(broker.url, "n1")
    until(lambda: "edge/v1/n1/p/+/event/#" in broker.log, what="the script has subscribed")
    probe = broker.probe()
    rest = '"label":"ok","score":1,"alarm":null,"t1":1,"n":4,"missing":2,"flags":["gap"],"lat_ms":{"infer":1.5}'
    for seq in ([3, 4], [5, 9], [12, 13], [0, 1]):
        probe.publish("edge/v1/n1/p/q/out/x/y", f'{{"id":"{seq[0]}","seq":{seq},{rest}}}'.encode())
    first, *others = shown.wait_for(" result ", 4)

    start = "q/x/y 1970-01-01T00:00:01.000+00:00 result ok 1.000 [2 of 4 samples filled in] [spans a gap]"
    assert first == f"{start} p50 1.50 ms"
    assert others == [first, f"{start} [messages 10 to 11 are in no result] p50 1.50 ms", first]


def test_what_it_remembers_is_bounded_and_an_id_at_another_time_is_no_repeat() -> None:
    subscriber = runpy.run_path(str(SCRIPT))["Subscriber"]("edge/v1/n1/p")
    ids = [("out", str(n), 0.0) for n in range(10_002)]

    assert not any(subscriber.is_repeat(key) for key in ids)
    assert len(subscriber.seen) == 10_000
    assert subscriber.is_repeat(ids[-1])
    assert not subscriber.is_repeat(("out", "10001", 1.0))
    assert not subscriber.is_repeat(ids[0])


def test_it_waits_for_the_broker_and_a_named_session_misses_nothing(
    new_broker: Callable[..., Broker], subscribe: Callable[..., Subscriber]
) -> None:
    broker = new_broker()
    shown = subscribe(broker.url, "n1", "--session", "dashboard")
    shown.wait_for("cannot be reached")
    broker.start()
    shown.wait_for("broker: Success")
    until(lambda: "edge/v1/n1/p/+/event/#" in broker.log, what="the script has subscribed")
    shown.interrupt()
    publisher = broker.probe()
    state = b'{"on":true,"label":"worn","score":0.5,"since":0,"id":"x","stream":"s"}'
    publisher.publish("edge/v1/n1/p/q/state/s", state)

    again = subscribe(broker.url, "n1", "--session", "dashboard")
    assert again.wait_for(" alarm ") == ["q/s 1970-01-01T00:00:00.000+00:00 alarm on: worn 0.500"]


def test_it_connects_again_when_the_broker_was_away(broker: Broker, subscribe: Callable[..., Subscriber]) -> None:
    shown = subscribe(broker.url, "n1")
    shown.wait_for("broker: Success")
    broker.stop()
    broker.start()

    shown.wait_for("broker: Success", 2)


def test_a_url_that_leads_nowhere_is_tried_until_ctrl_c(subscribe: Callable[..., Subscriber]) -> None:
    shown = subscribe(f"mqtt://127.0.0.1:{free_port()}", "n1")
    shown.wait_for("cannot be reached")

    assert shown.interrupt()[-1] == "0 documents, 0 repeats"
