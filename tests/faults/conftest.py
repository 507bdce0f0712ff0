"""Trials for the fault suite; EDGE_CHAOS=long makes them longer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker import Broker
from outcome import Tested, append, asked_for
from trial import PERSISTENT, SEED, Trial

StartTrial = Callable[..., Trial]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the long form every test is written down, too."""
    results = asked_for()
    if results is not None and "tests/faults/" in report.nodeid and (report.when == "call" or report.skipped):
        name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        append(Tested(name=name, outcome=report.outcome, seconds=round(report.duration, 2), reason=reason), results)


@pytest.fixture
def make_trial(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[StartTrial]:
    """Makes trials on a broker of the test's; ends what they started."""
    caplog.set_level(logging.INFO, logger="trial")
    made: list[Trial] = []

    def make(broker: Broker, **options: Any) -> Trial:
        made.append(Trial(tmp_path / f"trial{len(made)}", broker, **{"seed": SEED, **options}))
        return made[-1]

    yield make
    for trial in made:
        trial.close()


@pytest.fixture
def keeping_broker(start_broker: Callable[..., Broker], tmp_path: Path) -> Broker:
    """A broker that keeps sessions and queues over its own end, and holds as much as may come."""
    folder = tmp_path / "kept"
    folder.mkdir()
    return start_broker(lines=(*PERSISTENT, f"persistence_location {folder}/"))
