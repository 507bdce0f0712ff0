from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from broker import Broker
from measurements import NUMBERED, answer, needs_cc, run_of, workload

from benchmarks import judge, main_job, programs
from benchmarks.generator import Generator, GeneratorError, Load, Route
from benchmarks.workloads import FIRST_NUMBER, Workload


def test_without_a_compiler_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(programs.CompilerError, match="apt-get install gcc"):
        programs.build(tmp_path)


class Peer:
    """One accepted MQTT connection of a broker that says what the test tells it to."""

    def __init__(self, listener: socket.socket) -> None:
        self._socket, _ = listener.accept()
        self._socket.settimeout(10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def take(self) -> bytes:
        """The next packet, whole."""
        head = self._exactly(2)
        while head[-1] & 0x80:
            head += self._exactly(1)
        length = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(head[1:]))
        return head + self._exactly(length)

    def say(self, packets: bytes, piece: int) -> None:
        for at in range(0, len(packets), piece):
            self._socket.sendall(packets[at : at + piece])

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, n: int) -> bytes:
        found = b""
        while len(found) < n:
            found += self._socket.recv(n - len(found)) or pytest.fail("the program closed its connection")
        return found


def publish(topic: bytes, body: bytes, mid: int = 0) -> bytes:
    """A PUBLISH at QoS 0, or 1 when it has a packet id (MQTT 3.1.1, section 3.3)."""
    rest = struct.pack("!H", len(topic)) + topic + (struct.pack("!H", mid) if mid else b"") + body
    length, head = len(rest), bytearray([0x32 if mid else 0x30])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(head) + bytes([length]) + rest


@pytest.fixture
def numbered(tmp_path: Path) -> Workload:
    """The two messages, in the file that the generator reads."""
    file = tmp_path / "payloads"
    file.write_bytes(2 * (struct.pack("=I", len(NUMBERED)) + NUMBERED))
    return workload(path=file)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        found.settimeout(10)
        yield found


@needs_cc
@pytest.mark.parametrize("form", ["single", "batch"])
@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_the_echo_sends_every_payload_back_however_the_stream_was_cut(
    listener: socket.socket, form: str, piece: int
) -> None:
    bodies = [b"x", b"", bytes(range(256)) * 80, b"y" * 130]
    options = ["--subscribe", "in", "--publish", "out", "--qos", "1", "--form", form]
    command = [str(programs.build().echo), "--port", str(listener.getsockname()[1]), *options]
    with subprocess.Popen(command) as echo:
        peer = Peer(listener)
        assert peer.take()[0] == 0x10
        peer.say(b"\x20\x02\x00\x00", 1)
        assert peer.take() == b"\x82\x07\x00\x01\x00\x02in\x01"
        peer.say(b"\x90\x03\x00\x01\x01", 1)

        peer.say(b"".join(publish(b"in", body, 7 + i) + b"\x40\x02\x00\x01" for i, body in enumerate(bodies)), piece)
        answers = [peer.take() for _ in range(2 * len(bodies))]

        echo.kill()
        peer.close()
    assert answers[::2] == [b"\x40\x02" + struct.pack("!H", 7 + i) for i in range(len(bodies))]
    assert answers[1::2] == [publish(b"out", body, 1 + i) for i, body in enumerate(bodies)]


class Faulty:
    """Answers as the label a and b in turn would be right, with what the test wants to go wrong."""

    def __init__(self, port: int, faults: dict[int, list[bytes]]) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = self._answer
        self._faults = faults
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe("in")
        assert subscribed.wait(10)

    def _answer(self, client: Any, _: object, message: Any) -> None:
        number = json.loads(message.payload)["seq"] - FIRST_NUMBER
        for body in self._faults.get(number, [answer(number, "ab"[number % 2])]):
            client.publish("out", body)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@needs_cc
@pytest.mark.broker
def test_faults_of_a_real_subject_are_found_among_its_right_results(
    broker: Broker, numbered: Workload, tmp_path: Path
) -> None:
    swapped = {10: [answer(10, "b")], 11: [answer(11, "a")]}
    subject = Faulty(broker.port, {3: [], 5: [answer(5, "b")] * 2, **swapped})
    route = Route(broker.port, "in", "out", 0)
    generator = Generator(programs.build(), numbered, route, tmp_path, stall_s=0.3)

    run = generator.run(Load("open", 200, 0.15, 0.05))
    verdict = judge.results(run, numbered)
    subject.close()

    assert len(run.written_ns) == 40
    assert (verdict.missing, verdict.repeated, verdict.wrong) == (3, 1, 2)


