"""What is kept of a search: never another task's, never half a file, and no more than what still holds."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from export_nets import exported, network, windows

from edge_runtime.errors import ExportError
from edge_runtime.model.manifest import Budgets
from export import candidate, kept, originals, space
from export.artifact import outputs_of
from export.cache import Cache
from export.candidate import Trial
from export.evaluate import Drop, Evaluation, evaluate
from export.measure import Latency
from export.probe import Failure
from export.recipe import Split
from export.targets import Local
from export.task import Task
from export.weights import tuned

pytestmark = pytest.mark.torch

INT8 = (space.int8("u8s8"),)


def quiet(_text: str) -> None: ...


@pytest.fixture(scope="module")
def task() -> Task:
    """Untrained convolutions, judged by agreement with themselves."""
    inputs = windows("convolutions", 120)
    nobody = np.full(40, originals.NO_TARGET)
    blank = Task(
        name="net", version="0.1.0", source="", seed=1, input=None, labels=(), output="logits", metric=None,
        threshold=None, budget=Budgets(max_drop=0.5), train=None, calibrate=inputs[:40], reference={},
        validation=Split(inputs[40:80], nobody), test=Split(inputs[80:], nobody), original=exported("convolutions"),
    )  # fmt: skip
    return originals.referred(blank)


def trial(task: Task, folder: Path) -> Trial:
    return Trial(task, Local(), Cache(task, folder, quiet), progress=quiet)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is timed, without the time it takes."""
    seen: list[str] = []

    def cost(_self: Local, _baseline: object, found: candidate.Artifact, _window: object, *, seed: int) -> Latency:
        seen.append(found.name)
        return Latency(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9)

    monkeypatch.setattr(Local, "cost", cost)
    return seen


def test_a_candidate_is_made_and_timed_once(task: Task, tmp_path: Path, timed: list[str]) -> None:
    first = trial(task, tmp_path).measure(INT8)
    again = trial(task, tmp_path).measure(INT8)

    assert timed == ["int8-u8s8"]
    assert again.artifact == first.artifact
    assert (again.cost, again.validation) == (first.cost, first.validation)


def test_every_part_of_a_task_makes_another_key(task: Task) -> None:
    other = msgspec.structs.replace(task.validation, targets=task.validation.targets[::-1].copy())
    changed = [
        task,
        msgspec.structs.replace(task, seed=2),
        msgspec.structs.replace(task, validation=other),
        msgspec.structs.replace(task, validation=task.test, test=task.validation),
        msgspec.structs.replace(task, train=task.validation, validation=task.test, test=None),
        msgspec.structs.replace(task, validation=task.validation, test=None),
        msgspec.structs.replace(task, calibrate=task.calibrate[1:]),
        msgspec.structs.replace(task, metric=lambda _outputs, _targets: 1.0),
        msgspec.structs.replace(task, code="another file"),
    ]

    assert len({Cache(one, None, quiet).key(INT8) for one in changed}) == len(changed)


def test_the_budget_is_no_part_of_the_key_for_nothing_measured_depends_on_it(task: Task) -> None:
    wider = msgspec.structs.replace(task, budget=Budgets(max_drop=0.9))

    assert Cache(task, None, quiet).key(INT8) == Cache(wider, None, quiet).key(INT8)


def test_what_was_too_far_to_be_timed_is_timed_for_a_wider_budget(
    task: Task, tmp_path: Path, timed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Evaluation(40, 0.8, 0.7, 0.9, 0.8, 10.0, Drop(0.2, 0.01, 0.18, 0.22, 0.1))
    monkeypatch.setattr(candidate, "evaluate", lambda *_: judged)
    narrow = msgspec.structs.replace(task, budget=Budgets(max_drop=0.001))

    assert trial(narrow, tmp_path).measure(INT8).cost is None
    assert trial(narrow, tmp_path).measure(INT8).cost is None
    assert timed == []
    assert trial(task, tmp_path).measure(INT8).cost is not None
    assert trial(narrow, tmp_path).measure(INT8).cost is not None
    assert timed == ["int8-u8s8"]


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:-3], lambda raw: raw[:40] + b"x" + raw[41:]])
def test_a_damaged_file_counts_as_not_kept(task: Task, tmp_path: Path, timed: list[str], damage) -> None:
    first = trial(task, tmp_path).measure(INT8)
    for path in tmp_path.iterdir():
        path.write_bytes(damage(path.read_bytes()))

    again = trial(task, tmp_path).measure(INT8)

    assert again.artifact == first.artifact
    assert timed == ["int8-u8s8"] * 2


