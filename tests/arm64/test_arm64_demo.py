"""The demo in an arm64 system, over its own mosquitto: three pumps, the daemon, the ledger."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from guest import LIMIT_S, LONG, SYSTEMS, TIMEOUT_S, Guest

SECONDS = 10
PATIENTLY = """
from edge_runtime.demo import show
show.CONNECT_S, show.DAEMON_START_S, show.DAEMON_STOP_S = 60, 120, 60
from edge_runtime.cli import main
main()
"""
"""An emulated start takes as many seconds as a board's takes tenths."""

pytestmark = pytest.mark.timeout(TIMEOUT_S)


@pytest.mark.parametrize(("suite", "core"), SYSTEMS if LONG else [("bookworm", "a72")])
def test_the_failing_bearing_raises_the_alarm_and_the_ledger_balances(
    suite: str, core: str, arm64: Callable[[str], Guest]
) -> None:
    done = arm64(suite).run(core, ["-c", PATIENTLY, "demo", "--seconds", str(SECONDS)], limit_s=LIMIT_S)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "broker mosquitto (MQTT 5)" in done.stdout
    assert "alarm: pump-2" in done.stdout
    assert "alarm: pump-1" not in done.stdout
    assert "\nbalanced\n" in done.stdout
    assert "dropped 0" in done.stdout
