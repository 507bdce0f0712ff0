"""edge-export from the outside: a recipe in, a table and a bundle that the runtime accepts out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_runtime.model import bundle
from edge_runtime.model.session import Session, SessionSettings
from export import compress, contents, families, originals, pack, report
from export.artifact import outputs_of
from export.recipe import Progress, load
from export.search import Outcome

pytestmark = pytest.mark.torch

TONES = Path(__file__).parent / "export_recipes" / "tones.py"
LIMIT_S = 240


def edge_export(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, in a home of its own and without CI set, which would hide ONNX Runtime's telemetry."""
    command = [sys.executable, "-c", "from export.cli import main; main()", *arguments]
    hidden = ("CI", "ORT_DISABLE_TELEMETRY")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env["HOME"] = str(cwd / "home")
    (cwd / "home").mkdir(exist_ok=True)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("exported")
    return folder / "t.edge", edge_export("run", str(TONES), "-o", "t.edge", "--json", cwd=folder)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """The same recipe run a second time, in this process."""
    return searched(TONES, quiet)


def quiet(_text: str) -> None: ...


def searched(path: Path, progress: Progress) -> Outcome:
    """What `edge-export run` finds."""
    task = originals.of_recipe(load(path), folder=None, progress=progress)
    return compress.run(task, effort="post-training", progress=progress).outcome


def test_a_run_writes_a_bundle_that_the_runtime_accepts_and_runs(exported) -> None:
    path, done = exported

    assert done.returncode == 0, done.stderr
    found = bundle.read(path)
    session = Session(found, SessionSettings())
    scores = session.predict(found.golden.inputs)
    assert found.manifest.model_id == "tones@0.1.0"
    assert found.manifest.output.kind == "scores"
    assert (session.dynamic_batch, scores.shape) == (True, (8, 3))
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-5)


def test_a_run_in_a_pipe_says_the_measured_on_stdout_and_one_line_on_stderr(exported) -> None:
    path, done = exported
    told = msgspec.json.decode(done.stdout)

    assert done.stderr == f"t.edge: {told['chosen']}, {path.stat().st_size / 1000:.1f} KB\n"
    names = [variant["variant"] for variant in told["variants"]]
    assert names[:3] == ["float32", "int8 u8s8 minmax", "int8 s8s8 minmax"]
    assert len(set(names)) == 6
    assert [v["status"] for v in told["variants"]].count("chosen") == 1
    for variant in told["variants"]:
        judged = variant["validation"]
        assert judged["low"] < judged["metric"] < judged["high"]
        assert judged["metric"] > 0.5  # three labels: chance is a third
        assert (variant["test"] is not None) == (variant["variant"] in ("float32", told["chosen"]))
        assert variant["latency"]["rounds"] >= 60


def test_onnxruntime_leaves_no_telemetry_behind(exported) -> None:
    home = exported[0].parent / "home"

    assert [str(path) for path in home.rglob("*") if "onnxruntime" in path.name or "Microsoft" in path.name] == []


def test_the_bundle_says_where_it_comes_from_and_nothing_of_this_machine(exported) -> None:
    found = bundle.read(exported[0])
    provenance = found.manifest.provenance

    assert (provenance.recipe, provenance.seed) == ("export_recipes/tones.py", 7)
    assert set(provenance.tools) == {"edge-runtime", "numpy", "onnx", "onnxruntime", "onnxscript", "python", "torch"}
    assert provenance.steps[0] == "torch.onnx dynamo export, opset 20, dynamic batch axis"
    assert str(TONES.parent).encode() not in exported[0].read_bytes()
    for needed in (
        "# tones 0.1.0",
        "validation accuracy [95 %] (n=200)",
        "Test accuracy (n=300",
        "train: 600 windows",
        "searched on: ",
        "## Limits",
    ):
        assert needed in found.card