@needs_cc
def test_a_generator_that_cannot_connect_says_so(listener: socket.socket, numbered: Workload, tmp_path: Path) -> None:
    port = listener.getsockname()[1]
    listener.close()
    generator = Generator(programs.build(), numbered, Route(port, "in", "out", 0), tmp_path)

    with pytest.raises(GeneratorError, match=f"port {port}: Connection refused"):
        generator.run(Load("closed", 1, 0.1, 0.1))


@pytest.mark.broker
@needs_cc
def test_cpu_time_is_that_of_the_process_watched(broker: Broker, numbered: Workload, tmp_path: Path) -> None:
    burn = "import time\nwhile True:\n    end = time.process_time() + 0.01\n    while time.process_time() < end: pass\n"
    with subprocess.Popen([sys.executable, "-c", burn]) as burner:
        route = Route(broker.port, "t", "t", 0, (burner.pid,))
        before_s = sum(psutil.Process(burner.pid).cpu_times()[:2])
        run = Generator(programs.build(), numbered, route, tmp_path).run(Load("open", 100, 1.0, 0.01))
        used_s = sum(psutil.Process(burner.pid).cpu_times()[:2]) - before_s
        burner.kill()
    verdict = judge.echoes(run, numbered)

    assert run.watched_ns[0] / 1e9 == pytest.approx(used_s, abs=0.25)
    assert run.watched_ns[0] / 1e9 <= used_s + 0.02
    assert run.watched_ns[0] > 0.3e9
    facts = main_job.facts(msgspec.structs.replace(run, watched_ns=(0, 10**9)), verdict)
    assert facts["cpu_us"] == pytest.approx(1e6 / verdict.answered, rel=1e-3)
    assert run.cores * run.seconds - run.idle_ns / 1e9 >= run.watched_ns[0] / 1e9 - 0.05


@pytest.mark.broker
@needs_cc
def test_a_message_written_late_counts_from_when_it_was_due(broker: Broker, numbered: Workload, tmp_path: Path) -> None:
    generator = Generator(programs.build(), numbered, Route(broker.port, "t", "t", 0), tmp_path)
    stopper = threading.Thread(target=_pause, args=(tmp_path, 0.3, 0.2))
    stopper.start()

    run = generator.run(Load("open", 1000, 1.0, 0.1))
    stopper.join()

    late = run.late_ns >= 50_000
    assert run.late == int(np.count_nonzero(late & (run.written_ns >= run.begin_ns)))
    assert run.late_ns.max() >= 0.15e9
    assert np.count_nonzero(late) >= 150
    stamped = run.written_ns[late]
    schedule_ns = (stamped - stamped[0]) % 1_000_000
    assert np.minimum(schedule_ns, 1_000_000 - schedule_ns).max() <= 2


def _pause(folder: Path, after_s: float, for_s: float) -> None:
    process = _generator(folder)
    time.sleep(after_s)
    process.suspend()
    time.sleep(for_s)
    process.resume()


def _generator(folder: Path) -> psutil.Process:
    """Ours, which names the folder, once it runs."""
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if str(folder / "run.bin") in child.cmdline():
                    return child
        time.sleep(0.005)
    pytest.fail("the generator did not start")


@pytest.mark.broker
@needs_cc
@pytest.mark.parametrize(
    ("load", "policy"),
    [
        (Load("closed", 2, 0.1, 0.05), os.SCHED_BATCH),
        (Load("closed", 1, 0.1, 0.05), os.SCHED_OTHER),
        (Load("open", 100, 0.1, 0.05), os.SCHED_OTHER),
    ],
    ids=["two outstanding", "one outstanding", "a rate"],
)
def test_the_generator_gives_way_only_where_a_highest_rate_is_measured(
    broker: Broker, numbered: Workload, tmp_path: Path, load: Load, policy: int
) -> None:
    generator, seen = Generator(programs.build(), numbered, Route(broker.port, "t", "t", 0), tmp_path), []

    def watch() -> None:
        process = _generator(tmp_path)
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            while process.status() != psutil.STATUS_ZOMBIE:
                seen.append(os.sched_getscheduler(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()

    generator.run(load)
    watcher.join()

    assert seen[-1] == policy


def test_a_burst_is_what_was_written_at_once_in_the_measured_time() -> None:
    run = run_of(0, [-5, 100, 100, 100, 200], [(300, answer(1, "b"))])
    run.watched_ns = (0, 0)

    facts = main_job.facts(run, judge.results(run, workload()))

    assert facts["burst"] == 2.0
