from __future__ import annotations

import select

import pytest

from edge_runtime.worker import Worker


def test_jobs_finish_in_order_and_none_is_lost_however_often_one_asks() -> None:
    worker, done, submitted = Worker(), [], 0
    while len(done) < 3000:
        for _ in range(3):
            worker.submit(str(submitted), lambda: None)
            submitted += 1
        done += worker.finished()
    while len(done) < submitted:
        done += worker.finished()
    worker.stop()

    assert done == [str(i) for i in range(submitted)]


def test_its_file_is_readable_when_a_job_has_finished_and_not_otherwise() -> None:
    worker = Worker()
    assert select.select([worker], [], [], 0)[0] == []
    worker.submit("a", lambda: None)
    assert select.select([worker], [], [], 5)[0] == [worker]

    assert worker.finished() == ["a"]
    assert select.select([worker], [], [], 0.05)[0] == []
    worker.stop()


def test_an_error_in_a_job_is_raised_where_one_asks() -> None:
    worker = Worker()
    worker.submit("a", lambda: 1 / 0)
    select.select([worker], [], [], 5)
    with pytest.raises(ZeroDivisionError):
        worker.finished()
    worker.stop()


def test_a_worker_that_never_worked_is_stopped_at_once() -> None:
    Worker().stop()
