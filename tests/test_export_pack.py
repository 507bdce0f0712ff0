"""edge-export pack: a bundle from somebody else's ONNX file; what is derived, what is asked, what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import means_model, running
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from strangers import classifier, cli, graph, means, pack, streaming

from edge_runtime.errors import ExportError
from edge_runtime.model import bundle
from edge_runtime.model.session import Session, SessionSettings, load_onnxruntime
from edge_runtime.records import InputSpec
from export import contents, signature
from export.cli import main
from export.derive import PackSpec, derive
from export.pack_onnx import load_windows, noise

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("EDGE_SHARED_DATA", ROOT.parent / "shared" / "data"))
KEYWORDS = DATA / "mlperf_kws_dscnn_fp32.onnx"
VOICE = importlib.util.find_spec("silero_vad")
LIMIT = 1e-5


def test_a_classifier_is_packed_from_nothing_but_its_graph(tmp_path: Path) -> None:
    made = pack(classifier(tmp_path), layout=None, length=4, channels=("x", "y"))

    manifest = made.manifest
    assert manifest.input == InputSpec("x", ("x", "y"), ("1", "1"), 4, 4, None, "NTC")
    assert (manifest.output.kind, manifest.labels, manifest.precision) == ("scores", ("class0", "class1"), "float32")
    assert (manifest.name, manifest.provenance.recipe) == ("stranger", "stranger.onnx")
    assert set(manifest.provenance.tools) == {"edge-runtime", "numpy", "onnx", "onnxruntime", "python"}
    assert made.golden.inputs.shape == (16, 4, 2)
    assert np.ptp(made.golden.outputs[:, 0]) > 0.1
    assert Session(made, SessionSettings()).golden_error <= LIMIT
    assert made.reference.n == 0


def test_the_card_says_where_the_file_came_from_and_that_nothing_was_measured(tmp_path: Path) -> None:
    model = classifier(tmp_path)

    card = pack(model, name="mine", version="2.0.1", seed=5).card

    assert card.startswith("# mine 2.0.1\n")
    assert "Packed from `stranger.onnx`." in card
    assert f"packed from stranger.onnx, sha256 {hashlib.sha256(model.read_bytes()).hexdigest()}" in card
    assert "accuracy was not measured" in card
    assert "Inputs: noise, seed 5." in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("shape", "told", "wanted"),
    [
        (["n", 100], {}, ("NT", 100, 1)),
        (["n", 100], {"channels": ("a", "b")}, ("NF", 50, 2)),
        (["n", None, 6], {"length": 50}, ("NTC", 50, 6)),
        (["n", 6, None], {"length": 50}, ("NCT", 50, 6)),
        (["n", 6, 50], {"length": 50}, ("NCT", 50, 6)),
        (["n", 6, 50], {"channels": tuple("abcdef")}, ("NCT", 50, 6)),
        (["n", 50, 50], {"layout": "NCT"}, ("NCT", 50, 50)),
        ([1, 1, 49, 10], {}, ("N1TC", 49, 10)),
        ([1, 1, 40, 98], {"layout": "N1CT"}, ("N1CT", 98, 40)),
        ([1, 1, 40, 98], {"length": 98}, ("N1CT", 98, 40)),
        (["n", 49, 10, 1], {}, ("NTC1", 49, 10)),
        (["n", None], {"length": 8}, ("NT", 8, 1)),
    ],
)
def test_layout_length_and_channels_follow_from_the_shape(tmp_path, shape, told, wanted) -> None:
    model = graph(tmp_path, [helper.make_node("Identity", ["x"], ["y"])], x=shape)

    plan = derive(signature.read(model), PackSpec(output_kind="scores", **told))

    assert (plan.input.layout, plan.input.length, len(plan.input.channels)) == wanted


@pytest.mark.parametrize(
    ("shape", "told", "wanted"),
    [
        (["n", 128, 6], {}, "--layout NTC"),
        (["n", 6, 128], {}, "--layout NCT"),
        (["n", None], {}, "--length SAMPLES"),
        (["n", None, None], {"layout": "NTC", "length": 9}, "--channels NAME,NAME"),
    ],
)
def test_what_the_shape_leaves_open_is_asked(tmp_path: Path, shape, told, wanted: str) -> None:
    model = graph(tmp_path, [helper.make_node("Identity", ["x"], ["y"])], x=shape)

    with pytest.raises(ExportError, match=f"  add: {wanted}$"):
        derive(signature.read(model), PackSpec(output_kind="scores", **told))


def test_everything_that_is_missing_is_said_at_once_ready_to_copy(tmp_path: Path) -> None:
    model = streaming(tmp_path)

    done = cli(model)

    assert (done.exit_code, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert lines[:3] == [
        "edge-export: running.onnx: the graph does not say everything",
        "  inputs:  x float32 (?, 4, 2) · state float32 (2, ?, 2) · gain float32 ()",
        "  outputs: y float32 (?, 2) · stateN float32 (2, ?, 2)",
    ]
    assert lines[-1] == "  add: --state state=stateN --scalar gain=VALUE --layout NTC --output-kind KIND"
    flags = lines[-1].removeprefix("  add: ").replace("VALUE", "0.25").replace("KIND", "reconstruction").split()
    assert "reconstruction of (4, 2) was wanted" in cli(model, *flags, "--threshold", "1").stderr
    flags[-1] = "error"
    assert "(batch, 2), error are (batch, 1)" in cli(model, *flags, "--threshold", "1").stderr


def test_a_streaming_graph_is_run_as_one_stream_from_zero(tmp_path: Path) -> None:
    made = pack(
        streaming(tmp_path), state={"state": "stateN"}, scalar={"gain": 0.25}, output_kind="logits", hop=2, lead_in=2
    )

    state, scalar = made.manifest.states[0], made.manifest.scalars[0]
    assert (state.shape, state.batch_axis, state.dtype) == ((2, 1, 2), 1, "float32")
    assert (scalar.name, scalar.value, scalar.dtype, scalar.shape) == ("gain", 0.25, "float32", ())
    np.testing.assert_allclose(made.golden.outputs, running(made.golden.inputs) * 0.25, atol=1e-6)
    assert not made.golden.inputs[0, :2].any()
    np.testing.assert_array_equal(made.golden.inputs[1:, :2], made.golden.inputs[:-1, 2:])


def test_a_state_whose_shape_is_open_can_be_told(tmp_path: Path) -> None:
    path = streaming(tmp_path)
    proto = onnx.load(path)
    proto.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "layers"
    path.write_bytes(proto.SerializeToString())
    told = {"scalar": {"gain": 1.0}, "output_kind": "logits"}

    with pytest.raises(ExportError, match="say one shape, such as --state state=stateN:2,b,128"):
        pack(path, state={"state": "stateN"}, **told)
    made = pack(path, state={"state": "stateN:2,b,2"}, **told)

    assert (made.manifest.states[0].shape, made.manifest.states[0].batch_axis) == ((2, 1, 2), 1)


def test_samples_become_golden_vectors_and_with_enough_of_them_the_reference(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
        helper.make_node("Softmax", ["m"], ["y"]),
    ]
    model = graph(tmp_path, nodes, x=["batch", 2, 4], constants={"axes": np.array([2], np.int64)})
    windows = np.random.default_rng(1).random((200, 4, 2), dtype=np.float32)
    np.save(tmp_path / "few.npy", windows[:20].swapaxes(1, 2))
    np.save(tmp_path / "many.npy", windows)

    few = pack(model, samples=tmp_path / "few.npy", layout="NCT")
    many = pack(model, samples=tmp_path / "many.npy", layout="NCT", channels=("a", "b"))

    np.testing.assert_array_equal(few.golden.inputs[:2], windows[:2].swapaxes(1, 2))
    np.testing.assert_array_equal(many.golden.inputs, windows[[i * 200 // 16 for i in range(16)]].swapaxes(1, 2))
    assert (few.reference.n, many.reference.n) == (0, 200)
    assert set(many.reference.features) == {"a.mean", "a.std", "b.mean", "b.std"}
    edges, counts = many.reference.features["b.mean"].edges, many.reference.features["b.mean"].counts
    assert counts[0] == int(np.sum(windows[:, :, 1].mean(axis=1, dtype=np.float64) < edges[0]))
    assert sum(many.reference.scores["class0"].counts) == 200
    assert "histograms of 200 windows of many.npy" in many.card


@pytest.mark.parametrize(
    ("array", "fact"),
    [
        (np.zeros((3, 4, 2)), "float64, wanted float32 (n, 4, 2)"),
        (np.zeros((3, 2, 4), np.float32), "float32 (3, 2, 4), wanted"),
        (np.full((3, 4, 2), np.nan, np.float32), "holds NaN"),
        (np.zeros((0, 4, 2), np.float32), "wanted"),
        (np.array(["x"], object), "not a .npy file of windows"),
    ],
)
def test_samples_of_another_form_are_refused(tmp_path: Path, array: np.ndarray, fact: str) -> None:
    np.save(tmp_path / "s.npy", array, allow_pickle=True)

    with pytest.raises(ExportError) as error:
        load_windows(tmp_path / "s.npy", InputSpec("x", ("a", "b"), ("1", "1"), 4, 4))

    assert fact in str(error.value)


def test_flags_win_over_the_file_and_the_summary_says_where_each_value_came_from(tmp_path: Path) -> None:
    model, toml, target = classifier(tmp_path), tmp_path / "pack.toml", tmp_path / "out.edge"
    toml.write_text('name = "file"\nversion = "1.2.3"\nlayout = "NTC"\nlabels = ["still", "moving"]\nrate_hz = 50\n')

    done = cli(model, "-o", target, "--spec", toml, "--name", "flag", "--hop", 2)

    assert done.exit_code == 0, done.stderr
    made = bundle.read(target)
    assert made.manifest.model_id == "flag@1.2.3"
    assert (made.manifest.labels, made.manifest.input.hop, made.manifest.input.rate_hz) == (("still", "moving"), 2, 50)
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert rows["name"].split() == ["name", "flag", "told"]
    assert rows["channels"].endswith("graph, names by default")
    assert rows["output_kind"].endswith("graph: Softmax gives it")
    assert rows["golden"].endswith("noise, seed 0")
    assert done.stderr == f"{target}: {target.stat().st_size / 1000:.1f} KB\n"


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("lenght = 3", "unknown field `lenght`"),
        ('length = "3"', "`length`"),
        ("length = 0", "`length`"),
        ('layout = "TCN"', "`layout`"),
        ("scalar = { sr = 'x' }", "`scalar"),
        ("name = ", "not TOML"),
    ],
)
def test_a_wrong_key_of_the_file_is_named(tmp_path: Path, text: str, fact: str) -> None:
    toml = tmp_path / "pack.toml"
    toml.write_text(text)

    done = cli(classifier(tmp_path), "--spec", toml)

    assert done.exit_code == 1
    assert done.stderr.startswith(f"edge-export: {toml}: ")
    assert fact in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("told", "fact"),
    [
        ({"input": "z"}, "--input: the graph has no input 'z'"),
        ({"output": "z"}, "--output: the graph has no output 'z'"),
        ({"state": {"z": "y"}}, "--state: the graph has no input 'z'"),
        ({"scalar": {"z": 1.0}}, "--scalar: the graph has no input 'z'"),
        ({"length": 9}, "9 samples of any number of channels"),
        ({"layout": "NT"}, "--layout NT"),
        ({"units": ("m", "s", "K")}, "3 units for 2 channels"),
        ({"lead_in": 4}, "--lead-in 4: a window has 4 samples"),
        ({"scalar": {"x": float("inf")}}, "no input is left for the window"),
    ],
)
def test_what_contradicts_the_graph_is_refused_with_the_graph_listed(tmp_path: Path, told: dict, fact: str) -> None:
    with pytest.raises(ExportError) as error:
        derive(signature.read(classifier(tmp_path)), PackSpec(**{"layout": "NTC", **told}))

    assert fact in str(error.value)
    assert "inputs:  x float32 (?, 4, 2)\n  outputs: y float32 (?, 2)" in str(error.value)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"x_type": TensorProto.UINT8}, "input x takes uint8, wanted float32"),
        ({"x_type": TensorProto.DOUBLE}, "input x takes float64, wanted float32"),
        ({"y_type": TensorProto.INT64}, "output y gives int64, wanted float32"),
        ({"x": [8, 4, 2]}, "fixed batch of 8"),
        ({"x": ["n", 2, 3, 4, 5]}, "fits no layout"),
    ],
)
def test_graphs_that_do_not_take_windows_are_refused(tmp_path: Path, options: dict, fact: str) -> None:
    model = graph(tmp_path, [helper.make_node("Identity", ["x"], ["y"])], **options)

    with pytest.raises(ExportError, match=fact):
        derive(signature.read(model), PackSpec(output_kind="scores"))


def test_operators_of_its_own_are_refused_even_deep_inside(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Secret", ["x"], ["z"], domain="com.example")],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)]
    model = graph(tmp_path, nodes, constants={"yes": np.array(True)}, domains=("com.example",))

    with pytest.raises(ExportError, match=r"com\.example.*Secret"):
        signature.read(model)


@pytest.mark.parametrize("body", [b"", b"not a model", b"PK\x03\x04"])
def test_a_file_that_is_not_onnx_is_refused_in_one_line(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(body)

    done = cli(path)

    assert done.exit_code == 1
    assert "not an ONNX file" in done.stderr
    assert done.stderr.count("\n") == 1


LAST = {
    "values outside": ([helper.make_node("Mul", ["m", "nine"], ["y"])], {"output_kind": "scores"}, "are these logits"),
    "softmax twice": ([helper.make_node("Softmax", ["m"], ["y"])], {"output_kind": "logits"}, "are scores, not logits"),
    "labels": ([helper.make_node("Softmax", ["m"], ["y"])], {"labels": ("a", "b", "c")}, "told 3: a, b, c"),
    "one column": ([helper.make_node("Softmax", ["m"], ["y"])], {"output_kind": "probability"}, r"are \(batch, 1\)"),
    "not finite": ([helper.make_node("Log", ["m"], ["y"])], {"output_kind": "logits"}, "holds NaN"),
    "labels repeat": (
        [helper.make_node("Softmax", ["m"], ["y"])],
        {"labels": ("a", "a")},
        "a name is empty or repeats",
    ),
    "version": ([helper.make_node("Softmax", ["m"], ["y"])], {"version": "1"}, "wanted 1.2.3"),
    "across the batch": (
        [
            helper.make_node("ReduceMean", ["m", "first"], ["r"]),
            helper.make_node("Mul", ["r", "nine"], ["n"]),
            helper.make_node("Sub", ["m", "n"], ["y"]),
        ],
        {"output_kind": "logits"},
        "golden vectors: outputs differ",
    ),
}


@pytest.mark.parametrize("case", LAST)
def test_a_graph_that_does_not_do_what_was_said_is_refused_and_the_old_bundle_stays(tmp_path: Path, case: str) -> None:
    last, told, fact = LAST[case]
    constants = {"nine": np.float32(9).reshape(()), "first": np.array([0], np.int64)}
    nodes, options = means(last, constants=constants)
    model = graph(tmp_path, nodes, **options)
    model.with_name("packed.edge").write_bytes(b"old")

    with pytest.raises(ExportError, match=fact):
        pack(model, **told)

    assert model.with_name("packed.edge").read_bytes() == b"old"
    assert not list(tmp_path.glob("*.part"))


def test_a_graph_that_onnxruntime_refuses_is_one_line(tmp_path: Path) -> None:
    nodes, options = means(
        [helper.make_node("MatMul", ["m", "w"], ["y"])], constants={"w": np.ones((3, 2), np.float32)}
    )

    done = cli(graph(tmp_path, nodes, **options), "--layout", "NTC", "--labels", "a,b")

    assert done.exit_code == 1
    assert "ONNX Runtime refuses the model" in done.stderr
    assert done.stderr.count("\n") == 1


def external(folder: Path, location: str) -> Path:
    """A graph whose weight lies in a file called `weights`, and is said to lie at location."""
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    (folder / "weights").write_bytes(weight.raw_data)
    nodes, options = means([helper.make_node("MatMul", ["m", "w"], ["y"])])
    path = graph(folder, nodes, **options)
    proto = onnx.load(path, load_external_data=False)
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value=location)
    proto.graph.initializer.append(outside)
    path.write_bytes(proto.SerializeToString())
    return path


def test_weights_in_a_file_beside_the_model_are_taken_in(tmp_path: Path) -> None:
    made = pack(external(tmp_path, "weights"), output_kind="logits")

    assert not any(t.external_data for t in onnx.load_from_string(made.model).graph.initializer)
    np.testing.assert_allclose(made.golden.outputs, made.golden.inputs.mean(axis=1), atol=1e-6)
    assert "external data taken in: weights" in made.manifest.provenance.steps


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "sub/weights", "", ".", "symlink", "hard", "absent"]
)
def test_weights_anywhere_else_are_refused(tmp_path: Path, location: str) -> None:
    model = external(tmp_path, location)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights").write_bytes(bytes(16))
    (tmp_path / "symlink").symlink_to(tmp_path / "weights")
    (tmp_path / "hard").hardlink_to(tmp_path / "sub" / "weights")

    with pytest.raises(ExportError, match="external data in"):
        signature.read(model)


def test_an_int8_graph_says_so_and_gets_a_wider_tolerance(tmp_path: Path) -> None:
    nodes, options = means(
        [
            helper.make_node("QuantizeLinear", ["m", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        constants={"s": np.float32(0.01).reshape(()), "z": np.int8(0).reshape(())},
    )

    made = pack(graph(tmp_path, nodes, **options), output_kind="logits")

    largest = float(np.abs(made.golden.outputs).max())
    assert made.manifest.precision == "int8"
    assert made.manifest.tolerances["default"].absolute >= 2 * largest / 255 > contents.FLOAT32_TOLERANCE


def test_a_linear_last_layer_gives_logits_only_where_labels_are_told(tmp_path: Path) -> None:
    nodes, options = means(
        [helper.make_node("MatMul", ["m", "w"], ["y"])], constants={"w": np.eye(2, dtype=np.float32)}
    )
    linear = signature.read(graph(tmp_path, nodes, **options))

    with pytest.raises(ExportError, match=r"  add: --layout NTC --output-kind KIND$"):
        derive(linear, PackSpec())
    assert derive(linear, PackSpec(layout="NTC", labels=("a", "b"))).kind == "logits"


def test_a_dense_autoencoder_is_a_reconstruction_and_asks_for_its_threshold(tmp_path: Path) -> None:
    dense = helper.make_node("MatMul", ["x", "w"], ["y"])
    weight = {"w": 0.5 * np.eye(8, dtype=np.float32)}
    model = signature.read(graph(tmp_path, [dense], x=["n", 8], y=["n", 8], constants=weight))

    with pytest.raises(ExportError, match=r"  add: --threshold ERROR$"):
        derive(model, PackSpec())
    assert derive(model, PackSpec(threshold=1.0)).kind == "reconstruction"
    assert derive(model, PackSpec(labels=tuple("abcdefgh"))).kind == "logits"


def test_a_threshold_for_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--threshold 0\.5: output y is scores, which has none"):
        pack(classifier(tmp_path), threshold=0.5)


def test_a_reconstruction_is_judged_by_its_error(tmp_path: Path) -> None:
    echo = graph(
        tmp_path, [helper.make_node("Mul", ["x", "h"], ["y"])], y=["batch", 4, 2], constants={"h": np.float32([0.5])}
    )

    made = pack(echo, threshold=0.5)
    session = Session(made, SessionSettings())
    windows = made.golden.inputs
    np.testing.assert_allclose(
        session.predict(windows)[:, 0], np.square(windows / 2).mean(axis=(1, 2)), rtol=1e-4, atol=1e-7
    )


def test_the_same_file_gives_the_same_bundle_to_the_byte(tmp_path: Path) -> None:
    model = classifier(tmp_path)

    assert pack(model).digest == pack(model).digest
    assert not np.array_equal(*(noise(InputSpec("x", ("a",), ("1",), 4, 4), seed=seed) for seed in (0, 1)))


@pytest.mark.parametrize(
    "arguments", [["absent.onnx"], [__file__, "--scalar", "sr"], [__file__, "-o", "no/such/x.edge"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert cli(*arguments).exit_code == 2


def test_a_model_with_a_fixed_batch_of_one_is_packed_too(tmp_path: Path) -> None:
    path = tmp_path / "one.onnx"
    path.write_bytes(means_model(length=4, channels=2, batch=1))

    assert not Session(pack(path, output_kind="logits"), SessionSettings()).dynamic_batch


@pytest.mark.skipif(not KEYWORDS.is_file(), reason=f"{KEYWORDS.name} not present beside the checkout (../shared/data)")
def test_the_keyword_spotter_of_mlperf_needs_only_the_kind_of_its_output(tmp_path: Path) -> None:
    target = tmp_path / "kws.edge"

    done = cli(KEYWORDS, "-o", target, "--output-kind", "logits")

    assert done.exit_code == 0, done.stderr
    made = bundle.read(target)
    assert (made.manifest.input.shape(), made.manifest.input.layout) == ((1, 49, 10), "N1TC")
    assert (made.manifest.output.kind, len(made.manifest.labels)) == ("logits", 12)
    by_hand = load_onnxruntime().InferenceSession(KEYWORDS.read_bytes()).run(None, {"x": made.golden.inputs})[0]
    np.testing.assert_allclose(made.golden.outputs, by_hand, atol=1e-4)


def documented() -> tuple[list[list[str]], str, str]:
    """The arguments of every edge-export command, the TOML and the error that docs/packing.md shows."""
    text = (ROOT / "docs" / "packing.md").read_text()
    blocks = {kind: re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("console", "toml", "text")}
    return [shlex.split(block)[1:] for block in blocks["console"]], blocks["toml"][0], blocks["text"][0]


def test_the_documented_commands_do_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nodes, options = means([helper.make_node("MatMul", ["m", "w"], ["l"]), helper.make_node("Softmax", ["l"], ["y"])])
    constants = options["constants"] | {"w": np.eye(3, 2, dtype=np.float32)}
    graph(tmp_path, nodes, x=["batch", 256, 3], constants=constants).rename("classifier.onnx")
    halved = [helper.make_node("Mul", ["x", "h"], ["y"])]
    shape = ["batch", 1, 64]
    graph(tmp_path, halved, x=shape, y=shape, constants={"h": np.float32([0.5])}).rename("autoencoder.onnx")
    np.save("windows.npy", np.random.default_rng(0).random((200, 64, 1), dtype=np.float32))
    (classify, encode, _), _, _ = documented()

    for arguments in (classify, encode):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.stderr

    classifier, autoencoder = (bundle.read(Path(name)).manifest for name in ("classifier.edge", "autoencoder.edge"))
    assert classifier.input == InputSpec("x", ("x", "y", "z"), ("g",) * 3, 256, 128, 1000, "NTC")
    assert (classifier.labels, classifier.output.kind) == (("ok", "worn"), "scores")
    assert (autoencoder.input.layout, autoencoder.output.kind, autoencoder.threshold) == ("NCT", "reconstruction", 0.02)
    assert set(bundle.read(Path("autoencoder.edge")).reference.scores) == {"error"}


@pytest.mark.skipif(VOICE is None, reason="silero-vad is not installed (pip install --no-deps silero-vad)")
def test_the_voice_detector_is_packed_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("silero_vad.onnx").symlink_to(Path(VOICE.submodule_search_locations[0]) / "data" / "silero_vad.onnx")
    (*_, command), toml, error = documented()
    Path("pack.toml").write_text(toml)

    asked, done = cli("silero_vad.onnx"), CliRunner().invoke(main, command)

    assert (asked.exit_code, asked.stderr) == (1, error)
    assert done.exit_code == 0, done.stderr
    assert bundle.read(Path("voice.edge")).manifest.input.lead_in == 32
