"""How large a drop a bundle may have against its source, and who says so."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from test_export_verify import dense, drawn, failed, noise, task_of, write

from edge_runtime.model.manifest import Budgets, Provenance
from export import to_onnx
from export.artifact import outputs_of
from export.recipe import Budget, Split
from export.verify import Verification, verify

pytestmark = pytest.mark.torch


def test_a_bundle_cannot_set_its_own_exam(tmp_path: Path) -> None:
    generous = Budgets(max_drop=0.9)
    foreign = write(tmp_path / "b.edge", to_onnx.with_scores(dense(seed=9, hidden=24)), budgets=generous)
    trained = Provenance("noise/recipe.py", 1, {}, ("fine-tuned: 3 epochs",))
    claimed = write(tmp_path / "c.edge", to_onnx.with_scores(dense(seed=9)), budgets=generous, provenance=trained)

    for budget, allowed in ((Budget(), "1 by default"), (Budget(max_drop=0.03), "3 as asked")):
        for path in (foreign, claimed):
            told = verify(path, msgspec.structs.replace(noise(), budget=budget))

            assert not told.proven
            assert failed(told)["drop on test"].endswith(f"allowed {allowed}: refuted")


def dropping(tmp_path: Path, lost: int, *, own: float | None, asked: float | None) -> Verification:
    """A bundle that is wrong in `lost` of 300 windows of validation, where its source is right in all."""
    inputs = drawn(300, 5)
    reference = outputs_of(dense(), inputs)
    reference[:lost] = np.roll(reference[:lost], 1, axis=1)
    right = Split(inputs, reference.argmax(axis=1).astype(np.int64))
    task = task_of(dense(), budget=Budget(max_drop=asked))
    task = msgspec.structs.replace(task, validation=right, test=None, reference={"validation": reference})
    return verify(write(tmp_path / "b.edge", to_onnx.with_scores(dense()), budgets=Budgets(max_drop=own)), task)


@pytest.mark.parametrize(
    ("lost", "own", "asked", "is_ok", "end"),
    [
        (0, None, 0.05, True, "allowed 5 as asked"),
        (12, None, 0.05, True, "allowed 5 as asked: 300 windows cannot tell it from a larger one"),
        (18, None, 0.05, False, "allowed 5 as asked: 300 windows cannot tell it from a smaller one"),
        (30, None, 0.05, False, "allowed 5 as asked: refuted"),
        (12, 0.01, 0.05, False, "allowed 1 by its own budget: refuted"),
        (12, 0.9, 0.05, True, "allowed 5 as asked: 300 windows cannot tell it from a larger one"),
        (0, None, None, True, "allowed 1 by default"),
        (2, None, None, True, "allowed 1 by default: 300 windows cannot tell it from a larger one"),
    ],
)
def test_a_drop_is_judged_by_the_stricter_budget_and_says_when_the_windows_are_too_few(
    tmp_path: Path, lost: int, own: float | None, asked: float | None, *, is_ok: bool, end: str
) -> None:
    told = dropping(tmp_path, lost, own=own, asked=asked)

    found = next(finding for finding in told.findings if finding.name == "drop on validation")
    assert told.compared[0].drop.value == pytest.approx(lost / 300)
    assert (found.ok, found.detail.endswith(end)) == (is_ok, True), found
    assert told.proven == is_ok
