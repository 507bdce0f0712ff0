from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edge_runtime.device.systemd import FEEDS_PER_INTERVAL, Notifier, Watchdog, notifier, watchdog_interval_ns

INTERVAL_NS = 30 * 10**9
THIRD_NS = INTERVAL_NS // FEEDS_PER_INTERVAL

Heard = Callable[[], list[str]]


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@edge-runtime-{uuid.uuid4().hex}"


@pytest.fixture
def heard(address: str) -> Iterator[Heard]:
    """What came since it was asked last."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as systemd:
        systemd.bind(address.replace("@", "\0", 1))

        def words() -> list[str]:
            found = []
            with suppress(BlockingIOError):
                while True:
                    found.append(systemd.recv(4096).decode())
            return found

        yield words


def test_every_word_is_one_datagram(address: str, heard: Heard) -> None:
    tell = notifier({"NOTIFY_SOCKET": address})
    tell.ready()
    tell.status("connecting to\nbroker.local ")
    tell.alive()
    tell.stopping()

    assert heard() == ["READY=1", "STATUS=connecting to broker.local", "WATCHDOG=1", "STOPPING=1"]


def test_without_systemd_nobody_is_told() -> None:
    tell = notifier({})
    tell.ready()
    tell.stopping()


def test_a_systemd_that_is_away_is_logged_once_each_time_and_told_again_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "notify")
    tell = Notifier(path)
    for _ in range(2):
        tell.alive()
        tell.alive()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(path)
            tell.alive()
            assert systemd.recv(64) == b"WATCHDOG=1"
        Path(path).unlink()

    assert [record.getMessage() for record in caplog.records] == ["systemd_not_told"] * 2


def test_a_systemd_that_does_not_read_holds_nothing_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "notify")
    tell = Notifier(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        for _ in range(5000):
            tell.alive()

    assert [record.getMessage() for record in caplog.records] == ["systemd_not_told"]


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative/path"])
def test_an_address_of_another_kind_is_said_once_and_not_used(address: str, caplog: pytest.LogCaptureFixture) -> None:
    tell = Notifier(address)
    tell.ready()

    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.WARNING, "systemd_not_told")]


@pytest.mark.parametrize(
    ("environ", "interval_ns"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "30000000"}, INTERVAL_NS),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, INTERVAL_NS),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "30 s"}, 0),
    ],
)
def test_the_interval_is_the_one_meant_for_this_process(environ: dict[str, str], interval_ns: int) -> None:
    assert watchdog_interval_ns(environ) == interval_ns


def test_the_watchdog_is_fed_at_a_third_of_the_interval(address: str, heard: Heard) -> None:
    watchdog = Watchdog(Notifier(address), INTERVAL_NS)
    fed_at = []
    for now_ns in range(10**9, 60 * 10**9, 10**9):
        watchdog.feed(now_ns)
        fed_at += [now_ns // 10**9] * len(heard())

    assert fed_at == [1, 11, 21, 31, 41, 51]


def test_without_an_interval_the_watchdog_says_nothing(address: str, heard: Heard) -> None:
    Watchdog(Notifier(address), 0).feed(10**12)

    assert heard() == []


def test_work_that_does_not_move_any_more_is_not_vouched_for_until_it_does(address: str, heard: Heard) -> None:
    sign: object = 7
    watchdog = Watchdog(Notifier(address), INTERVAL_NS, sign=lambda: sign)
    said = []
    for n in range(8):
        sign = 8 if n == 6 else None if n == 7 else 7
        watchdog.feed(n * THIRD_NS)
        said.append(len(heard()))

    assert said == [1, 1, 1, 1, 0, 0, 1, 1]


def test_work_that_may_take_longer_is_given_that_long(address: str, heard: Heard) -> None:
    watchdog = Watchdog(Notifier(address), INTERVAL_NS, sign=lambda: 7, limit_s=60.0)
    for n in range(8):
        watchdog.feed(n * THIRD_NS)

    assert len(heard()) == 7


def test_idle_is_not_stuck_however_long_it_lasts(address: str, heard: Heard) -> None:
    signs = iter([7, 7, None, *[7] * 4])
    watchdog = Watchdog(Notifier(address), INTERVAL_NS, sign=lambda: next(signs))
    for n in range(7):
        watchdog.feed(n * THIRD_NS)

    assert len(heard()) == 7
