"""Candidates that come too late, crash, or are not there any more; and which provider runs them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from export_nets import Convolutions, artifact_of, windows
from onnx import helper
from torch import nn

from edge_runtime.errors import ExportError
from edge_runtime.model.manifest import Budgets
from edge_runtime.model.session import CPU
from export import candidate, kept, measure, originals, probe, report, space, targets, to_onnx, weight_only
from export.artifact import BATCH, Artifact
from export.cache import Cache
from export.candidate import Measured, OutOfTime, Trial
from export.measure import Latency
from export.probe import Failure
from export.recipe import Split
from export.search import Outcome, search
from export.space import Chain, Move
from export.targets import Local
from export.task import Task
from export.train import deterministic

pytestmark = pytest.mark.torch

INT8 = (space.int8("u8s8"),)
CUDA = targets.PROVIDERS["local:cuda"]
KILLER = """
import os, signal
from pathlib import Path
for name in ("model.onnx", "candidate.onnx"):
    if Path(name).is_file() and b"QuantizeLinear" in Path(name).read_bytes():
        os.kill(os.getpid(), signal.SIGSEGV)
"""
"""A sitecustomize: a process in whose folder lies a graph that quantizes activations gets a real SIGSEGV."""


def quiet(_text: str) -> None: ...


class Clock:
    """Stands still but for trainings, each of which takes its seconds."""

    def __init__(self, *trainings_s: float) -> None:
        self.trainings_s = list(trainings_s)
        self.now_s = 1000.0

    def read_s(self) -> float:
        return self.now_s

    def train(self, _network: nn.Module) -> None:
        self.now_s += self.trainings_s.pop(0)


class Fixed:
    """A target on which everything takes as long."""

    name = place = "nowhere"
    is_time = True

    def __init__(self, provider: str = CPU) -> None:
        self.provider = provider

    def cost(self, _baseline: Artifact, _candidate: Artifact, _window: object, *, seed: int) -> Latency:
        return Latency(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, seed)


def task_of(original: Artifact, inputs: np.ndarray, clock: Clock | None = None) -> Task:
    """Judged by agreement with itself; no drop is too large."""
    third = len(inputs) // 3
    nobody = np.full(third, originals.NO_TARGET)
    blank = Task(
        name="net", version="0.1.0", source="", seed=1, input=None, labels=(), output="logits", metric=None,
        threshold=None, budget=Budgets(max_drop=1.0), train=None, calibrate=inputs[:third], reference={},
        validation=Split(inputs[third : 2 * third], nobody), test=Split(inputs[2 * third : 3 * third], nobody),
        original=original, finetune=clock.train if clock else None,
    )  # fmt: skip
    return originals.referred(blank)


@cache
def wide() -> Artifact:
    """Wide enough to be made narrower three times."""
    with deterministic(1):
        network = Convolutions((64, 64)).eval()
    return to_onnx.export(network, windows("convolutions"), input_name="x", output_name="logits")


def convolutions(clock: Clock) -> Task:
    return task_of(wide(), windows("convolutions", 96), clock)


def matrices(count: int = 90) -> Task:
    """Two matrices, 2,048 weights in the second; ONNX alone."""
    random = np.random.default_rng(3)
    sizes = {"one": (8, 64), "two": (64, 32)}
    constants = {name: random.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["inner"], name="a"),
        helper.make_node("Relu", ["inner"], ["bent"], name="b"),
        helper.make_node("MatMul", ["bent", "two"], ["y"], name="c"),
    ]
    inputs = random.normal(size=(count, 8)).astype(np.float32)
    return task_of(artifact_of(nodes, constants, shape=[8], width=32), inputs)


def searched(task: Task, *, clock: Clock | None = None, **named: object) -> Outcome:
    given = {"target": Fixed(), "cache": Cache(task, None, quiet), "effort": "post-training", **named}
    now_s = {"now_s": clock.read_s} if clock else {}
    return search(task, progress=quiet, **given, **now_s)  # type: ignore[arg-type]


def pruned(*ratios: float, epochs: int = 4) -> Chain:
    return tuple(Move("prune", {"ratio": ratio, "scope": "global", "epochs": epochs}) for ratio in ratios)


def test_past_the_limit_nothing_is_trained_and_what_was_trained_last_is_tried_with_int8() -> None:
    """The effort's limit passes in the second training, which by the first would have ended before it."""
    clock = Clock(100.0, 300.0)

    found = searched(convolutions(clock), clock=clock, effort="quick")

    names = [m.name for m in found.measured]
    last = "pruned 64% global, 8 epochs"
    assert [name for name in names if "pruned" in name and "int8" not in name] == ["pruned 40% global, 4 epochs", last]
    assert any(name.startswith(f"{last} + int8") for name in names)
    assert found.stopped == "time limit of 360 s, not begun: pruned 78% global, 12 epochs; pruned 40% layer, 4 epochs"
    assert found.seconds == 400.0


