"""Trials for the fault suite; EDGE_CHAOS=long makes them longer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker import Broker
from trial import PERSISTENT, SEED, Trial

StartTrial = Callable[..., Trial]


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
