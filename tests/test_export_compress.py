"""compress() and `edge-export compress` on small nets that are really trained, pruned, quantized and timed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from export_nets import Convolutions
from test_export_cli import edge_export
from torch import nn

from edge_runtime.errors import ExportError
from edge_runtime.model import bundle
from edge_runtime.records import InputSpec
from export import space, to_onnx
from export.compress import Budget, Compressed, compress
from export.recipe import Split
from export.train import deterministic, fit

pytestmark = pytest.mark.torch

SPEC = InputSpec("x", tuple("abcdef"), ("g",) * 6, 64, 64, 64.0, "NCT")
TONES = Path(__file__).parent / "export_recipes" / "tones.py"


def waves(seed: int, n: int) -> Split:
    """Five frequencies over six channels, in noise: (n, 6, 64)."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, 5, n)
    angles = 2 * np.pi * (targets[:, None] + 2) * np.arange(64) / 64 + random.uniform(0, 6.28, (n, 1))
    inputs = np.sin(angles)[:, None] * random.uniform(0.5, 2, (n, 6, 1)) + random.normal(scale=0.7, size=(n, 6, 64))
    return Split(inputs.astype(np.float32), targets.astype(np.int64))


class Data(msgspec.Struct):
    train: Split
    validation: Split
    test: Split


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(waves(0, 600), waves(1, 300), waves(2, 300))


@pytest.fixture(scope="module")
def net(data: Data) -> nn.Module:
    with deterministic(3):
        model = Convolutions((64, 64))
        fit(model, data, seed=3, epochs=3, progress=lambda _text: None)  # type: ignore[arg-type]
    return model.eval()


def test_one_call_prunes_quantizes_measures_and_saves_a_bundle_within_the_budget(net, data: Data, tmp_path) -> None:
    told: list[str] = []

    def search() -> Compressed:
        return compress(
            net,
            train=data.train,
            validate=data.validation,
            test=data.test,
            budget=Budget(max_drop=0.03),
            input=SPEC,
            labels=tuple("vwxyz"),
            effort="quick",
            cache=tmp_path / "cache",
            progress=told.append,
        )

    found = search()

    chosen = found.outcome.chosen
    float32 = found.outcome.measured[0]
    assert chosen is not None
    assert chosen.chain
    assert chosen.size_kb < float32.size_kb / 2
    assert chosen.validation is not None
    assert chosen.validation.drop.value + chosen.validation.drop.error <= 0.03
    assert chosen.test is not None
    assert any("pruned" in m.name and "int8" in m.name for m in found.outcome.measured)
    saved = bundle.read(found.best.save(tmp_path / "waves.edge"))
    assert saved.manifest.labels == tuple("vwxyz")
    assert saved.manifest.budgets == Budget(max_drop=0.03)
    assert saved.manifest.provenance.steps == chosen.artifact.steps

    told.clear()
    again = search()
    assert told == ["judging on the test split"]
    assert [m.name for m in again.outcome.measured] == [m.name for m in found.outcome.measured]
    assert again.outcome.chosen.artifact.model == chosen.artifact.model


def test_a_search_that_was_broken_off_goes_on_where_it_was(net, data: Data, tmp_path) -> None:
    made: list[str] = []

    def search(stop_at: str) -> None:
        made.clear()

        def say(text: str) -> None:
            made.extend([text.removesuffix(": making")] * text.endswith(": making"))
            if made and made[-1].endswith(stop_at):
                raise KeyboardInterrupt

        arguments = {"train": data.train, "validate": data.validation, "budget": Budget(max_drop=0.05)}
        compress(net, effort="post-training", cache=tmp_path, progress=say, **arguments)

    with pytest.raises(KeyboardInterrupt):
        search("entropy")
    scheme = made[-1].split()[1]  # whichever did better

    search("nowhere")

    assert made == [f"int8 {scheme} entropy", f"int8 {scheme} minmax 7-bit"]


def test_past_the_time_limit_the_search_chooses_among_what_needs_no_training(net, data: Data) -> None:
    found = compress(net, train=data.train, validate=data.validation, budget=Budget(max_drop=0.05), time_limit_s=0.001)

    assert found.outcome.stopped == (
        "time limit of 0.001 s, not begun: pruned 30% global, 10 epochs; pruned 30% layer, 10 epochs"
    )
    assert {m.chain[0].kind for m in found.outcome.measured if m.chain} == {"int8"}
    assert found.best.measured.name.startswith("int8")
    assert "Stopped: time limit of 0.001 s" in found.table()


def test_calibration_and_test_never_overlap(net, data: Data) -> None:
    with pytest.raises(ExportError, match="4 windows of test are also in calibration"):
        compress(net, calibrate=data.test.inputs[:4], validate=data.validation, test=data.test)