def test_the_same_recipe_gives_the_same_bundle_but_for_the_measured_times(
    exported, outcome: Outcome, tmp_path: Path, emulators: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(families.EMULATORS, "neon")  # whose userland is not in the home that the command saw
    first = bundle.read(exported[0])
    name = msgspec.json.decode(exported[1].stdout)["chosen"]
    same = next(m for m in outcome.measured if m.name == name)

    pack.pack(tmp_path / "again.edge", msgspec.structs.replace(outcome, chosen=same))

    again = bundle.read(tmp_path / "again.edge")
    for member in (bundle.MODEL, bundle.GOLDEN, bundle.REFERENCE):
        assert again.manifest.files[member] == first.manifest.files[member], member
    for fact in ("provenance", "tolerances", "parity"):
        assert getattr(again.manifest, fact) == getattr(first.manifest, fact)


def test_an_int8_bundle_holds_its_own_golden_vectors(outcome: Outcome, tmp_path: Path) -> None:
    int8 = next(m for m in outcome.measured if m.name == "int8 u8s8 minmax")

    manifest = pack.pack(tmp_path / "int8.edge", msgspec.structs.replace(outcome, chosen=int8))

    found = bundle.read(tmp_path / "int8.edge")
    assert manifest.precision == "int8"
    assert Session(found, SessionSettings()).golden_error <= 1e-6
    assert 1e-4 < manifest.tolerances["default"].absolute < 0.1


def test_golden_windows_come_from_validation_and_show_every_label(exported, outcome: Outcome) -> None:
    validation = outcome.task.validation
    golden = bundle.read(exported[0]).golden
    places = [int(np.flatnonzero((validation.inputs == window).all(axis=(1, 2)))[0]) for window in golden.inputs]

    assert sorted(validation.targets[places].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2]


def test_of_large_windows_there_are_fewer_golden_ones(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "GOLDEN_BYTES", 5 * 2 * 256 * 4)
    artifact = outcome.measured[0].artifact
    assert artifact is not None

    assert len(pack.golden_vectors(outcome.task, artifact, is_original=True).golden.inputs) == 5
    monkeypatch.setattr(pack, "GOLDEN_BYTES", 1)
    assert len(pack.golden_vectors(outcome.task, artifact, is_original=True).golden.inputs) == pack.GOLDEN_LEAST


def test_the_tolerance_of_int8_scores_is_what_two_steps_of_the_logits_do() -> None:
    """Logits from -5 to 5: a step is 10/255. The golden window is undecided, so both scores can move by most."""
    outputs = np.array([[-5.0, 5.0]], np.float32)
    undecided, decided = np.zeros((1, 2), np.float32), np.array([[-5.0, 5.0]], np.float32)
    shift = 2 * 10 / 255

    allowed = contents.int8_tolerance(outputs, undecided, is_logits=True)

    assert allowed == pytest.approx(1 / (1 + np.exp(-2 * shift)) - 0.5)
    assert contents.int8_tolerance(outputs, decided, is_logits=True) == contents.FLOAT32_TOLERANCE
    assert contents.int8_tolerance(outputs, undecided, is_logits=False) == pytest.approx(shift)


def test_the_reference_counts_every_training_window_once(exported, outcome: Outcome) -> None:
    reference = bundle.read(exported[0]).reference
    train = outcome.task.train.inputs

    assert set(reference.features) == {"a.mean", "a.std", "b.mean", "b.std"}
    assert set(reference.scores) == {"low", "middle", "high"}
    for histogram in (*reference.features.values(), *reference.scores.values()):
        assert len(histogram.counts) == len(histogram.edges) + 1
        assert sum(histogram.counts) == reference.n == 600
    edges, counts = reference.features["b.std"].edges, reference.features["b.std"].counts
    deviations = train[:, 1].astype(np.float64).std(axis=1)
    assert counts[0] == int(np.sum(deviations < edges[0]))
    assert counts[3] == int(np.sum((edges[2] <= deviations) & (deviations < edges[3])))
    assert len(counts) == contents.BINS


def test_packing_refuses_a_float32_graph_that_does_not_give_what_torch_gives(outcome: Outcome, tmp_path: Path) -> None:
    shifted = {name: outputs * 1.1 for name, outputs in outcome.task.reference.items()}
    task = msgspec.structs.replace(outcome.task, reference=shifted)
    float32 = msgspec.structs.replace(outcome, chosen=outcome.measured[0], task=task)

    with pytest.raises(pack.ExportError, match="golden vectors: graph and torch differ by"):
        pack.pack(tmp_path / "wrong.edge", float32)

    assert not (tmp_path / "wrong.edge").exists()


def test_a_network_that_was_changed_gives_other_outputs_and_the_certificate_says_how_far(outcome: Outcome) -> None:
    shifted = {name: outputs + 3.0 for name, outputs in outcome.task.reference.items()}
    task = msgspec.structs.replace(outcome.task, reference=shifted, output="scores")

    made = pack.golden_vectors(task, outcome.measured[0].artifact, is_original=False)

    wanted = shifted["validation"]
    assert made.golden.outputs.max() <= 1.0
    for claim in made.parity.values():
        assert 2.0 < claim.from_float32 <= wanted.max() + 1
        assert claim.from_default == 0.0


def test_packing_refuses_golden_windows_that_a_constant_would_pass(outcome: Outcome, tmp_path: Path) -> None:
    """Every validation window is the first one, and so is what torch says of it."""
    validation, raw = outcome.task.validation, outcome.task.reference["validation"]
    same = msgspec.structs.replace(validation, inputs=np.repeat(validation.inputs[:1], len(raw), axis=0))
    reference = {**outcome.task.reference, "validation": np.repeat(raw[:1], len(raw), axis=0)}
    constant = msgspec.structs.replace(
        outcome,
        chosen=outcome.measured[0],
        task=msgspec.structs.replace(outcome.task, validation=same, reference=reference),
    )

    with pytest.raises(pack.ExportError, match="8 golden windows prove nothing: their outputs spread over"):
        pack.pack(tmp_path / "constant.edge", constant)

    assert not (tmp_path / "constant.edge").exists()


def test_the_table_has_a_line_for_each_variant_with_its_verdict(outcome: Outcome) -> None:
    lines = report.plain(report.rows(outcome)).splitlines()

    assert lines[0].startswith("variant")
    assert [line.split("  ")[0] for line in lines[2:5]] == ["float32", "int8 u8s8 minmax", "int8 s8s8 minmax"]
    assert sum(line.endswith("chosen") for line in lines[2:]) == 1


def test_the_shipped_graph_gives_the_scores_of_torch(outcome: Outcome) -> None:
    shipped = outcome.measured[0].artifact
    assert shipped is not None
    logits = outcome.task.reference["test"]

    scores = outputs_of(shipped, outcome.task.test.inputs)

    np.testing.assert_allclose(scores, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), atol=1e-5)


