"""One family from search to page, for real but tiny: a net by hand, one quantization to choose, one peer, two folds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from export_nets import artifact_of
from onnx import helper

from benchmarks.compression import peers, render, work
from benchmarks.compression.families import Family, Wanted
from benchmarks.compression.finished import Finished
from benchmarks.compression.records import CHOSEN, FLOAT32, Failed, Judged, Line, Searched, Sized, Timed, Where
from benchmarks.compression.work import PHASES, Effort, Work
from edge_runtime.model import bundle
from export import originals, recipe, space
from export.artifact import outputs_of
from export.recipe import Budget, InputSpec, Progress, Recipe, Split
from export.task import Task

RECIPE = Path(__file__).parent / "export_recipes" / "tones.py"
INPUTS, HIDDEN = 16, 256
TEST_WINDOWS = 100
pytestmark = pytest.mark.torch


class Tones(Family, frozen=True):
    """A family that is not in the zoo."""

    def recipe(self, fold: int) -> Recipe:
        found = recipe.load(RECIPE)
        return msgspec.structs.replace(found, seed=found.seed + fold)

    def source(self) -> str:
        return "tones"


FAMILY = Tones("tones", "tones", "noise", 2, Wanted(size=2, drop=0.5, speed=0.01))
EFFORT = Effort("post-training", processes=1)


def original(seed: int):
    """x (batch, 16) -> y (batch, 3), two random layers."""
    random = np.random.default_rng(seed)
    first = random.normal(size=(INPUTS, HIDDEN)).astype(np.float32)
    last = random.normal(size=(HIDDEN, 3), scale=0.05).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"], name="first"),
        helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
        helper.make_node("MatMul", ["active", "last"], ["y"], name="last"),
    ]
    return artifact_of(nodes, {"first": first, "last": last}, shape=[INPUTS], width=3)


def task_of(found: Recipe, *, folder: Path, progress: Progress) -> Task:
    """A fold whose network is right about its own noise, in place of one that is trained on data. Its budget asks for
    size alone, so that int8 is chosen however slow it is.
    """
    progress("loading")
    net, random = original(found.seed), np.random.default_rng(found.seed)
    windows = [random.normal(size=(n, INPUTS)).astype(np.float32) for n in (200, 100, TEST_WINDOWS)]
    train, validation, test = (Split(x, outputs_of(net, x).argmax(axis=1)) for x in windows)
    facts = {name: getattr(found, name) for name in ("name", "version", "seed", "labels", "metric", "output")}
    task = Task(
        **facts,
        source="by hand",
        input=InputSpec(name="x", channels=("a",), units=("g",), length=INPUTS, hop=INPUTS, layout="NT"),
        threshold=None,
        budget=Budget(max_drop=0.5, size_kb=12),
        train=train,
        calibrate=train.inputs,
        validation=validation,
        test=test,
        original=net,
        reference={},
    )
    return originals.referred(task)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One candidate beside float32, one peer."""
    monkeypatch.setattr(space, "post_training", lambda _found, *, gpu: [(space.int8("u8s8"),)])
    monkeypatch.setattr(space, "refined", lambda _move: [])
    monkeypatch.setattr(peers, "NAMES", ("dynamic",))
    monkeypatch.setattr(render, "FAMILIES", (FAMILY,))
    monkeypatch.setattr(originals, "of_recipe", task_of)


def run(folder: Path, progress: Callable[[str], object], phases: tuple[str, ...] = PHASES) -> list[Line]:
    return Work(FAMILY, folder, EFFORT, progress).lines(phases)


def interrupt(when: str) -> Callable[[str], None]:
    def progress(text: str) -> None:
        if when in text:
            raise KeyboardInterrupt

    return progress


@pytest.mark.usefixtures("narrow")
def test_a_family_goes_on_where_it_was_broken_off_and_its_times_can_be_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupt("chosen chain"))
    lines = run(tmp_path, said.append)
    monkeypatch.setattr(work.originals, "of_recipe", lambda *_words, **_named: pytest.fail("the data was loaded"))
    same = run(tmp_path, lambda text: pytest.fail(f"done again: {text}"))
    Work(FAMILY, tmp_path, EFFORT, str).forget("timing")
    untimed = run(tmp_path, str, ("search", "peers", "folds"))
    anew = run(tmp_path, str, ("timing",))

    assert not [text for text in said if "making" in text or "quantizing" in text]
    assert same == lines
    assert untimed == [line for line in lines if not isinstance(line, Timed | Where)] == anew[: len(untimed)]
    assert [type(line) for line in anew] == [type(line) for line in lines]
    assert anew != lines
    check(lines)
    for variant in (FLOAT32, CHOSEN):
        ships = next(line for line in lines if isinstance(line, Sized) and (line.variant, line.fold) == (variant, 0))
        assert ships.onnx == len(bundle.read(tmp_path / f"{variant}.edge").model)
    monkeypatch.setattr(originals, "of_recipe", task_of)
    assert not next(line for line in lines if isinstance(line, Searched)).resumed
    Finished(tmp_path).forget("search.json", "candidates", "pooled.json")
    Finished(tmp_path).save_arrays("candidates/fold-0/weights-of-a-search-broken-off", {})
    resumed = run(tmp_path, str)
    check(resumed)
    assert next(line for line in resumed if isinstance(line, Searched)).resumed


def check(lines: list[Line]) -> None:
    """Every figure that the page needs is there, and the page is made of them."""
    assert not [line for line in lines if isinstance(line, Failed)]
    searched = next(line for line in lines if isinstance(line, Searched))
    assert [move.kind for move in searched.chain] == ["int8"]
    judged = {(line.variant, line.fold): line.verdict.n for line in lines if isinstance(line, Judged)}
    assert judged == {
        (CHOSEN, 0): TEST_WINDOWS,
        (CHOSEN, 1): TEST_WINDOWS,
        (CHOSEN, None): 2 * TEST_WINDOWS,
        ("dynamic", 0): TEST_WINDOWS,
    }
    sizes = {(line.variant, line.fold): line for line in lines if isinstance(line, Sized)}
    assert sizes[FLOAT32, 1].onnx > sizes[CHOSEN, 1].onnx > sizes[CHOSEN, 1].gzip
    assert (sizes[CHOSEN, 0].bundle or 0) > sizes[CHOSEN, 0].onnx
    assert {line.variant for line in lines if isinstance(line, Timed)} == {CHOSEN, "dynamic"}
    assert "| yes |" in render.page(lines)
