"""A daemon that hangs is ended, one that lives says so to systemd."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker import Broker, until
from bundles import means_manifest, slow_model, write_means_bundle
from daemon import Daemon, payload, subscribed, write_config

NOWHERE = "mqtt://127.0.0.1:1"
WATCHDOG_S = 2.0
ENDLESS = 1e15
"""A sample that asks the slow model for more rounds than anyone waits for."""


def with_watchdog(config: Path, watchdog_s: float = WATCHDOG_S) -> Path:
    config.write_text(config.read_text().replace('id = "n1"', f'id = "n1"\nwatchdog_s = {watchdog_s}'))
    return config


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        told.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "900000")
        yield told


def test_systemd_is_told_of_start_life_and_stop_even_without_a_broker(tmp_path: Path, systemd: socket.socket) -> None:
    daemon = Daemon(write_config(tmp_path, NOWHERE))
    try:
        words = [systemd.recv(4096).decode() for _ in range(4)]
        daemon.stop()
    finally:
        daemon.close()
    systemd.setblocking(False)
    words.append(systemd.recv(4096).decode())
    while words[-1] == "WATCHDOG=1":
        words.append(systemd.recv(4096).decode())

    assert words[0] == "READY=1"
    assert set(words[1:-1]) == {"WATCHDOG=1"}
    assert words[-1] == "STOPPING=1"


@pytest.mark.broker
@pytest.mark.parametrize(("execution", "part"), [("worker", "the model"), ("inline", "the loop")])
def test_a_model_that_never_ends_ends_the_daemon(broker: Broker, tmp_path: Path, execution: str, part: str) -> None:
    config = with_watchdog(write_config(tmp_path, broker.url, pipeline=f'execution = "{execution}"'))
    model = slow_model(length=4, channels=2)
    write_means_bundle(tmp_path / "means.edge", means_manifest(length=4, hop=4), model=model)
    daemon = Daemon(config)
    try:
        daemon.wait_connected()
        subscribed(broker, tmp_path)
        broker.probe().publish("in/a/v", payload(0, [[ENDLESS, 0]] * 4))
        code = daemon.process.wait(20)
    finally:
        daemon.close()

    assert code == 1, daemon.log
    assert daemon.log.splitlines()[-1] == f"error: {part} has not moved for 2 s"
    assert [event["part"] for event in daemon.events("hung")] == [part]
    assert "session.py" in "".join(daemon.events("hung")[0]["stacks"].values())


def test_a_loop_that_moves_is_left_alone_though_nothing_comes(tmp_path: Path) -> None:
    daemon = Daemon(with_watchdog(write_config(tmp_path, NOWHERE)))
    try:
        until(lambda: bool(daemon.events("started")), what="the daemon has started")
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(1.6 * WATCHDOG_S)
        daemon.stop()
    finally:
        daemon.close()
