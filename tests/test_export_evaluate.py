"""The figures of the table, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from export.evaluate import bootstrap, mcnemar, snr_db, wilson

pytestmark = pytest.mark.torch


def test_wilson_gives_the_textbook_interval_for_81_of_263() -> None:
    """Newcombe 1998, table I, method 3: 81 of 263 is 0.2553 to 0.3662."""
    low, high = wilson(81, 263)

    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_wilson_of_nothing_wrong_reaches_one_and_stays_below_it_underneath() -> None:
    low, high = wilson(10, 10)

    assert high == pytest.approx(1.0)
    assert low == pytest.approx(10 / (10 + 1.959963984540054**2))


@pytest.mark.parametrize(
    ("lost", "won", "p"), [(0, 0, 1.0), (0, 5, 2 / 32), (1, 5, 14 / 64), (3, 3, 1.0), (0, 10, 2 / 1024)]
)
def test_mcnemar_is_the_exact_binomial_of_the_windows_only_one_gets_right(lost: int, won: int, p: float) -> None:
    before = np.array([True] * lost + [False] * won + [True, False])
    after = np.array([False] * lost + [True] * won + [True, False])

    assert mcnemar(before, after) == pytest.approx(p)


def test_snr_of_a_tenth_of_the_amplitude_is_twenty_decibels() -> None:
    reference = np.array([[3.0, 4.0]], np.float32)

    assert snr_db(reference, np.array([[3.3, 4.4]], np.float32)) == pytest.approx(20.0, abs=1e-4)
    assert snr_db(reference, reference) == math.inf


def test_the_bootstrap_repeats_itself_by_seed_and_brackets_the_value() -> None:
    generator = np.random.default_rng(0)
    targets = np.zeros(400, np.int64)
    outputs = generator.normal(loc=2.0, size=(400, 1)).astype(np.float32)

    def mean(values: np.ndarray, _targets: np.ndarray) -> float:
        return float(values.mean())

    low, high = bootstrap(mean, outputs, targets, seed=3)

    assert (low, high) == bootstrap(mean, outputs, targets, seed=3)
    assert (low, high) != bootstrap(mean, outputs, targets, seed=4)
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(400), rel=0.15)
    assert low < 2.0 < high
