"""A broker for the demo, on loopback: mosquitto when it is installed, else amqtt (MQTT 3.1.1 only)."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from edge_runtime.errors import DependencyError, TransportError

HOST = "127.0.0.1"
START_S = 15.0
STOP_S = 3.0
SBIN = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


class Broker(msgspec.Struct, frozen=True):
    """Where the demo's broker listens, and what it speaks."""

    url: str
    protocol: Literal["5", "3.1.1"]
    name: str


@contextmanager
def started(folder: Path) -> Iterator[Broker]:
    """A broker that ends with the block. folder: for its config and log.

    Raises DependencyError when there is none to start, TransportError when it does not come up.
    """
    port = free_port()
    program = find_mosquitto()
    if program:
        config = folder / "mosquitto.conf"
        config.write_text(
            f"listener {port} {HOST}\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n"
            "max_queued_messages 100000\n"
        )
        command, broker = [program, "-c", str(config)], Broker(f"mqtt://{HOST}:{port}", "5", "mosquitto")
    elif _have_amqtt():
        command = [sys.executable, "-m", "edge_runtime.demo.amqtt_broker", HOST, str(port)]
        broker = Broker(f"mqtt://{HOST}:{port}", "3.1.1", "amqtt")
    else:
        raise DependencyError(
            "the demo needs a broker: install mosquitto (sudo apt-get install mosquitto) or amqtt "
            "(pip install 'edge-runtime[demo]'), or name one with --broker mqtt://host:port"
        )
    log = folder / "broker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        _wait_until_listening(process, port, log)
        yield broker
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def find_mosquitto() -> str | None:
    """Its path; sbin folders are searched too, where a user's PATH often does not reach."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=":".join(SBIN))


def _have_amqtt() -> bool:
    try:
        return importlib.util.find_spec("amqtt") is not None
    except ValueError:
        return False


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0 and process.poll() is None:
                return
        time.sleep(0.05)
    said = log.read_text(errors="replace").strip().splitlines()[-1:]
    raise TransportError(f"the broker did not start: {' '.join(said) or 'no word from it'} (log: {log})")