WINDOWS = waves(3, 40)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"calibrate": None}, "calibration needs windows, wanted calibrate=, or train= with windows"),
        ({"calibrate": np.zeros((9, 6, 63), np.float32)}, r"validation holds float32 \(.*, 6, 64\), wanted .*, 6, 63"),
        ({"calibrate": np.full((9, 6, 64), np.nan, np.float32)}, "calibrate holds NaN or infinity"),
        ({"validate": np.zeros((3, 6, 64))}, "validate: float64 .* wanted float32 windows"),
        (
            {"validate": Split(WINDOWS.inputs, WINDOWS.targets + 1)},
            "targets of validation run from 1 to 5, wanted 0 to 4",
        ),
        ({"labels": ("a", "b")}, "logits for 5 labels, told 2: a, b"),
        (
            {"input": InputSpec("x", tuple("abcdef"), ("g",) * 6, 64, 64, 64.0, "NTC")},
            "calibrate holds .* wanted .*64, 6",
        ),
        ({"target": "the moon"}, "target 'the moon', wanted local, local:cuda, mqtt://user@host/node or emulated:a72"),
        ({"target": "local:cuda"}, "target local:cuda: ONNX Runtime has .*, wanted CUDAExecutionProvider"),
        ({"target": "emulated:a9"}, "processor .a9., wanted a53, a72, a76"),
        ({"effort": "some"}, "effort 'some', wanted one of post-training, quick, default, thorough"),
        ({"cache": "/proc/nope"}, "/proc/nope/.*: cannot be written"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_was_wanted(net, data: Data, wrong: dict[str, object], words) -> None:
    given = {"calibrate": data.train.inputs[:50], "validate": data.validation, **wrong}
    with pytest.raises(ExportError, match=words):
        compress(net, **given)  # type: ignore[arg-type]


def test_an_onnx_file_is_quantized_and_judged_by_agreement_where_nobody_labelled_it(net, data: Data, tmp_path) -> None:
    file = tmp_path / "waves.onnx"
    file.write_bytes(to_onnx.export(net, data.train.inputs, input_name="x", output_name="logits").model)
    np.savez(tmp_path / "windows.npz", calibrate=data.train.inputs[:100], validation=data.validation.inputs)

    done = edge_export(
        "compress", "waves.onnx", "--data", "windows.npz", "--layout", "NCT", "--output-kind", "logits",
        "--max-drop", "5%", "--cache", "cache", "-o", "waves.edge", "--plot", "pareto.html", "--report", "why.html",
        "--json", cwd=tmp_path,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    told = msgspec.json.decode(done.stdout)
    assert not any("pruned" in variant["variant"] for variant in told["variants"])
    assert told["variants"][0]["validation"]["metric"] == 1.0
    assert bundle.read(tmp_path / "waves.edge").manifest.labels == ("class0", "class1", "class2", "class3", "class4")
    assert "<svg" in (tmp_path / "pareto.html").read_text()
    assert "<svg" in (tmp_path / "why.html").read_text()
    proven = edge_export(
        "verify", "waves.edge", "--source", "waves.onnx", "--data", "windows.npz", "--layout", "NCT",
        "--output-kind", "logits", "--max-drop", "5%", cwd=tmp_path,
    )  # fmt: skip
    assert proven.returncode == 0, proven.stdout + proven.stderr


def test_an_impossible_budget_is_exit_code_3_and_says_what_to_relax(tmp_path: Path) -> None:
    done = edge_export(
        "compress", str(TONES), "--size", "2kB", "--p95", "1us", "--effort", "post-training", "--cache", "c",
        "--report", "why.txt", cwd=tmp_path,
    )  # fmt: skip

    assert done.returncode == 3
    assert "relax to --p95 " in done.stderr
    assert "why.txt is not written" in done.stderr
    assert not list(tmp_path.glob("*.edge"))


def test_a_metric_that_raises_for_some_resamples_leaves_those_out(net, data: Data, monkeypatch) -> None:
    """The first label is rare, and without it the metric raises."""

    def metric(outputs: np.ndarray, targets: np.ndarray) -> float:
        if not (targets == 0).any():
            raise ZeroDivisionError
        return float(np.mean(outputs.argmax(axis=1) == targets))

    rare = np.flatnonzero(data.validation.targets == 0)[1:]
    few = Split(np.delete(data.validation.inputs, rare, axis=0), np.delete(data.validation.targets, rare))

    monkeypatch.setattr(space, "post_training", lambda *_, **__: [])
    found = compress(net, train=data.train, validate=few, metric=metric, effort="post-training")

    assert found.outcome.measured[0].validation is not None
    with pytest.raises(ExportError, match="metric\\(\\) raised ZeroDivisionError"):
        compress(net, train=data.train, validate=Split(few.inputs[1:2], few.targets[1:2] * 0 + 1), metric=metric)