def test_damaged_weights_are_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    trained = []
    for damaged in (False, False, True):
        if damaged:
            path.write_bytes(path.read_bytes()[:-1])
        tuned(network("narrow convolutions"), path, trained.append)

    assert len(trained) == 2


def test_what_a_step_refused_is_refused_again_without_trying(
    task: Task, tmp_path: Path, timed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = (space.Move("int8-dynamic"),)
    first = trial(task, tmp_path).measure(chain)
    monkeypatch.setattr(space, "step", lambda *_: pytest.fail("tried again"))

    with pytest.raises(ExportError, match="In float32 stay") as again:
        Cache(task, tmp_path, quiet).perform(chain)

    assert str(again.value) == first.failure


def test_a_candidate_that_cannot_be_judged_is_a_result(task: Task, timed: list[str], monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise ExportError("metric() returned nan, wanted a finite number")

    monkeypatch.setattr(candidate, "evaluate", refuse)

    found = Trial(task, Local(), Cache(task, None, quiet), progress=quiet).measure(INT8)

    assert found.failure == "metric() returned nan, wanted a finite number"
    assert timed == []


def test_where_milliseconds_decide_those_of_another_run_do_not_count(
    task: Task, tmp_path: Path, timed: list[str]
) -> None:
    urgent = msgspec.structs.replace(task, budget=Budgets(max_drop=0.5, p95_ms=5))
    for asked in (task, task, urgent):
        trial(asked, tmp_path).measure(INT8)

    assert timed == ["int8-u8s8"] * 2


def test_times_of_another_device_behind_the_same_name_do_not_count(
    task: Task, tmp_path: Path, timed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("n1: a board", "n1: a board", "n1: another board"):
        monkeypatch.setattr(Local, "place", place)
        trial(task, tmp_path).measure(INT8)

    assert timed == ["int8-u8s8"] * 2


def test_an_evaluation_without_any_noise_is_remembered(task: Task, tmp_path: Path) -> None:
    equal = evaluate(task, task.validation, task.reference["validation"], task.reference["validation"])
    Cache(task, tmp_path, quiet).remember((), "found", equal)

    assert equal.snr_db == float("inf")
    assert Cache(task, tmp_path, quiet).remembered((), "found", Evaluation) == equal


def test_a_target_that_failed_is_asked_again(task: Task, tmp_path: Path, timed: list[str], monkeypatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Local, "cost", lambda *_, **__: Failure("the board was busy"))
        assert trial(task, tmp_path).measure(INT8).failure == "the board was busy"

    assert trial(task, tmp_path).measure(INT8).failure == ""
    assert timed == ["int8-u8s8"]


def test_many_may_write_one_file_and_it_is_always_whole(tmp_path: Path) -> None:
    contents = [os.urandom(20_000) for _ in range(4)]
    wrong: list[bytes | None] = []

    def write(content: bytes) -> None:
        for _ in range(60):
            kept.write(tmp_path / "file", content)
            if (found := kept.read(tmp_path / "file")) not in contents:
                wrong.append(found)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_threshold_of_an_anomaly_is_never_taken_from_windows_that_judge(task: Task) -> None:
    """The outputs pass for errors: calibration has small ones, validation large ones."""
    quiet_windows = task.calibrate * 0.01
    error = msgspec.structs.replace(task, output="error", labels=(), calibrate=quiet_windows)

    found = originals.referred(error)

    normal = outputs_of(task.original, quiet_windows)
    assert found.threshold == pytest.approx(float(np.quantile(normal, 0.995)), rel=1e-4)


def test_shipped_is_what_the_original_says_as_scores(task: Task) -> None:
    scores = outputs_of(candidate.shipped(task, task.original), task.calibrate)

    np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-5)
