"""The figures of the table, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from export.evaluate import bootstrap, mcnemar, paired_bootstrap, paired_shares, snr_db, wilson

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


def shares(n: int, *, lost: int, won: int) -> tuple[np.ndarray, np.ndarray]:
    """Right before and after, of n windows of which all others are right both times."""
    before, after = np.ones(n, bool), np.ones(n, bool)
    after[:lost] = False
    before[lost : lost + won] = False
    return before, after


def test_the_drop_of_a_share_is_counted_over_the_same_windows() -> None:
    """8 lost and 2 won of 400: 1.5 points; standard error sqrt(11 - 36/402) / 402; Agresti and Min 2005."""
    found = paired_shares(*shares(400, lost=8, won=2))

    assert found.value == pytest.approx(0.015)
    assert found.error == pytest.approx(math.sqrt(11 - 36 / 402) / 402)
    half = 1.959963984540054 * found.error
    assert (found.low, found.high) == pytest.approx((6 / 402 - half, 6 / 402 + half))
    assert found.p_value == pytest.approx(mcnemar(*shares(400, lost=8, won=2)))


@pytest.mark.parametrize(("n", "points"), [(5, 100 / 7), (100, 100 / 102), (480, 100 / 482)])
def test_few_windows_prove_no_small_drop_though_none_is_decided_otherwise(n: int, points: float) -> None:
    assert 100 * paired_shares(*shares(n, lost=0, won=0)).error == pytest.approx(points)


def test_the_interval_of_a_drop_holds_the_true_one_nineteen_times_of_twenty() -> None:
    random = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        before = random.random(480) < 0.97
        after = np.where(random.random(480) < 0.02, ~before, before)
        found = paired_shares(before, after)
        hits += found.low <= 0.97 * 0.02 - 0.03 * 0.02 <= found.high

    assert 0.92 <= hits / 400 <= 0.98


def test_the_paired_bootstrap_of_accuracy_agrees_with_the_formula() -> None:
    before, after = shares(600, lost=12, won=3)
    targets = np.ones(600, np.int64)

    found = paired_bootstrap(
        lambda outputs, wanted: float(np.mean(outputs[:, 0] == wanted)),
        before[:, None].astype(np.float32),
        after[:, None].astype(np.float32),
        targets,
        seed=1,
    )

    exact = paired_shares(before, after)
    assert found.value == pytest.approx(exact.value)
    assert found.error == pytest.approx(exact.error, rel=0.1)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.003)
    assert found.p_value < 0.05
