"""The demo without its screen, quicker than real time: its daemon in a process of its own, its bundle, its pumps."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import msgspec
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks import broker, processes
from benchmarks.processes import SubjectError
from edge_runtime.daemon import Summary
from edge_runtime.demo.board import Board
from edge_runtime.demo.broker import HOST
from edge_runtime.demo.pump import PUMPS, RATE_HZ
from edge_runtime.demo.show import BUNDLE, CHUNK_S, FAILING, Plant, configuration
from edge_runtime.model import bundle
from edge_runtime.mqtt.topics import Tree

NODE = "pumps"
EVERY_S = 0.005
CONNECT_S, ANSWER_S, STOP_S = 10.0, 30.0, 20.0
STATE = "state"


class Served(msgspec.Struct, frozen=True):
    """What became of a run. alarms: pumps whose alarm went on. start_s: from asking for the process to its
    subscription.
    """

    start_s: float
    published: int
    results: int
    results_wanted: int
    alarms: tuple[str, ...]
    summary: Summary


class Place(msgspec.Struct, frozen=True):
    """How the daemon is started. folder: its files; state_dir lies in it and is new, or has what is to be found there.

    inside: its command as it is to be run. modules: a folder whose modules come before those installed.
    """

    folder: Path
    inside: Callable[[Sequence[str]], Sequence[str]] = tuple
    modules: Path | None = None


def serve(place: Place, chunks: int, look: Callable[[int], None]) -> Served:
    """Serve so many times CHUNK_S of each pump, of which one begins to fail; then stop.

    look: called with the daemon's process id between messages. Raises SubjectError when it does not start, answer,
    or stop; BrokerError.
    """
    board = Board(Tree("edge/v1", NODE), list(PUMPS))
    with broker.started(place.folder) as found, _started(place, found.port) as process:
        begun_ns = time.monotonic_ns()
        try:
            ready_ns = found.wait_for_subscription(f"{NODE}/+/vib", process)
        except broker.BrokerError as error:
            raise _failure(place, process, "did not subscribe") from error
        wanted = _windows(chunks) * len(PUMPS)
        with _connected(found.port, board) as client:
            plant = Plant(client, NODE, numbered=True)
            for number in range(chunks):
                if number == chunks // 3:
                    plant.break_bearing()
                plant.advance()
                look(process.pid)
                time.sleep(EVERY_S)
            answered = _wait(lambda: _results(board) >= wanted or process.poll() is not None, ANSWER_S)
        if not answered or process.poll() is not None:
            raise _failure(place, process, f"{_results(board)} results, wanted {wanted}")
        look(process.pid)
        summary = _stop(place, process)
    alarms = tuple(sorted({stream for stream, _, _ in board.alarms}))
    return Served((ready_ns - begun_ns) / 1e9, plant.published, _results(board), wanted, alarms, summary)


def is_as_it_should_be(served: Served) -> bool:
    """Every window answered once, the failing pump alone in alarm, every message received, the ledger balanced."""
    received = served.summary.ledger.overall.received
    return (
        served.results == served.results_wanted
        and served.alarms == (FAILING,)
        and received == served.published
        and served.summary.balanced
        and served.summary.drained
    )


def _windows(chunks: int) -> int:
    """Of one pump."""
    with resources.as_file(resources.files("edge_runtime.demo") / BUNDLE) as path:
        spec = bundle.read(path).manifest.input
    return (chunks * round(RATE_HZ * CHUNK_S) - spec.length) // spec.hop + 1


def _results(board: Board) -> int:
    return sum(view.windows for view in board.streams.values())


@contextmanager
def _started(place: Place, port: int) -> Iterator[subprocess.Popen[bytes]]:
    config = place.folder / "demo.toml"
    with resources.as_file(resources.files("edge_runtime.demo") / BUNDLE) as path:
        text = configuration(NODE, f"mqtt://{HOST}:{port}", "5", state_dir=place.folder / STATE, bundle=path)
        config.write_text(text)
        environment = processes.ENVIRONMENT | ({"PYTHONPATH": str(place.modules)} if place.modules else {})
        command = place.inside([sys.executable, "-m", "edge_runtime", "run", str(config), "--json"])
        with (place.folder / "summary.json").open("wb") as output, (place.folder / "daemon.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=output, stderr=log, env=environment, cwd=place.folder)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def _connected(port: int, board: Board) -> Iterator[Client]:
    """The pumps' client, which reads what the daemon answers, too."""
    client = Client(CallbackAPIVersion.VERSION2, client_id=f"{NODE}-sensors", protocol=MQTTv5)
    subscribed = threading.Event()
    client.on_connect = lambda found, *_: found.subscribe(f"edge/v1/{NODE}/p/vibration/out/#", qos=1)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda _client, _user, message: board.take(message.topic, bytes(message.payload))
    client.connect(HOST, port)
    client.loop_start()
    try:
        if not subscribed.wait(CONNECT_S):
            raise SubjectError(f"the pumps are not subscribed after {CONNECT_S:g} s")
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def _stop(place: Place, process: subprocess.Popen[bytes]) -> Summary:
    process.terminate()
    try:
        code = process.wait(STOP_S)
    except subprocess.TimeoutExpired as error:
        raise _failure(place, process, f"did not stop in {STOP_S:g} s") from error
    if code != 0:
        raise _failure(place, process, "did not end as asked")
    return msgspec.json.decode((place.folder / "summary.json").read_bytes(), type=Summary)


def _failure(place: Place, process: subprocess.Popen[bytes], fact: str) -> SubjectError:
    said = (place.folder / "daemon.log").read_text(errors="replace").strip()[-800:]
    return SubjectError(f"the daemon: {fact}, exit code {process.poll()}; its log ends: {said}")


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(EVERY_S)
    return True
