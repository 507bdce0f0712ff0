"""What differs must not look alike: figures of one metric are not those of another."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_runtime.records import InputSpec
from export import fingerprint
from export.fingerprint import of_value

pytestmark = pytest.mark.torch


def recall(outputs: np.ndarray, targets: np.ndarray, label: int = 1) -> float:
    return float(np.mean(outputs[targets == label] > 0))


def closing_over(value: object) -> Callable[[], object]:
    return lambda: value


def counting(n: int) -> int:
    return n and counting(n - 1)


class Scaled:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def score(self, outputs: np.ndarray, _targets: np.ndarray) -> float:
        return self.factor * float(outputs.sum())

    __call__ = score


def test_a_helper_that_a_function_calls_counts_too() -> None:
    def cell(helper: str) -> object:
        names: dict[str, object] = {}
        exec(f"def helper(x): return {helper}\ndef metric(x, y): return helper(x) - y", names)
        return names["metric"]

    assert of_value(cell("x + 1")) == of_value(cell("x + 1"))
    assert of_value(cell("x + 1")) != of_value(cell("x + 2"))


def test_our_own_code_counts_as_far_as_candidates_follow_from_it() -> None:
    names = {path.name for path in fingerprint._imported(Path(fingerprint.__file__).with_name("candidate.py"))}

    assert {"candidate.py", "prune.py", "prune_units.py", "qat.py", "fuse.py", "quantize.py", "session.py"} <= names
    assert {"measure.py", "paired.py", "evaluate.py", "distill.py", "slim.py", "to_onnx.py", "sensitivity.py"} <= names
    assert names.isdisjoint({"explain.py", "html_page.py", "pareto.py", "verify.py", "report.py", "daemon.py"})


def test_a_name_without_a_value_yet_is_no_error() -> None:
    def metric(_outputs: object, _targets: object) -> object:
        return later

    assert of_value(metric) == of_value(metric)
    later = 3


def test_the_same_function_has_the_same_fingerprint() -> None:
    assert of_value(recall) == of_value(recall)
    assert of_value(closing_over(3)) == of_value(closing_over(3))
    assert of_value(counting) == of_value(counting)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (recall, counting),
        (functools.partial(recall, label=1), functools.partial(recall, label=2)),
        (closing_over(3), closing_over(4)),
        (closing_over(np.zeros(3)), closing_over(np.ones(3))),
        (closing_over(torch.zeros(3)), closing_over(torch.ones(3))),
        (closing_over({"a": [1]}), closing_over({"a": [2]})),
        (closing_over(functools.partial(recall, label=1)), closing_over(functools.partial(recall, label=2))),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x in {1, 2}, lambda x: x in {1, 3}),
        (lambda x: x[..., 1j], lambda x: x[..., 2j]),
        (Scaled(2).score, Scaled(3).score),
        (Scaled(2), Scaled(3)),
        (np.mean, np.median),
        (np.add, np.subtract),
        (closing_over(torch.float32), closing_over(torch.float16)),
        (closing_over(Path("a")), closing_over(Path("b"))),
        (closing_over(InputSpec("x", ("a",), ("g",), 1, 1)), closing_over(InputSpec("x", ("a",), ("g",), 2, 1))),
        (None, recall),
    ],
)
def test_another_function_or_other_values_in_it_have_another(one: object, other: object) -> None:
    assert of_value(one) != of_value(other)


def test_a_network_in_a_function_counts_with_its_weights() -> None:
    torch.manual_seed(0)
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    assert of_value(closing_over(one)) == of_value(closing_over(one))
    assert of_value(closing_over(one)) != of_value(closing_over(other))


def test_what_cannot_be_seen_through_is_never_found_again() -> None:
    hidden = closing_over(object())

    assert of_value(hidden) != of_value(hidden)


def test_a_wrapped_function_is_known_by_what_it_wraps() -> None:
    def wrapped(function: Callable[..., float]) -> Callable[..., float]:
        @functools.wraps(function)
        def call(*args: object) -> float:
            return function(*args)

        return call

    assert of_value(wrapped(recall)) == of_value(recall)
    assert of_value(wrapped(recall)) != of_value(wrapped(counting))
