from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import write_means_bundle

from edge_runtime.model.bundle import read
from edge_runtime.model.session import SessionSettings
from edge_runtime.model.threads import (
    LEAST_ROUNDS,
    SECONDS_PER_COUNT,
    WORTH_IT,
    ThreadChoice,
    choose_threads,
    counts_here,
    fewest,
)

COUNTS = (1, 2, 3, 4, 6)


class Device:
    """A model that takes so many ms with so many threads; runs and pauses move the clock."""

    def __init__(self, times_ms: dict[int, float]) -> None:
        self.times_ms, self.now_ns, self.loaded, self.runs = times_ms, 0, [], 0

    def load(self, threads: int) -> Callable[[], object]:
        self.loaded.append(threads)

        def run() -> None:
            self.runs += 1
            self.now_ns += int(self.times_ms[threads] * 1e6)

        return run

    def pause(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)

    def choose(self) -> ThreadChoice:
        return fewest(COUNTS, self.load, now_ns=lambda: self.now_ns, pause=self.pause)


@pytest.mark.parametrize(
    ("times_ms", "threads", "tried"),
    [
        ({1: 0.02, 2: 0.06}, 1, [1, 2]),
        ({1: 10, 2: 10.1}, 1, [1, 2]),
        ({1: 10, 2: 9.1, 3: 9.05, 4: 9.0, 6: 9.5}, 4, [1, 2, 3, 4, 6]),
        ({1: 10, 2: 9.1, 3: 9.05, 4: 9.04, 6: 9.02}, 1, [1, 2, 3, 4, 6]),
        ({1: 10, 2: 5.5, 3: 4.2, 4: 4.3}, 3, [1, 2, 3, 4]),
        ({1: 10, 2: 5.5, 3: 5.1, 4: 4.9, 6: 4.9}, 4, [1, 2, 3, 4, 6]),
    ],
)
def test_more_threads_are_taken_only_for_a_tenth_of_the_time(
    times_ms: dict[int, float], threads: int, tried: list[int]
) -> None:
    device = Device(times_ms)

    choice = device.choose()

    assert choice == ThreadChoice(threads, {count: times_ms[count] for count in tried})
    assert device.loaded == tried


def test_the_search_is_bounded_in_time_but_for_a_few_runs() -> None:
    quick, slow = Device({1: 0.1, 2: 0.05, 3: 0.05, 4: 0.05, 6: 0.05}), Device({1: 900, 2: 1000})
    quick.choose()
    slow.choose()

    assert quick.now_ns < 4 * (SECONDS_PER_COUNT + 0.02) * 1e9
    assert slow.runs == 2 * LEAST_ROUNDS


def test_the_medians_of_a_real_model_decide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", logger="edge_runtime.model")
    monkeypatch.setattr("edge_runtime.model.threads.SECONDS_PER_COUNT", 0.05)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})

    choice = choose_threads(read(write_means_bundle(tmp_path / "m.edge")), SessionSettings())

    assert list(choice.p50_ms) == [1, 2]
    assert choice.threads == (2 if choice.p50_ms[2] <= WORTH_IT * choice.p50_ms[1] else 1)
    (record,) = [record for record in caplog.records if record.getMessage() == "threads_chosen"]
    assert (record.model, record.threads, record.p50_ms) == ("means@1.0.0", choice.threads, choice.p50_ms)


def test_the_numbers_tried_end_with_the_cores_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5, 7, 9})

    assert counts_here(SessionSettings()) == (1, 2, 3, 4)
    assert counts_here(SessionSettings(provider="CUDAExecutionProvider")) == (1,)
    assert fewest((1,), lambda _: lambda: None) == ThreadChoice(1, {})