def test_a_reconstruction_is_judged_and_shipped_by_its_error(tmp_path: Path) -> None:
    told: list[str] = []

    outcome = searched(TONES.with_name("echoes.py"), told.append)
    manifest = pack.pack(tmp_path / "echoes.edge", outcome)

    found = bundle.read(tmp_path / "echoes.edge")
    session = Session(found, SessionSettings())
    test = outcome.task.test
    errors = session.predict(test.inputs)[:, 0]
    assert (manifest.output.kind, manifest.output.name, manifest.labels) == ("reconstruction", "reconstruction", ())
    assert manifest.threshold is not None
    assert np.mean((errors > manifest.threshold) == test.targets) > 0.9
    assert set(found.reference.scores) == {"error"}
    assert sum(found.reference.scores["error"].counts) == 400
    assert outcome.measured[0].test is not None
    assert outcome.measured[0].test.low <= outcome.measured[0].test.metric <= outcome.measured[0].test.high <= 1.0
    assert any(text.startswith("loss ") for text in told)


def test_a_budget_that_nothing_keeps_is_exit_code_3_with_the_nearest_named_and_no_bundle(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(TONES.read_text().replace("max_drop=0.05", "size_kb=1.5"))

    done = edge_export("run", str(recipe), cwd=tmp_path)

    assert done.returncode == 3
    first, *near = done.stderr.splitlines()
    assert first == "edge-export: no candidate keeps the budget; nearest:"
    assert near[0].startswith("  int8 ")
    assert "relax to --size " in near[0]
    assert "Traceback" not in done.stderr
    assert "chosen" not in done.stdout
    assert not list(tmp_path.glob("*.edge"))


def test_a_failing_recipe_is_exit_code_1_and_one_line(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(TONES.read_text().replace("nn.Linear(32,", "nn.Linear(33,"))

    done = edge_export("run", str(recipe), cwd=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"edge-export: {recipe}: forward() raised RuntimeError: mat1 and mat2 shapes")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["run"], ["run", "absent.py"], ["run", str(TONES), "-o", "no/such/x.edge"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], tmp_path: Path) -> None:
    assert edge_export(*arguments, cwd=tmp_path).returncode == 2


def test_a_recipes_network_is_trained_once_and_said_to_be_where_it_was(tmp_path: Path) -> None:
    first, second = (originals.of_recipe(load(TONES), folder=tmp_path, progress=quiet) for _ in range(2))

    assert (first.trained_now, second.trained_now) == (True, False)
    assert first.original.model == second.original.model
