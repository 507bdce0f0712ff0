"""A bundle held against its source: what proves it, and what every way of being another model is called."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bundles import REFERENCE, write_running_bundle
from export_nets import artifact_of, recurrent, two_matrices
from onnx import helper

from edge_runtime.model import bundle
from edge_runtime.model.bundle import Golden
from edge_runtime.model.manifest import Budgets, Manifest, OutputKind, OutputSpec, Provenance, Tolerance
from edge_runtime.records import InputSpec
from export import originals, quantize, to_onnx, weight_only
from export.artifact import Artifact, outputs_of
from export.recipe import Budget, Split
from export.same_weights import found_again
from export.task import Task
from export.verify import Verification, verify

pytestmark = pytest.mark.torch

LABELS = ("a", "b", "c", "d")
CHANNELS = tuple("stuvwxyz")
INPUT = InputSpec("x", CHANNELS, ("g",) * 8, 1, 1, 10.0, "NF")


@cache
def dense(seed: int = 0, hidden: int = 64) -> Artifact:
    """x (batch, 8) -> MatMul -> Relu -> MatMul -> logits y (batch, 4)."""
    random = np.random.default_rng(seed)
    constants = {
        "w1": random.normal(size=(8, hidden)).astype(np.float32),
        "w2": random.normal(size=(hidden, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    return artifact_of(nodes, constants, shape=[8], width=4)


def drawn(count: int, seed: int, shape: tuple[int, ...] = (8,)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def task_of(original: Artifact, **changes: Any) -> Task:
    """Windows of noise; the original is right in 9 of 10."""
    shape = changes.pop("shape", (8,))
    splits = {}
    for name, count, seed in (("validation", 200, 2), ("test", 300, 3)):
        inputs = drawn(count, seed, shape)
        outputs = outputs_of(original, inputs)
        targets = outputs.reshape(count, -1).argmax(axis=1)
        targets[::10] = (targets[::10] + 1) % 4
        splits[name] = Split(inputs, targets.astype(np.int64))
    task = Task(
        name="noise", version="1.0.0", source="noise/recipe.py", seed=1, input=INPUT, labels=LABELS, output="logits",
        metric=None, threshold=None, budget=Budget(), train=None, calibrate=drawn(64, 1, shape),
        validation=splits["validation"], test=splits["test"], original=original, reference={},
    )  # fmt: skip
    return originals.referred(msgspec.structs.replace(task, **changes))


@cache
def noise() -> Task:
    return task_of(dense())


def int8(original: Artifact) -> Artifact:
    return to_onnx.with_scores(quantize.static_qdq(drawn(64, 1))(original))


def write(path: Path, artifact: Artifact, *, kind: OutputKind = "scores", windows: Any = None, **said: Any) -> Path:
    """A bundle of the artifact; said: what its manifest says otherwise."""
    inputs = drawn(8, 4) if windows is None else windows
    manifest = Manifest(
        schema=1,
        name="noise",
        version="1.0.0",
        precision=artifact.precision,
        input=INPUT,
        output=OutputSpec(artifact.output, kind),
        labels=LABELS,
        tolerances={"default": Tolerance(0.02)},
        files={},
        provenance=Provenance("noise/recipe.py", 1, {}, artifact.steps),
        session=artifact.session,
        budgets=Budgets(max_drop=0.02),
    )
    manifest = msgspec.structs.replace(manifest, **said)
    golden = Golden(inputs, outputs_of(artifact, inputs))
    bundle.write(path, manifest, model=artifact.model, golden=golden, reference=REFERENCE, card="# noise\n")
    return path


def failed(told: Verification) -> dict[str, str]:
    return {finding.name: finding.detail for finding in told.findings if not finding.ok}


def test_a_float32_bundle_of_the_source_is_proven_equal(tmp_path: Path) -> None:
    told = verify(write(tmp_path / "b.edge", to_onnx.with_scores(dense())), noise())

    assert told.proven, told
    assert told.reasons == ()
    assert [(found.split, found.n, found.agreement) for found in told.compared] == [
        ("validation", 200, 1.0),
        ("test", 300, 1.0),
    ]
    assert all(found.difference < 1e-5 and found.drop.value == 0 for found in told.compared)
    assert told.compared[1].source[0] == told.compared[1].bundle[0] == pytest.approx(0.9)


def test_an_int8_bundle_is_proven_within_its_budget_with_figures(tmp_path: Path) -> None:
    told = verify(write(tmp_path / "b.edge", int8(dense())), noise())

    assert told.proven, told
    found = told.compared[1]
    assert 0.95 < found.agreement <= 1.0
    assert 0 < found.difference < 1
    assert 15 < found.snr_db < 80
    assert found.source[0] == pytest.approx(0.9)
    assert found.source[1] < found.source[0] < found.source[2]
    assert found.drop.low <= found.drop.value <= found.drop.high
    assert told.size_kb == pytest.approx(len(int8(dense()).model) / 1000, rel=0.2)
    assert told.p95_ms is not None


def test_weight_only_and_dynamic_bundles_that_need_a_session_entry_or_single_windows_are_proven(tmp_path: Path) -> None:
    lstm = task_of(
        recurrent("LSTM"),
        shape=(12, 6),
        labels=(*LABELS, "e"),
        input=InputSpec("x", CHANNELS[:6], ("g",) * 6, 12, 12, 10.0, "NTC"),
        budget=Budget(max_drop=0.02),
    )
    for step in (weight_only.int8(), quantize.dynamic()):
        artifact = to_onnx.with_scores(step(recurrent("LSTM")))
        path = tmp_path / f"{artifact.name}.edge"

        told = verify(write(path, artifact, windows=drawn(8, 4, (12, 6)), input=lstm.input, labels=lstm.labels), lstm)

        assert told.proven, told


def test_a_bundle_made_from_other_weights_is_not_proven_and_the_figures_say_why(tmp_path: Path) -> None:
    told = verify(write(tmp_path / "b.edge", int8(dense(seed=9))), noise())

    assert not told.proven
    reasons = failed(told)
    assert reasons["weights"].startswith("0% of 768 weights of the source found again, wanted at least 30%")
    assert "of 300 windows are answered as the source answers them, wanted at least 90%" in reasons["agreement on test"]
    assert told.compared[1].agreement < 0.6
    assert "allowed 1 by default: refuted" in reasons["drop on test"]
    assert told.compared[1].drop.p_value < 1e-6


def test_a_narrower_network_is_judged_by_its_metric_alone(tmp_path: Path) -> None:
    told = verify(write(tmp_path / "b.edge", to_onnx.with_scores(dense(seed=9, hidden=24))), noise())

    found = {finding.name: finding for finding in told.findings}
    assert found["weights"].ok
    assert "they were pruned, so that the metric alone is judged" in found["weights"].detail
    assert found["agreement on test"].ok
    assert told.compared[1].agreement < 0.6
    assert failed(told).keys() == {"drop on validation", "drop on test"}
    assert failed(told)["drop on test"].endswith("allowed 1 by default: refuted")


def test_a_network_that_was_trained_again_and_became_better_is_proven(tmp_path: Path) -> None:
    better = to_onnx.with_scores(dense())
    poor = msgspec.structs.replace(noise(), original=dense(seed=9), budget=Budget(max_drop=0.01))
    targets = {name: split for name, split in noise().splits().items() if name != "train"}
    source = originals.referred(msgspec.structs.replace(poor, **targets))
    steps = Provenance("noise/recipe.py", 1, {}, ("quantization-aware fine-tuning: 2 layers",))

    told = verify(write(tmp_path / "b.edge", better, provenance=steps), source)
    silent = verify(write(tmp_path / "c.edge", better), source)

    assert told.proven, told
    alone = "by its metric alone: its weights cannot be compared, they were trained again"
    assert str(told).splitlines()[0].endswith(f"b.edge: proven against noise/recipe.py {alone}")
    assert told.compared[1].drop.value < -0.3
    assert not silent.proven
    assert {"weights", "agreement on test"} <= failed(silent).keys()


def test_the_constants_of_a_front_end_prove_nothing(tmp_path: Path) -> None:
    other = two_matrices(np.random.default_rng(77).normal(size=(32, 4)).astype(np.float32))

    assert found_again(two_matrices(), two_matrices().model) == (128, 1.0, 1.0)
    assert found_again(two_matrices(), other.model) == (128, 1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "said", "detail"),
    [
        ("labels", {"labels": ("a", "b", "d", "c")}, "a, b, d, c; of the source a, b, c, d"),
        ("units", {"input": msgspec.structs.replace(INPUT, units=("mV",) * 8)}, "('mV', 'mV'"),
        ("rate_hz", {"input": msgspec.structs.replace(INPUT, rate_hz=20.0)}, "20.0, the source has 10.0"),
        ("channels", {"input": msgspec.structs.replace(INPUT, channels=tuple("abcdefgh"))}, "the source has ('s', 't'"),
    ],
)
def test_a_bundle_that_says_something_else_than_the_source_fails_by_name(
    tmp_path: Path, name: str, said: dict[str, Any], detail: str
) -> None:
    told = verify(write(tmp_path / "b.edge", int8(dense()), **said), noise())

    assert failed(told).keys() == {name}
    assert detail in failed(told)[name]
    assert not told.proven
    assert told.compared == ()


def test_a_bundle_of_other_windows_fails_by_its_shape(tmp_path: Path) -> None:
    spec = InputSpec("x", CHANNELS[:6], ("g",) * 6, 12, 12, 10.0, "NTC")
    artifact = to_onnx.with_scores(recurrent("GRU"))
    path = write(tmp_path / "b.edge", artifact, windows=drawn(8, 4, (12, 6)), input=spec, labels=(*LABELS, "e"))

    reasons = failed(verify(path, noise()))

    assert reasons["shape"] == "windows of (12, 6), of the source (8,)"
    assert {"labels", "length", "layout"} <= reasons.keys()


def test_where_the_source_names_no_labels_their_number_counts(tmp_path: Path) -> None:
    unnamed = msgspec.structs.replace(noise(), labels=("class0", "class1", "class2", "class3"), input=None)

    assert verify(write(tmp_path / "b.edge", int8(dense())), unnamed).proven


def test_what_an_onnx_file_cannot_say_is_not_held_against_the_bundle(tmp_path: Path) -> None:
    plain = msgspec.structs.replace(
        INPUT, channels=tuple(f"c{index}" for index in range(8)), units=("1",) * 8, rate_hz=None
    )
    path = write(tmp_path / "b.edge", int8(dense()))

    assert verify(path, msgspec.structs.replace(noise(), input=plain)).proven
    said = verify(path, msgspec.structs.replace(noise(), input=msgspec.structs.replace(plain, layout="NT")))
    assert failed(said).keys() == {"layout"}


def test_a_streaming_bundle_is_told_apart_from_a_source_of_windows(tmp_path: Path) -> None:
    reasons = failed(verify(write_running_bundle(tmp_path / "b.edge"), noise()))

    assert reasons["inputs"].startswith("carries a state or constant inputs")


def test_a_bundle_larger_than_its_budget_is_not_proven(tmp_path: Path) -> None:
    told = verify(write(tmp_path / "b.edge", int8(dense()), budgets=Budgets(max_drop=0.02, size_kb=1.0)), noise())

    assert failed(told).keys() == {"size"}
    assert failed(told)["size"].endswith("KB, budget 1 KB")


def test_a_bundle_slower_here_than_its_budget_is_not_proven(tmp_path: Path) -> None:
    told = verify(write(tmp_path / "b.edge", int8(dense()), budgets=Budgets(max_drop=0.02, p95_ms=1e-6)), noise())

    assert "p95 of one window is" in failed(told)["gate"]
    assert told.compared != ()


def test_golden_vectors_that_do_not_hold_are_the_gates_finding(tmp_path: Path) -> None:
    path = write(tmp_path / "b.edge", int8(dense()))
    read = bundle.read(path)
    golden = Golden(read.golden.inputs, read.golden.outputs[::-1].copy())
    bundle.write(path, read.manifest, model=read.model, golden=golden, reference=REFERENCE, card="x")

    told = verify(path, noise())

    assert failed(told)["gate"].startswith("golden vectors: outputs differ by")
    assert not told.proven


def test_a_damaged_file_is_a_finding_not_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "b.edge", int8(dense()))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 0xFF
    path.write_bytes(raw)

    told = verify(path, noise())

    assert failed(told).keys() == {"file"}
    assert not told.proven
    assert told.size_kb is None
    assert "not proven" in str(told)


def test_a_source_that_was_trained_for_the_proof_is_said_to_be(tmp_path: Path) -> None:
    path = write(tmp_path / "b.edge", int8(dense()))

    kept, now = (verify(path, msgspec.structs.replace(noise(), trained_now=now)) for now in (False, True))

    assert "source" not in {finding.name for finding in kept.findings}
    assert "source   " in str(now)
    assert "was trained here, now" in str(now)
    assert kept.proven
    assert now.proven


def autoencoder(scale: float) -> Artifact:
    """x (batch, 8) -> nearly itself."""
    weight = np.eye(8, dtype=np.float32) * np.float32(scale) + np.float32(0.01)
    return artifact_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="all")], {"w": weight}, shape=[8], width=8)


def test_a_reconstruction_is_judged_by_its_errors_and_its_threshold(tmp_path: Path) -> None:
    def caught(errors: np.ndarray, targets: np.ndarray) -> float:
        return float(np.mean((errors[:, 0] > 0.02) == (targets == 1)))

    task = task_of(
        autoencoder(0.9),
        output="reconstruction",
        labels=(),
        metric=caught,
        threshold=0.02,
        budget=Budget(max_drop=0.02),
    )
    path = tmp_path / "b.edge"

    same = verify(write(path, autoencoder(0.9), kind="reconstruction", labels=(), threshold=0.02), task)
    other = verify(write(path, autoencoder(0.9), kind="reconstruction", labels=(), threshold=0.03), task)
    worse = verify(write(path, autoencoder(0.7), kind="reconstruction", labels=(), threshold=0.02), task)

    assert same.proven, same
    assert failed(other) == {"threshold": "0.03, of the source 0.02"}
    assert {"agreement on validation", "agreement on test"} <= failed(worse).keys()


def probability(shift: float) -> Artifact:
    """x (batch, 8) -> the probability of the second label (batch, 1)."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"], name="all"),
        helper.make_node("Sigmoid", ["z"], ["y"], name="sigmoid"),
    ]
    weight = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    return artifact_of(nodes, {"w": weight, "b": np.array([shift], np.float32)}, shape=[8], width=1)


