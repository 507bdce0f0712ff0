from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.records import Message, Rows, Samples, Window
from edge_runtime.stream.bursts import Burst
from edge_runtime.stream.sequence import NEXT, Sighting
from edge_runtime.stream.window import Windower, WindowSettings

NS = 1_000_000_000


class Feed:
    """Pushes chunks of a counting signal, so that every sample's value is its position."""

    def __init__(self, *, rate_hz: float | None = None, **settings: object) -> None:
        self.windower = Windower(WindowSettings(**settings), channels=1, rate_hz=rate_hz)
        self.number = 0

    def push(
        self, values: list[float], *, lost: int = 0, seq: bool = True, restarted: bool = False, **times: int
    ) -> list[Window]:
        array = np.array(values, np.float32).reshape(-1, 1)
        number = self.number + lost
        self.number = number + 1
        samples = Samples("s", array, times.get("received_ns", 0), number if seq else None, times.get("sensor_ns"))
        sighting = Sighting("new", lost, restarted) if lost or restarted else NEXT
        return self.windower.push(samples, ("0", number), sighting, unix_offset_ns=1000 * NS)


def values(windows: list[Window]) -> list[list[float]]:
    return [window.values[:, 0].tolist() for window in windows]


def test_windows_overlap_by_length_less_hop() -> None:
    feed = Feed(samples=4, hop=2)

    assert values(feed.push([0, 1, 2, 3, 4, 5, 6, 7])) == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]


def test_a_hop_longer_than_the_window_skips_samples() -> None:
    feed = Feed(samples=2, hop=5)

    assert values(feed.push(list(range(13)))) == [[0, 1], [5, 6], [10, 11]]


@given(
    chunks=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    length=st.integers(1, 12),
    hop=st.integers(1, 15),
)
def test_windows_do_not_depend_on_how_the_stream_was_cut(chunks: list[int], length: int, hop: int) -> None:
    total = sum(chunks)
    feed, windows, at = Feed(samples=length, hop=hop), [], 0
    for n in chunks:
        windows += feed.push(list(range(at, at + n)))
        at += n

    starts = range(0, total - length + 1, hop)
    assert values(windows) == [list(range(start, start + length)) for start in starts]


@given(
    sizes=st.lists(st.sampled_from([3, 3, 3, 3, 1, 2]), min_size=1, max_size=30),
    hop=st.sampled_from([3, 4, 7]),
    sensor=st.booleans(),
)
def test_a_message_that_is_a_whole_window_is_cut_like_any_other(sizes: list[int], hop: int, sensor: bool) -> None:
    """Where gaps are bridged every sample goes through the buffer."""
    direct, buffered = (Feed(samples=3, hop=hop, rate_hz=10.0, max_gap_samples=most) for most in (0, 1))
    at = 0
    for size in sizes:
        times = {"sensor_ns" if sensor else "received_ns": at * NS // 10}
        found, wanted = (feed.push(list(range(at, at + size)), **times) for feed in (direct, buffered))
        assert told(found) == told(wanted)
        at += size


@given(
    bursts=st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=20),
    length=st.integers(1, 5),
    hop=st.integers(1, 7),
    lead_in=st.integers(0, 4),
    sensor=st.booleans(),
)
def test_a_burst_is_cut_as_its_messages_one_after_the_other_are(bursts, length, hop, lead_in, sensor) -> None:
    settings, lead_in = WindowSettings(samples=length, hop=hop, max_gap_samples=2), min(lead_in, length - 1)
    one, many = (Windower(settings, channels=1, rate_hz=10.0, lead_in=lead_in) for _ in range(2))
    at = 0
    for n, gap in bursts:
        taken = burst(at, n, sensor=sensor)
        singles = [taken.part(i, n).first() for i in range(n)]
        wanted = [
            one.push(single, ("0", single.seq), gap_before(gap and not i), unix_offset_ns=NS)
            for i, single in enumerate(singles)
        ]
        found = many.push(singles[0], ("0", at), gap_before(gap), unix_offset_ns=NS) if gap else []
        if n > gap:
            found += push_burst(many, taken.part(gap, n))
        assert told(found) == [window for windows in wanted for window in told(windows)]
        at += n


