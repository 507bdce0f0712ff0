"""The demo: a broker, three simulated pumps, the daemon in a process of its own, and a live table of what it says."""

from __future__ import annotations

import secrets
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path
from typing import Literal

import click
import msgspec
from paho.mqtt.client import Client, ConnectFlags, MQTTMessage, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from rich.console import Console
from rich.live import Live

from edge_runtime import report
from edge_runtime.daemon import Summary
from edge_runtime.demo.board import Board
from edge_runtime.demo.broker import Broker, started
from edge_runtime.demo.pump import PUMPS, RATE_HZ, SCALE_G, Fault, Pump, to_int16
from edge_runtime.errors import EdgeRuntimeError, TransportError
from edge_runtime.mqtt.settings import parse_url
from edge_runtime.mqtt.topics import Tree
from edge_runtime.stop import StopSignal

CHUNK_S = 0.1
FAILS_AFTER_S = 8.0
RAMP_S = 4.0
FAILING = "pump-2"
FAULT: Fault = "outer race"
CONNECT_S = 10.0
DAEMON_START_S = 20.0
DAEMON_STOP_S = 6.0
LINE_EVERY_S = 2.0
BUNDLE = "pump-vibration.edge"

CONFIG = """\
[node]
id = "{node}"
state_dir = {state_dir}
metrics_interval_s = 1.0

[mqtt]
url = "{url}"
protocol = "{protocol}"

[models.pump]
bundle = {bundle}

[pipelines.vibration]
source = {{ topic = "{node}/+pump/vib", format = "raw", dtype = "int16", scale = {scale}{seq} }}
model = "pump"
decide = {{ alarm_on = "not ok", score = 0.9, k = 3, n = 5 }}
"""


def run(*, seconds: float | None, broker: str | None, state_dir: Path | None) -> int:
    """Run until Ctrl-C, SIGTERM or for so many seconds; print what became of every message.

    Returns the exit code: 0 when everything came out as it should. Raises EdgeRuntimeError when it cannot begin.
    """
    stop = StopSignal()
    folder = _folder(state_dir)
    with ExitStack() as stack:
        given = Broker(broker, "5", "given") if broker else stack.enter_context(started(folder))
        tree = Tree("edge/v1", f"demo-{secrets.token_hex(3)}")
        board = Board(tree, list(PUMPS))
        client = stack.enter_context(_connected(given, tree, board))
        daemon = stack.enter_context(_daemon(given, tree, folder))
        _wait_until_online(board, daemon, folder, stop)
        plant = Plant(client, tree.node, numbered=given.protocol == "5")
        fails_at_s = FAILS_AFTER_S if seconds is None else min(FAILS_AFTER_S, seconds / 3)
        _watch(board, plant, daemon, stop, seconds=seconds, fails_at_s=fails_at_s)
        _wait_until_received(board, plant, daemon)
        summary = _end(daemon, folder)
    return _sum_up(board, plant, summary, given, folder)


