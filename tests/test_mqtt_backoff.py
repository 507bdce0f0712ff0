from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.mqtt.backoff import Backoff, delay_s


@settings(deadline=None)
@given(attempt=st.integers(1, 10_000), random=st.floats(0, 1, exclude_max=True))
def test_the_delay_stays_between_its_bounds(attempt: int, random: float) -> None:
    found = delay_s(attempt, minimum_s=0.2, maximum_s=30.0, random=random)

    assert 0.2 <= found <= min(30.0, 0.2 * 2.0 ** min(attempt, 60))


def test_the_delay_doubles_up_to_its_maximum() -> None:
    highest = [delay_s(n, minimum_s=1.0, maximum_s=10.0, random=1.0) for n in range(1, 6)]

    assert highest == [2.0, 4.0, 8.0, 10.0, 10.0]


def test_only_a_connection_that_lasted_forgets_the_failures_before() -> None:
    backoff = Backoff(minimum_s=1.0, maximum_s=64.0, stable_after_s=60.0, random=lambda: 1.0)
    assert [backoff.failed(0) for _ in range(3)] == [2.0, 4.0, 8.0]

    backoff.connected(0)
    assert backoff.failed(59_000_000_000) == 16.0
    backoff.connected(0)
    assert backoff.failed(60_000_000_000) == 2.0
    assert backoff.failed(60_000_000_000) == 4.0


def test_a_hopeless_attempt_waits_half_the_maximum_at_least() -> None:
    backoff = Backoff(minimum_s=1.0, maximum_s=64.0, stable_after_s=60.0, random=lambda: 0.0)

    assert backoff.failed(0, longest=True) == 32.0