def burst(at: int, n: int, *, sensor: bool) -> Burst:
    """Messages whose number, value and time are their position."""
    numbers, received_ns = list(range(at, at + n)), [i * NS // 10 for i in range(at, at + n)]
    rows = Rows(np.array(numbers, np.float32).reshape(n, 1), numbers, received_ns if sensor else None)
    return Burst("s", [Message("t", b"", at_ns) for at_ns in received_ns], rows)


def push_burst(windower: Windower, taken: Burst) -> list[Window]:
    numbers = range(int(taken.rows.values[0, 0]), int(taken.rows.values[-1, 0]) + 1)
    return windower.push_burst(taken, "0", numbers, unix_offset_ns=NS, keep_all=lambda found: list(found.copy()))


def gap_before(gap: bool) -> Sighting:
    return Sighting("new", 2) if gap else NEXT


def told(windows: list[Window]) -> list[dict[str, object]]:
    return [msgspec.structs.asdict(window) | {"values": window.values.tolist()} for window in windows]


def test_a_burst_follows_up_to_the_first_pause() -> None:
    windower = Windower(WindowSettings(samples=4, hop=4), channels=1, rate_hz=10.0)

    def following(at: list[int]) -> int:
        taken = burst(0, len(at), sensor=False)
        messages = [Message("t", b"", i * NS // 10) for i in at]
        return windower.following(Burst("s", messages, Rows(taken.rows.values)))

    assert [following(at) for at in ([0, 1, 2], [0, 1, 30], [0, 30, 31])] == [3, 2, 1]
    before = burst(0, 8, sensor=False)
    push_burst(windower, msgspec.structs.replace(before, rows=Rows(before.rows.values)))
    assert [following(at) for at in ([8, 9, 10], [8, 9, 40], [40, 41, 42])] == [3, 2, 0]


def test_a_pause_is_worth_as_many_messages_of_the_usual_size_as_it_has_room_for() -> None:
    feed = Feed(samples=4, hop=4, rate_hz=10.0)
    feed.push([0, 1, 2, 3], seq=False)

    def paused(until_s: float, n: int) -> int:
        return feed.windower.paused(Samples("s", np.zeros((n, 1), np.float32), round(until_s * NS)))

    assert [paused(0.4, 4), paused(0.8, 4), paused(1.2, 4), paused(2.2, 2)] == [0, 0, 2, 5]
    feed.windower.excuse_pause()
    assert paused(2.2, 2) == 0


def test_a_message_lost_after_a_burst_is_worth_one_sample() -> None:
    windower = Windower(WindowSettings(samples=6, hop=6, max_gap_samples=2), channels=1, rate_hz=None)
    windower.push(Samples("s", np.zeros((2, 1), np.float32), 0, 0), ("0", 0), unix_offset_ns=0)
    push_burst(windower, burst(1, 2, sensor=False))
    (window,) = windower.push(burst(4, 1, sensor=False).first(), ("0", 4), Sighting("new", 1), unix_offset_ns=0)

    assert (values([window]), window.missing) == ([[0, 0, 1, 2, 2, 4]], 1)


def test_a_pause_after_a_message_that_was_a_whole_window_is_bridged_by_its_last_row() -> None:
    feed = Feed(samples=4, hop=4, rate_hz=10.0, max_gap_samples=2)
    feed.push([0, 1, 2, 3], seq=False, sensor_ns=0)
    (window,) = feed.push([6, 7], seq=False, sensor_ns=6 * NS // 10)

    assert (values([window]), window.missing) == ([[3, 3, 6, 7]], 2)


@pytest.mark.parametrize("n", [1, 1000, 1024, 1031, 1032, 1033, 4000, 5000])
def test_a_gap_long_after_the_last_window_is_bridged_by_the_last_row(n: int) -> None:
    """Whatever the buffer was cleared of in between."""
    feed = Feed(samples=2, hop=5000, max_gap_samples=1, rate_hz=10.0)
    for at in range(0, 5000, n):
        feed.push(list(range(at, min(at + n, 5000))), seq=False, sensor_ns=at * NS // 10)
    (window,) = feed.push([5001], seq=False, sensor_ns=5001 * NS // 10)

    assert (values([window]), window.missing) == ([[4999, 5001]], 1)


def test_bursts_survive_many_times_the_buffer() -> None:
    windower = Windower(WindowSettings(samples=3, hop=3), channels=1, rate_hz=None)
    windows = [window for at in range(0, 6000, 60) for window in push_burst(windower, burst(at, 60, sensor=False))]

    assert values(windows) == [[i, i + 1, i + 2] for i in range(0, 6000, 3)]


def test_samples_that_no_window_wants_take_no_memory() -> None:
    feed = Feed(samples=2, hop=50_000)
    for at in range(9000):
        feed.push([at])

    assert len(feed.windower._origins) < 2500


def test_marked_gaps_take_no_memory_once_the_windows_have_moved_on() -> None:
    feed = Feed(samples=2, hop=2, on_gap="mark")
    windows = [window for i in range(50) for window in feed.push([i, i], lost=1)]

    assert [window.gap for window in windows] == [False] * 50
    assert len(feed.windower._joints) <= 1


def test_windows_survive_many_times_the_buffer() -> None:
    feed, windows = Feed(samples=3, hop=3), []
    for start in range(0, 30_000, 7):
        windows += feed.push(list(range(start, start + 7)))

    assert values(windows)[-1] == [29997, 29998, 29999]
    assert len(windows) == 10_001 - 1


def test_a_window_knows_the_messages_it_spans() -> None:
    feed = Feed(samples=4, hop=2)
    feed.push([0, 1, 2])
    (window,) = feed.push([3])

    assert (window.first_seq, window.last_seq, window.key, window.ordinal) == (0, 1, "s|0|1", 0)
    assert [(w.first_seq, w.last_seq, w.ordinal) for w in feed.push([4, 5, 6, 7])] == [(0, 2, 0), (2, 2, 1)]


def test_sensor_time_dates_the_first_and_last_sample() -> None:
    feed = Feed(samples=4, hop=4, rate_hz=10.0)
    feed.push([0, 1], sensor_ns=50 * NS)
    (window,) = feed.push([2, 3], sensor_ns=50 * NS + 200_000_000)

    assert (window.t0_unix_ns, window.t1_unix_ns, window.by_receipt) == (50 * NS, 50 * NS + 300_000_000, False)


def test_without_sensor_time_the_wall_clock_at_receipt_dates_the_last_sample() -> None:
    feed = Feed(samples=2, hop=2, rate_hz=10.0)
    (window,) = feed.push([0, 1], received_ns=5 * NS)

    assert (window.t0_unix_ns, window.t1_unix_ns) == (1005 * NS - 100_000_000, 1005 * NS)
    assert window.by_receipt


def test_reset_drops_the_open_samples_at_a_gap() -> None:
    feed = Feed(samples=4, hop=4)
    feed.push([0, 1])

    assert values(feed.push([4, 5], lost=1)) == []
    assert values(feed.push([6, 7])) == [[4, 5, 6, 7]]


def test_a_gap_within_the_limit_is_bridged_by_the_last_row_and_counted() -> None:
    feed = Feed(samples=6, hop=6, max_gap_samples=2)
    feed.push([0, 1])
    (window,) = feed.push([4, 5], lost=1)

    assert (values([window]), window.missing, window.gap) == ([[0, 1, 1, 1, 4, 5]], 2, False)


def test_hold_bridges_gaps_beyond_the_limit_but_never_a_whole_window() -> None:
    feed = Feed(samples=6, hop=6, on_gap="hold")
    feed.push([0, 1])
    assert values(feed.push([6, 7], lost=2)) == [[0, 1, 1, 1, 1, 1]]

    other = Feed(samples=6, hop=6, on_gap="hold")
    other.push([0, 1])
    assert values(other.push([8, 9], lost=3)) == []
    assert values(other.push([10, 11, 12, 13])) == [[8, 9, 10, 11, 12, 13]]


def test_mark_joins_what_is_left_and_flags_the_windows_across() -> None:
    feed = Feed(samples=4, hop=2, on_gap="mark")
    feed.push([0, 1, 2])
    windows = feed.push([9, 10, 11, 12, 13], lost=2)

    assert values(windows) == [[0, 1, 2, 9], [2, 9, 10, 11], [10, 11, 12, 13]]
    assert [window.gap for window in windows] == [True, True, False]


def test_held_samples_leave_the_count_once_the_window_has_moved_on() -> None:
    feed = Feed(samples=4, hop=2, max_gap_samples=2)
    feed.push([0])
    feed.push([1, 2])
    windows = feed.push([5, 6], lost=1)
    windows += feed.push([7, 8, 9])

    assert values(windows) == [[0, 1, 2, 2], [2, 2, 2, 5], [2, 5, 6, 7], [6, 7, 8, 9]]
    assert [window.missing for window in windows] == [1, 2, 1, 0]


@pytest.mark.parametrize("rule", ["reset", "hold"])
def test_a_producer_that_starts_over_never_shares_a_window_with_its_past(rule: str) -> None:
    feed = Feed(samples=4, hop=4, on_gap=rule)
    feed.push([0, 1, 2])

    assert values(feed.push([100, 101, 102, 103], restarted=True)) == [[100, 101, 102, 103]]


def test_a_pause_in_sensor_time_is_a_gap() -> None:
    feed = Feed(samples=4, hop=4, rate_hz=10.0)
    feed.push([0, 1], seq=False, sensor_ns=0)

    assert values(feed.push([5, 6], seq=False, sensor_ns=500_000_000)) == []
    assert values(feed.push([7, 8], seq=False, sensor_ns=700_000_000)) == [[5, 6, 7, 8]]


def test_receipt_times_may_jitter_but_a_long_pause_is_a_gap() -> None:
    feed = Feed(samples=4, hop=4, rate_hz=10.0)
    feed.push([0, 1], seq=False, received_ns=0)
    assert values(feed.push([2, 3], seq=False, received_ns=600_000_000)) == [[0, 1, 2, 3]]

    feed.push([4, 5], seq=False, received_ns=700_000_000)
    assert values(feed.push([6, 7], seq=False, received_ns=9_000_000_000)) == []


def test_a_clock_that_steps_back_is_no_gap() -> None:
    feed = Feed(samples=4, hop=4, rate_hz=10.0)
    feed.push([0, 1], seq=False, sensor_ns=5 * NS)

    assert values(feed.push([2, 3], seq=False, sensor_ns=1 * NS)) == [[0, 1, 2, 3]]


def test_a_gap_before_the_first_sample_changes_nothing() -> None:
    feed = Feed(samples=2, hop=2)

    assert values(feed.push([0, 1], lost=7)) == [[0, 1]]
