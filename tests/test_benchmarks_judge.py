from __future__ import annotations

import pytest
from measurements import answer, run_of, workload

from benchmarks import judge
from benchmarks.workloads import Cut


def test_a_result_is_timed_from_the_message_it_answers() -> None:
    run = run_of(6, [100, 200], [(350, answer(7, "b")), (400, answer(6, "a"))])

    verdict = judge.results(run, workload())

    assert (verdict.faults, verdict.latencies_ns.tolist(), verdict.answered) == (0, [300, 150], 2)


def test_what_was_sent_before_the_measured_time_is_checked_but_not_timed() -> None:
    run = run_of(0, [100, 200], [(350, answer(0, "a"))])
    run.begin_ns = 150

    verdict = judge.results(run, workload())

    assert (verdict.missing, verdict.latencies_ns.tolist()) == (1, [])


@pytest.mark.parametrize(
    ("arrivals", "missing", "repeated", "wrong"),
    [
        ([answer(0, "a")], 1, 0, 0),
        ([answer(0, "a"), answer(1, "b"), answer(1, "b")], 0, 1, 0),
        ([answer(0, "a"), answer(1, "a")], 1, 0, 1),
        ([answer(0, "b"), answer(1, "a")], 2, 0, 2),
        ([answer(0, "a"), answer(1, "b", score=0.82)], 1, 0, 1),
        ([answer(0, "a"), answer(1, "b"), answer(2, "a")], 0, 0, 1),
        ([answer(0, "a"), answer(1, "b", begun=0)], 1, 0, 1),
        ([answer(0, "a"), b'{"label": "b"}'], 1, 0, 1),
    ],
    ids=["lost", "twice", "wrong label", "labels swapped", "wrong score", "never sent", "spans two", "no number"],
)
def test_every_fault_of_a_subject_is_seen(arrivals: list[bytes], missing: int, repeated: int, wrong: int) -> None:
    verdict = judge.results(run_of(0, [0, 0], [(1, body) for body in arrivals]), workload())

    assert (verdict.missing, verdict.repeated, verdict.wrong) == (missing, repeated, wrong)


def test_a_sliding_window_is_judged_by_the_messages_it_spans() -> None:
    sliding = workload(Cut(samples=1, length=4, hop=2))
    right = [(10, answer(3, "a", begun=0)), (20, answer(5, "b", begun=2))]
    early = (30, answer(4, "a", begun=1))

    verdict = judge.results(run_of(0, [0, 1, 2, 3, 4, 5], [*right, early]), sliding)

    assert (verdict.missing, verdict.wrong) == (0, 1)
    assert (verdict.latencies_ns.tolist(), verdict.answered) == ([7, 15], 4)


def test_windows_that_began_in_an_earlier_run_are_judged_in_this_one() -> None:
    sliding = workload(Cut(samples=1, length=4, hop=2))

    verdict = judge.results(run_of(4, [100, 200], [(250, answer(5, "b", begun=2))]), sliding)

    assert (verdict.faults, verdict.latencies_ns.tolist()) == (0, [50])


@pytest.mark.parametrize(
    ("arrivals", "missing", "wrong"),
    [
        ([b'{"seq":1000000000}', b'{"seq":1000000001}'], 0, 0),
        ([b'{"seq":1000000001}', b'{"seq":1000000000}'], 0, 0),
        ([b'{"seq":1000000000}', b'{"seq":1000000001'], 1, 1),
        ([b'{"seq":1000000000}', b'{"sEq":1000000001}'], 1, 1),
        ([b'{"seq":1000000000}', b'{"seq":1000000002}'], 1, 1),
    ],
    ids=["as sent", "in another order", "cut off", "changed", "never sent"],
)
def test_an_echo_must_be_what_was_sent(arrivals: list[bytes], missing: int, wrong: int) -> None:
    verdict = judge.echoes(run_of(0, [0, 0], [(1, body) for body in arrivals]), workload())

    assert (verdict.missing, verdict.wrong) == (missing, wrong)