def test_a_probability_is_judged_as_two_labels_and_a_metric_sees_one_column(tmp_path: Path) -> None:
    def accuracy(outputs: np.ndarray, targets: np.ndarray) -> float:
        assert outputs.shape[1] == 1
        return float(np.mean((outputs[:, 0] > 0.5) == targets))

    for metric in (None, accuracy):
        inputs = drawn(300, 3)
        split = Split(inputs, (outputs_of(probability(0), inputs)[:, 0] > 0.5).astype(np.int64))
        task = task_of(probability(0), output="probability", labels=("no", "yes"), metric=metric)
        task = originals.referred(msgspec.structs.replace(task, validation=split, test=None))

        same = verify(write(tmp_path / "b.edge", probability(0), kind="probability", labels=("no", "yes")), task)
        worse = verify(write(tmp_path / "c.edge", probability(1), kind="probability", labels=("no", "yes")), task)

        assert same.proven, same
        assert same.compared[0].bundle[0] == 1.0
        assert worse.compared[0].drop.value > 0.1
        assert "drop on validation" in failed(worse)


def test_the_text_names_the_verdict_and_every_reason(tmp_path: Path) -> None:
    good = str(verify(write(tmp_path / "good.edge", int8(dense())), noise()))
    bad = str(verify(write(tmp_path / "bad.edge", int8(dense(seed=9))), noise()))

    assert "good.edge: proven against noise/recipe.py" in good
    assert "metric on test (n=300, 95 %): source 0.9000 [" in good
    assert "NO" not in good
    assert "bad.edge: not proven against noise/recipe.py" in bad
    assert "NO  weights" in bad
    assert "NO  agreement on test" in bad
