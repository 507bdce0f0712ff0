"""The daemon as a user runs it: a process of its own, with a config file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from broker import Broker, until
from bundles import means_manifest, write_means_bundle

CONFIG = """
[node]
id = "n1"
state_dir = "{folder}/state"
metrics_interval_s = 0.2

[mqtt]
url = "{url}"
reconnect_max_s = 0.5
{mqtt}

[models.means]
bundle = "means.edge"

[pipelines.p]
source = {{ topic = "in/+machine/v", path = "v", seq_field = "n", max_payload_bytes = 100_000 }}
model = "means"
decide = {{ alarm_on = "moving", score = 0.6 }}
{pipeline}
{more}
"""

LOGGED = "edge_runtime"


def write_config(folder: Path, url: str, *, mqtt: str = "", pipeline: str = "", more: str = "") -> Path:
    """A pipeline of means over windows of four rows of two channels."""
    write_means_bundle(folder / "means.edge", means_manifest(length=4, hop=4))
    path = folder / "device.toml"
    path.write_text(CONFIG.format(folder=folder, url=url, mqtt=mqtt, pipeline=pipeline, more=more))
    return path


class Daemon:
    """Started at once; `stop` gives the summary."""

    def __init__(self, config: Path, *, program: tuple[str, ...] = ("-m", "edge_runtime")) -> None:
        self._log = config.parent / "daemon.log"
        self._out = config.parent / "summary.json"
        with self._log.open("wb") as log, self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, *program, "run", str(config), "--json"], stdout=out, stderr=log
            )

    def events(self, name: str = "") -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if not name or line["event"] == name]

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_connected(self, times: int = 1) -> None:
        until(
            lambda: self.process.poll() is not None or len(self.events("mqtt_connected")) >= times,
            what=f"the daemon is connected ({self.log})",
        )
        assert self.process.poll() is None, self.log

    def stop(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log
        summary: dict[str, Any] = json.loads(self._out.read_text())
        return summary

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)


def payload(n: int, rows: list[list[float]]) -> bytes:
    return json.dumps({"n": n, "v": rows}).encode()


def account(summary: dict[str, Any], pipeline: str = "p") -> dict[str, Any]:
    return next(found for found in summary["ledger"]["pipelines"] if found["pipeline"] == pipeline)


def subscribed(broker: Broker, folder: Path, filters: int = 1) -> None:
    """Wait until the broker has taken the daemon's subscriptions."""
    until(lambda: broker.log.count("Sending SUBACK to edge-runtime-n1") >= filters, what="SUBACK")


@contextmanager
def serving(device: Path, bundle: Path, broker: Broker, folder: Path) -> Iterator[Daemon]:
    """The daemon with an example's own device config, but for broker, bundle, state_dir and node."""
    given = {"url": broker.url, "bundle": str(bundle), "state_dir": str(folder / "state"), "id": "n1"}
    lines = []
    for line in device.read_text().splitlines():
        key = line.split("=")[0].strip()
        lines.append(f'{key} = "{given[key]}"' if key in given else line)
    config = folder / "device.toml"
    config.write_text("\n".join(lines))
    daemon = Daemon(config)
    try:
        daemon.wait_connected()
        subscribed(broker, folder)
        yield daemon
    finally:
        daemon.close()
