from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bare, models, signals, workloads
from benchmarks.plan import Selection
from benchmarks.results import PACED_HZ
from benchmarks.workloads import DIGITS, FIRST_NUMBER, Cut, Workload


@given(
    samples=st.integers(1, 400), length=st.integers(1, 1100), more=st.integers(0, 600), messages=st.integers(0, 3000)
)
def test_a_window_is_complete_with_the_message_that_completes_it(
    samples: int, length: int, more: int, messages: int
) -> None:
    cut = Cut(samples, length, hop=samples + more)
    windows = cut.completed(messages)

    assert windows == sum((cut.length + i * cut.hop) <= messages * samples for i in range(windows + 2))
    assert windows == 0 or cut.completing(windows - 1) < messages
    assert cut.completing(windows) >= messages


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workload]:
    return workloads.build(tmp_path_factory.mktemp("workloads"), workloads.WORKLOADS)


def test_the_number_stands_where_the_generator_replaces_it(made: dict[str, Workload]) -> None:
    numbered = [found for found in made.values() if found.number_at >= 0]

    assert {found.name for found in numbered} == {"feat64", "win", "samp-1", "samp-16"}
    for found in numbered:
        assert {body[found.number_at :][:DIGITS] for body in found.bodies} == {b"%d" % FIRST_NUMBER}
        assert json.loads(found.body(17))["seq"] == FIRST_NUMBER + 17


def test_what_is_right_for_a_sliding_window_is_so_after_many_periods(made: dict[str, Workload]) -> None:
    found, window = made["samp-16"], 1000
    begin = window * 16
    rows = [json.loads(found.body(begin + i))["v"] for i in range(128)]

    scores = models.reference_scores(models.cnn(), np.array([rows], np.float32))[0]

    right = found.expected[window % len(found.expected)]
    assert (right.label, right.score) == (f"state-{scores.argmax()}", pytest.approx(float(scores.max()), abs=1e-6))


def test_labels_of_the_pumps_and_of_the_sliding_windows_vary(made: dict[str, Workload]) -> None:
    assert {right.label for right in made["pump"].expected} == set(made["pump"].model.labels)
    assert len({right.label for right in made["samp-1"].expected}) >= 3


def test_a_signal_whose_windows_resemble_each_other_is_refused() -> None:
    with pytest.raises(signals.SignalError, match="0% of windows differ"):
        signals.check_sliding(np.tile(np.array([0.9, 0.1], np.float32), (64, 1)))


def test_the_model_alone_is_called_hot_and_on_a_schedule(made: dict[str, Workload]) -> None:
    begin_s = time.monotonic()

    found = bare.measure(str(made["feat64"].model.onnx), calls=40)

    assert (found.n, found.paced_n) == (40, 40)
    assert time.monotonic() - begin_s >= 39 / PACED_HZ
    assert 0 < found.p50_us <= found.p99_us
    assert 0 < found.paced_p50_us <= found.paced_p99_us


def test_a_selection_leaves_what_was_asked_for() -> None:
    chosen = Selection(workloads=("feat64",), subjects=("lane", "bare"), qos=(1,), brokers=("stock",))

    assert [(case.key, list(case.loads)) for case in chosen.cases()] == [(("feat64", 1, "stock"), ["lane"])]
    assert chosen.bare() == ["feat64"]