def _folder(state_dir: Path | None) -> Path:
    try:
        folder = state_dir or Path(tempfile.mkdtemp(prefix="edge-runtime-demo-"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "demo.toml").touch()
    except OSError as error:
        raise EdgeRuntimeError(f"{state_dir}: cannot be written to: {error.strerror or error}") from error
    return folder


class Plant:
    """The three pumps; publishes what their sensors read, numbered where the protocol carries properties."""

    def __init__(self, client: Client, prefix: str, *, numbered: bool) -> None:
        self._client, self._prefix, self._numbered = client, prefix, numbered
        self._pumps = {name: Pump(spec, seed) for seed, (name, spec) in enumerate(PUMPS.items())}
        self._chunks = 0
        self.published = 0
        self.happening = "all pumps are well (simulated)"

    def advance(self) -> None:
        """Publish the next CHUNK_S of every pump."""
        for name, pump in self._pumps.items():
            payload = to_int16(pump.chunk(round(RATE_HZ * CHUNK_S))).tobytes()
            properties = self._number() if self._numbered else None
            self._client.publish(f"{self._prefix}/{name}/vib", payload, qos=1, properties=properties)
            self.published += 1
        self._chunks += 1

    def _number(self) -> Properties:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.UserProperty = [("seq", str(self._chunks))]
        return properties

    def break_bearing(self) -> None:
        self._pumps[FAILING].fail(FAULT, ramp_s=RAMP_S)
        self.happening = f"{FAILING}: a bearing begins to fail ({FAULT}, simulated)"


@contextmanager
def _connected(broker: Broker, tree: Tree, board: Board) -> Iterator[Client]:
    """The demo's own client: it plays the sensors and reads what the daemon publishes."""
    try:
        endpoint = parse_url(broker.url)
    except ValueError as error:
        raise TransportError(str(error)) from error
    protocol = MQTTv5 if broker.protocol == "5" else MQTTv311
    transport: Literal["tcp", "websockets"] = "websockets" if endpoint.path else "tcp"
    client = Client(
        CallbackAPIVersion.VERSION2, client_id=f"{tree.node}-sensors", protocol=protocol, transport=transport
    )
    if endpoint.path:
        client.ws_set_options(path=endpoint.path)
    if endpoint.tls:
        client.tls_set_context(ssl.create_default_context())

    def on_connect(
        found: Client, _user: object, _flags: ConnectFlags, _code: ReasonCode, _properties: Properties | None
    ) -> None:
        found.subscribe(tree.everything, qos=1)

    def on_message(_client: Client, _user: object, message: MQTTMessage) -> None:
        board.take(message.topic, bytes(message.payload))

    client.on_connect, client.on_message = on_connect, on_message
    client.max_inflight_messages_set(1000)
    try:
        client.connect(endpoint.host, endpoint.port, keepalive=30)
    except OSError as error:
        raise TransportError(f"{broker.url}: {error.strerror or error}") from error
    client.loop_start()
    try:
        deadline_s = time.monotonic() + CONNECT_S
        while not client.is_connected():
            if time.monotonic() > deadline_s:
                raise TransportError(f"{broker.url}: no MQTT {broker.protocol} connection within {CONNECT_S:.0f} s")
            time.sleep(0.02)
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def configuration(node: str, url: str, protocol: str, *, state_dir: Path, bundle: Path) -> str:
    """The daemon's, as TOML; on MQTT 5 the pumps number their messages."""
    return CONFIG.format(
        node=node,
        state_dir=_toml_text(state_dir.resolve()),
        url=url,
        protocol=protocol,
        bundle=_toml_text(bundle.resolve()),
        scale=SCALE_G,
        seq=', seq_property = "seq"' if protocol == "5" else "",
    )


@contextmanager
def _daemon(broker: Broker, tree: Tree, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon as a user runs it, in a process of its own."""
    config = folder / "demo.toml"
    with resources.as_file(resources.files("edge_runtime.demo") / BUNDLE) as bundle:
        config.write_text(configuration(tree.node, broker.url, broker.protocol, state_dir=folder, bundle=bundle))
        command = [sys.executable, "-m", "edge_runtime", "run", str(config), "--json"]
        with (folder / "summary.json").open("wb") as output, (folder / "daemon.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=output, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _toml_text(path: Path) -> str:
    return msgspec.json.encode(str(path)).decode()


def _wait_until_online(board: Board, daemon: subprocess.Popen[bytes], folder: Path, stop: StopSignal) -> None:
    deadline_s = time.monotonic() + DAEMON_START_S
    while not board.online and not stop.asked:
        if daemon.poll() is not None or time.monotonic() > deadline_s:
            said = (folder / "daemon.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise EdgeRuntimeError(f"the daemon did not come online: {' '.join(said)} (log: {folder / 'daemon.log'})")
        time.sleep(0.02)


def _watch(
    board: Board,
    plant: Plant,
    daemon: subprocess.Popen[bytes],
    stop: StopSignal,
    *,
    seconds: float | None,
    fails_at_s: float,
) -> None:
    """Drive the plant in real time and show the board."""
    console = Console()
    begun_s = time.monotonic()
    with ExitStack() as stack:
        live = stack.enter_context(Live(console=console, refresh_per_second=8)) if console.is_terminal else None
        next_line_s, broken = 0.0, False
        while not stop.asked and daemon.poll() is None:
            at_s = time.monotonic() - begun_s
            if seconds is not None and at_s >= seconds:
                return
            if not broken and at_s >= fails_at_s:
                plant.break_bearing()
                broken = True
            plant.advance()
            if live:
                live.update(board.render(plant.happening))
            elif at_s >= next_line_s:
                click.echo(board.line(plant.happening))
                next_line_s += LINE_EVERY_S
            time.sleep(max(0.0, CHUNK_S - (time.monotonic() - begun_s - at_s)))


def _wait_until_received(board: Board, plant: Plant, daemon: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + CONNECT_S
    while board.received < plant.published and daemon.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.05)


def _end(daemon: subprocess.Popen[bytes], folder: Path) -> Summary:
    """Stop the daemon, read its summary."""
    daemon.terminate()
    try:
        code = daemon.wait(DAEMON_STOP_S)
    except subprocess.TimeoutExpired as error:
        raise EdgeRuntimeError(f"the daemon did not stop within {DAEMON_STOP_S:.0f} s of SIGTERM") from error
    if code != 0:
        raise EdgeRuntimeError(f"the daemon ended with exit code {code} (log: {folder / 'daemon.log'})")
    return msgspec.json.decode((folder / "summary.json").read_bytes(), type=Summary)


def _sum_up(board: Board, plant: Plant, summary: Summary, broker: Broker, folder: Path) -> int:
    received = summary.ledger.overall.received
    click.echo("")
    click.echo(
        f"broker {broker.name} (MQTT {broker.protocol}); {plant.published} messages published, {received} received"
    )
    for stream, at_s, label in board.alarms:
        click.echo(f"alarm: {stream} at {at_s:.1f} s ({label})")
    if not board.alarms:
        click.echo("no alarm was raised")
    click.echo("")
    click.echo(report.summary(summary))
    click.echo(f"everything this run wrote: {folder}")
    lost = plant.published - received
    if lost:
        click.echo(f"{lost} messages did not reach the daemon", err=True)
    return 0 if summary.balanced and not lost else 1