def test_a_training_with_quantization_in_the_loop_is_expected_to_take_longer() -> None:
    clock = Clock(100.0)
    task = convolutions(clock)
    aware = (*pruned(0.4), Move("qat", {"scheme": "u8s8", "epochs": 4}))
    trial = Trial(task, Fixed(), Cache(task, None, quiet), progress=quiet, deadline_s=1349.0, now_s=clock.read_s)
    trial.measure(pruned(0.4))

    with pytest.raises(OutOfTime, match=r"pruned 40% global, 4 epochs \+ quantization-aware 4 epochs"):
        trial.measure(aware)
    with pytest.raises(OutOfTime, match="pruned 52% global, 14 epochs"):
        trial.measure((*pruned(0.4), *pruned(0.2, epochs=10)))

    assert clock.now_s == 1100.0


def test_what_was_trained_in_an_earlier_search_needs_no_time(tmp_path: Path) -> None:
    clock = Clock(100.0)
    task = convolutions(clock)
    trials = [
        Trial(task, Fixed(), Cache(task, tmp_path, quiet), progress=quiet, deadline_s=deadline_s, now_s=clock.read_s)
        for deadline_s in (2000.0, 0.0)
    ]
    first = trials[0].measure(pruned(0.4))

    assert trials[1].measure((*pruned(0.4), *INT8)).failure == ""
    assert trials[1].measure(pruned(0.4)).artifact == first.artifact
    assert clock.now_s == 1100.0


def test_candidates_that_kill_their_process_are_told_in_the_table_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    found = searched(matrices(), target=Local())

    assert [(m.name, m.failure) for m in found.measured] == [
        ("float32", ""),
        ("int8 u8s8 minmax", "static int8: ONNX Runtime crashed with SIGSEGV in a child process"),
        ("int8 s8s8 minmax", "static int8: ONNX Runtime crashed with SIGSEGV in a child process"),
        ("int8-dynamic", "int8-dynamic: ONNX Runtime crashed with SIGSEGV while loading the graph"),
        ("int8-weights", ""),
    ]
    assert report.page(found).count("crashed with SIGSEGV") == 3


def test_a_candidate_that_fails_behind_the_first_batch_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    task = matrices(3 * (BATCH + 1))
    shape = {"shape": np.array([BATCH, 32])}
    stubborn = artifact_of(
        [
            helper.make_node("Concat", ["x", "x", "x", "x"], ["wide"], name="a", axis=1),
            helper.make_node("Reshape", ["wide", "shape"], ["y"], name="b"),
        ],
        shape,
        shape=[8],
        width=32,
    )
    monkeypatch.setattr(space, "step", lambda *_: lambda _artifact: stubborn)

    found = Trial(task, Fixed(), Cache(task, None, quiet), progress=quiet).measure(INT8)

    assert found.failure.startswith("ONNX Runtime does not run the model: ")
    assert found.validation is None


def test_figures_of_a_model_that_cannot_be_had_any_more_do_not_count(tmp_path: Path) -> None:
    task = matrices()

    def measured() -> Measured:
        return Trial(task, Fixed(), Cache(task, tmp_path, quiet), progress=quiet).measure(INT8)

    assert measured().cost is not None
    (made,) = tmp_path.glob("*.made.json")
    kept.write(made, msgspec.json.encode({"refused": "no longer"}))

    again = measured()

    assert (again.failure, again.cost, again.artifact) == ("no longer", None, None)


def test_layers_that_cannot_be_told_apart_end_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    task = matrices()
    told: list[str] = []
    trial = Trial(task, Fixed(), Cache(task, None, quiet), progress=told.append)
    int8 = weight_only.int8()(task.original)
    monkeypatch.setattr(Cache, "perform", lambda *_: int8)

    assert trial.sensitive(INT8) == ()
    assert "which layers it hurts is not known: sensitivity" in told[-1]


def test_a_gpu_as_target_is_refused_where_onnxruntime_has_no_provider_for_it() -> None:
    with pytest.raises(ExportError, match=rf"ONNX Runtime has .*{CPU}, wanted {CUDA}.*edge-runtime\[gpu\]"):
        targets.parse("local:cuda")


def test_the_provider_of_the_target_is_asked_for_where_candidates_run() -> None:
    task = matrices()
    window = task.validation.inputs[:1]
    refused = f"execution provider {CUDA} is not available"

    for found in (
        probe.run(task.original, window, provider=CUDA),
        measure.latency(task.original, task.original, window, seed=1, provider=CUDA),
    ):
        assert isinstance(found, Failure)
        assert refused in found.reason
    with pytest.raises(ExportError, match=f"float32 does not run: .*{refused}"):
        searched(task, target=Fixed(CUDA))


def test_on_another_provider_than_the_cpus_float16_is_tried_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel for CPUs has one more, to which it gives no node."""
    monkeypatch.setitem(targets.PROVIDERS, "local:other", "AzureExecutionProvider")
    asked: list[str] = []
    outputs_of = candidate.outputs_of

    def heard(artifact: Artifact, inputs: np.ndarray, *, provider: str) -> np.ndarray:
        asked.append(provider)
        return outputs_of(artifact, inputs, provider=provider)

    monkeypatch.setattr(candidate, "outputs_of", heard)
    monkeypatch.setattr(measure, "PROCESSES", 1)

    target, task = targets.parse("local:other"), matrices()

    found = searched(task, target=Fixed(target.provider))

    half = next(m for m in found.measured if m.name == "fp16")
    assert half.failure == ""
    assert set(asked) == {"AzureExecutionProvider"}
    assert half.artifact is not None
    assert isinstance(target.cost(task.original, half.artifact, task.calibrate[:1], seed=1), Latency)
