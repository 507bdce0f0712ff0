"""The demo as a user runs it, with each kind of broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from broker import find_mosquitto

HIDE_MOSQUITTO = "from edge_runtime.demo import broker; broker.find_mosquitto = lambda: None; "
MAIN = "from edge_runtime.cli import main; main()"


def demo(*words: str, before: str = "", timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", before + MAIN, "demo", *words],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_one_bearing_fails_the_alarm_is_seen_and_the_ledger_balances(tmp_path: Path) -> None:
    found = demo("--seconds", "12", "--state-dir", str(tmp_path))

    assert found.returncode == 0, found.stdout + found.stderr
    assert "alarm: pump-2" in found.stdout
    assert "alarm: pump-1" not in found.stdout
    assert "\nbalanced\n" in found.stdout
    assert "dropped 0" in found.stdout
    assert f"latency log: {tmp_path / 'latency' / 'latency.hlog'}" in found.stdout
    assert (tmp_path / "latency" / "latency.hlog").stat().st_size > 0


def test_without_mosquitto_the_demo_runs_on_amqtt_over_mqtt_3_1_1(tmp_path: Path) -> None:
    pytest.importorskip("amqtt", reason="needs the demo extra")
    found = demo("--seconds", "10", "--state-dir", str(tmp_path), before=HIDE_MOSQUITTO)

    assert found.returncode == 0, found.stdout + found.stderr
    assert "broker amqtt (MQTT 3.1.1)" in found.stdout
    assert "alarm: pump-2" in found.stdout
    assert "\nbalanced\n" in found.stdout


def test_without_any_broker_the_demo_says_what_to_install(tmp_path: Path) -> None:
    hide_amqtt = "import sys; sys.modules['amqtt'] = None; "
    found = demo("--seconds", "2", "--state-dir", str(tmp_path), before=hide_amqtt + HIDE_MOSQUITTO)

    assert found.returncode == 1
    assert "apt-get install mosquitto" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_broker_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    found = demo("--broker", "mqtt://127.0.0.1:1", "--state-dir", str(tmp_path))

    assert found.returncode == 1
    assert found.stderr.startswith("error: mqtt://127.0.0.1:1: ")
    assert "Traceback" not in found.stderr


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_ctrl_c_ends_the_demo_with_its_summary(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "demo", "--state-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        for line in process.stdout:
            if "windows/s" in line:
                break
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()

    assert process.returncode == 0, err
    assert "balanced" in out
