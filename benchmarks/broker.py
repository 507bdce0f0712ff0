"""A mosquitto of the benchmark's own, tuned or stock; its start and its subscriptions are seen."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_runtime.demo.broker import HOST, find_mosquitto, free_port

START_S = 10.0
SUBSCRIBE_S = 20.0
STOP_S = 5.0
CONFIG = """\
listener {port} {host}
allow_anonymous true
persistence false
log_dest stderr
log_type error
log_type warning
log_type information
log_type subscribe
"""
SETUPS = {
    "nodelay": "set_tcp_nodelay true\nmax_inflight_messages 1000\nmax_queued_messages 1000000\n",
    "stock": "",
}


class BrokerError(Exception):
    """The broker is missing, did not start, or did not see what it was to see."""


class Broker:
    """A running broker. Its log is a pipe, so that a line can be timed by our own clock."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port
        self._unread = b""

    def wait_for_subscription(self, topic_filter: str, client: subprocess.Popen[bytes]) -> int:
        """Monotonic ns when the broker's log says that the next client subscribed to a filter.

        client: the process that is to do so. Raises BrokerError when it ends before, or takes too long.
        """
        return self._wait_for(f" {topic_filter}\n", SUBSCRIBE_S, client)

    def wait_until_listening(self) -> None:
        self._wait_for(" running\n", START_S, self.process)
        with socket.create_connection((HOST, self.port), START_S):
            pass

    def _wait_for(self, end_of_line: str, timeout_s: float, alive: subprocess.Popen[bytes]) -> int:
        """Read the log up to the next line that ends so; when that was, monotonic ns."""
        assert self.process.stderr is not None
        fileno, wanted = self.process.stderr.fileno(), end_of_line.encode()
        deadline_s = time.monotonic() + timeout_s
        while wanted not in self._unread:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or alive.poll() is not None:
                raise BrokerError(
                    f"mosquitto never logged {end_of_line.strip()!r}; last words: {self._unread[-600:]!r}"
                )
            if select.select([fileno], [], [], min(left_s, 0.1))[0]:
                self._unread += os.read(fileno, 65_536)
        seen_ns = time.monotonic_ns()
        self._unread = self._unread.split(wanted, 1)[1]
        return seen_ns


@contextmanager
def started(folder: Path, setup: str = "nodelay") -> Iterator[Broker]:
    """A broker on a free port that ends with the block. setup: nodelay, without limits a load would meet, or stock.

    Raises BrokerError.
    """
    port = free_port()
    config = folder / f"mosquitto-{setup}.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(user + CONFIG.format(port=port, host=HOST) + SETUPS[setup])
    with subprocess.Popen([program(), "-c", str(config)], stderr=subprocess.PIPE) as process:
        try:
            broker = Broker(process, port)
            broker.wait_until_listening()
            yield broker
        finally:
            process.terminate()
            try:
                process.communicate(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def program() -> str:
    found = find_mosquitto()
    if found is None:
        raise BrokerError("mosquitto is neither on PATH nor in /usr/sbin; install it: sudo apt-get install mosquitto")
    return found


def version() -> str:
    """As `mosquitto -h` says it: "mosquitto version 2.0.11"."""
    said = subprocess.run([program(), "-h"], capture_output=True, text=True, check=False).stdout
    return said.split("version ", 1)[1].split()[0]
