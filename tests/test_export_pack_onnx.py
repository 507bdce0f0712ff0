"""What a packed bundle proves, what of steps and sessions goes into it, and which odd graphs and words it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from strangers import classifier, cli, graph, means, pack, streaming

from edge_runtime.errors import BundleError, ExportError
from edge_runtime.model import bundle
from edge_runtime.model.manifest import OutputKind
from edge_runtime.model.session import Session, SessionSettings
from edge_runtime.records import Layout
from export import contents, half, signature, weight_only
from export.artifact import Artifact, outputs_of
from export.cli_options import LAYOUTS, OUTPUT_KINDS
from export.derive import PackSpec, derive
from export.pack_onnx import pack_onnx


def swapped(made: bundle.Bundle, model: Path) -> bundle.Bundle:
    """The bundle with somebody else's graph inside, the golden vectors kept."""
    return msgspec.structs.replace(made, model=model.read_bytes())


def squared_error(folder: Path, factor: float) -> Path:
    """One error a window of about 1e-7, (batch, 1); 0.5 is the graph, any other factor another one."""
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["q"]),
        helper.make_node("ReduceMean", ["q", "axes"], ["e"], keepdims=0),
        helper.make_node("Mul", ["e", "small"], ["m"]),
        helper.make_node("Unsqueeze", ["m", "last"], ["y"]),
    ]
    constants = {
        "factor": np.float32(factor),
        "small": np.float32(1e-6),
        "axes": np.array([1, 2], np.int64),
        "last": np.array([1], np.int64),
    }
    (folder / str(factor)).mkdir()
    return graph(folder / str(factor), nodes, y=["batch", 1], constants=constants)


def test_golden_vectors_tell_graphs_apart_however_small_their_outputs(tmp_path: Path) -> None:
    made = pack(squared_error(tmp_path, 0.5), output_kind="error", threshold=1e-6)

    assert made.golden.outputs.max() < 1e-6
    with pytest.raises(BundleError, match="golden vectors: outputs differ"):
        Session(swapped(made, squared_error(tmp_path, 0.6)), SessionSettings())


def test_golden_vectors_of_a_reconstruction_in_small_units_tell_a_zeroed_graph(tmp_path: Path) -> None:
    def echo(name: str, weight: np.ndarray) -> Path:
        (tmp_path / name).mkdir()
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        return graph(tmp_path / name, [node], x=["n", 8], y=["n", 8], constants={"w": weight})

    strain = (np.random.default_rng(0).standard_normal((20, 8, 1)) * 1e-5).astype(np.float32)
    weight = np.eye(8, dtype=np.float32) * 0.9

    made = pack(echo("trained", weight), layout=None, threshold=1e-11, samples=strain)

    with pytest.raises(BundleError, match="golden vectors: outputs differ"):
        Session(swapped(made, echo("zeroed", weight * 0)), SessionSettings())


def test_golden_windows_that_cannot_tell_a_constant_are_refused_and_real_ones_are_asked_for(tmp_path: Path) -> None:
    nodes, options = means(
        [
            helper.make_node("Mul", ["m", "per_count"], ["s"]),
            helper.make_node("Add", ["s", "bias"], ["l"]),
            helper.make_node("Softmax", ["l"], ["y"]),
        ],
        constants={"per_count": np.float32(1e-4), "bias": np.float32([0, 10])},
    )
    model = graph(tmp_path, nodes, **options)
    counts = np.random.default_rng(0).normal(0, 1e5, (20, 4, 2)).astype(np.float32)

    with pytest.raises(ExportError, match=r"16 golden windows prove nothing.*\(noise, seed 0\).*--samples"):
        pack(model)

    assert np.ptp(pack(model, samples=counts).golden.outputs) > 0.1


def gru(folder: Path) -> Artifact:
    """(batch, 16, 4) through a GRU of 32 to two logits, as the export steps take it."""
    rng = np.random.default_rng(2)
    shapes = {"w": (1, 96, 4), "r": (1, 96, 32), "b": (1, 192), "head": (32, 2)}
    constants = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["t", "w", "r", "b"], ["", "h"], hidden_size=32),
        helper.make_node("Squeeze", ["h", "zero"], ["last"]),
        helper.make_node("MatMul", ["last", "head"], ["y"]),
    ]
    path = graph(folder, nodes, x=["batch", 16, 4], constants=constants | {"zero": np.array([0], np.int64)})
    return Artifact("float32", "float32", path.read_bytes(), "x", "y", ("made by hand",))


def test_what_the_steps_made_becomes_a_bundle_with_its_session_entries_and_steps(tmp_path: Path) -> None:
    windows = np.random.default_rng(3).standard_normal((40, 16, 4)).astype(np.float32)
    steps = {
        "int8-weights": weight_only.int8()(gru(tmp_path)),
        "float16": half.fp16(windows, session=half.WITHOUT_NCHWC)(gru(tmp_path)),
    }

    for precision, artifact in steps.items():
        spec = PackSpec(name="gru", layout="NTC", labels=("still", "moving"))
        path, _ = pack_onnx(artifact, spec, target=tmp_path / f"{precision}.edge", samples=windows)
        made = bundle.read(path)
        assert (made.manifest.precision, made.manifest.session) == (precision, artifact.session)
        assert made.manifest.provenance.steps == artifact.steps
        assert len(artifact.steps) == 2
        assert artifact.session
        np.testing.assert_allclose(made.golden.outputs, outputs_of(artifact, made.golden.inputs), atol=1e-4)
        assert Session(made, SessionSettings()).golden_error <= made.manifest.tolerances["default"].absolute


def test_session_entries_hold_in_the_run_for_golden_vectors_in_the_gate_and_on_the_device(tmp_path: Path) -> None:
    """Twice the mean, but for the half that goes through denormal numbers, which the entry makes zero."""
    nodes, options = means(
        [
            helper.make_node("Mul", ["m", "tiny"], ["d"]),
            helper.make_node("Mul", ["d", "huge"], ["back"]),
            helper.make_node("Add", ["m", "back"], ["y"]),
        ],
        constants={"tiny": np.float32(1e-38) / 10, "huge": np.float32(1e38)},
    )
    toml = tmp_path / "pack.toml"
    toml.write_text('layout = "NTC"\noutput_kind = "logits"\n[session]\n"session.set_denormal_as_zero" = "1"\n')
    flags = ("--layout", "NTC", "--output-kind", "logits", "--session", "session.set_denormal_as_zero=1")
    model = graph(tmp_path, nodes, **options)

    for arguments in (("--spec", toml), flags):
        done = cli(model, "-o", tmp_path / "out.edge", *arguments)
        assert done.exit_code == 0, done.stderr
        made = bundle.read(tmp_path / "out.edge")
        assert made.manifest.session == {"session.set_denormal_as_zero": "1"}
        np.testing.assert_allclose(made.golden.outputs, made.golden.inputs.mean(axis=1), atol=1e-6)


def test_session_entries_that_no_device_accepts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"session\.optimized_model_filepath|ep\.context"):
        pack(classifier(tmp_path), session={"ep.context_file_path": "/tmp/x"})


def test_of_several_outputs_the_float32_one_is_read(tmp_path: Path) -> None:
    """As scikit-learn's converter writes them: a label, the scores, and a list of tables that no device can use."""
    nodes, options = means(
        [
            helper.make_node("Softmax", ["m"], ["y"]),
            helper.make_node("ArgMax", ["m"], ["label"], axis=1, keepdims=0),
            helper.make_node("ZipMap", ["y"], ["tables"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
        ],
        domains=("ai.onnx.ml",),
    )
    path = graph(tmp_path, nodes, **options)
    proto = onnx.load(path)
    table = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    proto.graph.output.insert(0, helper.make_value_info("tables", helper.make_sequence_type_proto(table)))
    proto.graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]))
    path.write_bytes(proto.SerializeToString())

    made = pack(path)

    assert (made.manifest.output.name, made.manifest.output.kind) == ("y", "scores")
    with pytest.raises(ExportError, match="output tables gives sequence, wanted float32"):
        pack(path, output="tables")


def inputs(folder: Path, *shapes: list, outputs: str = "yz") -> signature.Graph:
    """A graph that adds up inputs a, b, ..., with outputs (batch, 2); never run."""
    names = "abc"[: len(shapes)]
    made = helper.make_graph(
        [helper.make_node("Sum", list(names), [output]) for output in outputs],
        "stranger",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in zip(names, shapes, strict=True)
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", 2]) for output in outputs],
    )
    path = folder / "stranger.onnx"
    path.write_bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())
    return signature.read(path)


def test_of_several_inputs_the_one_of_highest_rank_that_no_output_is_like_takes_the_window(tmp_path: Path) -> None:
    told = PackSpec(layout="NTC", output_kind="logits")

    with pytest.raises(ExportError, match=r"  add: --scalar a=VALUE --state b=y$"):
        derive(inputs(tmp_path, [1], ["batch", 2], ["batch", 4, 2]), told)
    with pytest.raises(ExportError, match=r"  add: --input a --state b=y$"):
        derive(inputs(tmp_path, ["batch", 8], ["batch", None]), PackSpec(output_kind="logits"))


def test_two_windows_are_one_too_many(tmp_path: Path) -> None:
    for second in (["batch", 8, 2], ["batch", 2]):
        with pytest.raises(ExportError, match="inputs a and b: one window input only"):
            derive(inputs(tmp_path, ["batch", 4, 2], second, outputs="y"), PackSpec(layout="NTC"))


@pytest.mark.parametrize("size", [0, -1])
def test_axes_of_size_zero_or_minus_one_are_open(tmp_path: Path, size: int) -> None:
    nodes, options = means([helper.make_node("Softmax", ["m"], ["y"])])

    made = pack(graph(tmp_path, nodes, x=[size, 4, 2], y=[size, 2], **options))

    assert Session(made, SessionSettings()).dynamic_batch
    assert "axes of size 0 or -1 declared open: x, y" in made.manifest.provenance.steps


def test_an_input_without_a_rank_takes_the_shape_that_is_told(tmp_path: Path) -> None:
    path = classifier(tmp_path)
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    path.write_bytes(proto.SerializeToString())

    with pytest.raises(ExportError, match=r"x float32 of any shape\n(.|\n)*  add: --layout LAYOUT$"):
        pack(path, layout=None)
    made = pack(path, length=4, channels=("a", "b"))

    assert Session(made, SessionSettings()).dynamic_batch
    assert "shape declared of x ('batch', 4, 2)" in made.manifest.provenance.steps


@pytest.mark.parametrize(
    "told", [{"channels": ("x", "x")}, {"channels": ("x", "")}, {"labels": ("a", "")}, {"labels": ("a", "a")}]
)
def test_names_that_repeat_or_are_empty_are_refused(tmp_path: Path, told: dict) -> None:
    with pytest.raises(ExportError, match=f"--{next(iter(told))} .*: a name is empty or repeats"):
        pack(classifier(tmp_path), **told)


def test_the_model_itself_and_the_samples_are_never_written_over(tmp_path: Path) -> None:
    model, samples = classifier(tmp_path), tmp_path / "windows.npy"
    np.save(samples, np.random.default_rng(0).random((20, 4, 2), dtype=np.float32))
    before = model.read_bytes(), samples.read_bytes()
    (tmp_path / "link").symlink_to(model)

    for target in (model, tmp_path / "link", samples):
        done = cli(model, "-o", target, "--layout", "NTC", "--samples", samples)
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        assert "is what the bundle is made of" in done.stderr

    assert (model.read_bytes(), samples.read_bytes()) == before


def test_a_folder_that_takes_no_file_is_one_line(tmp_path: Path) -> None:
    done = cli(classifier(tmp_path), "--layout", "NTC", "-o", "/proc/x.edge")

    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("edge-export: /proc/x.edge: cannot be written: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (("--seed", "-1"), "-1 is not in the range"),
        (("--layout", "TCN"), "'TCN' is not one of 'NTC'"),
        (("--output-kind", "logit"), "'logit' is not one of 'scores'"),
    ],
)
def test_a_word_that_is_not_allowed_is_wrong_usage(arguments: tuple[str, str], fact: str) -> None:
    done = cli(__file__, *arguments)

    assert done.exit_code == 2
    assert fact in done.stderr


def test_the_words_of_the_command_line_are_those_of_the_manifest() -> None:
    assert get_args(Layout) == LAYOUTS
    assert get_args(OutputKind) == OUTPUT_KINDS


@pytest.mark.parametrize(("flag", "value"), [("--tolerance", "inf"), ("--tolerance", "nan"), ("--threshold", "inf")])
def test_a_number_that_is_none_is_one_line(tmp_path: Path, flag: str, value: str) -> None:
    done = cli(classifier(tmp_path), flag, value)

    assert done.exit_code == 1
    assert f"at `{flag[2:]}`" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_scalar_that_its_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = streaming(tmp_path)
    proto = onnx.load(path)
    proto.graph.input[2].type.tensor_type.elem_type = TensorProto.INT32
    proto.graph.node.insert(0, helper.make_node("Cast", ["gain"], ["gain_float"], to=TensorProto.FLOAT))
    for node in proto.graph.node[1:]:
        node.input[:] = ["gain_float" if name == "gain" else name for name in node.input]
    path.write_bytes(proto.SerializeToString())
    told = {"state": {"state": "stateN"}, "output_kind": "logits"}

    assert pack(path, scalar={"gain": 3}, **told).manifest.scalars[0].dtype == "int32"
    with pytest.raises(ExportError, match="no int32"):
        pack(path, scalar={"gain": 3e9}, **told)


@pytest.mark.parametrize("shape", ["2,b,-1", "2,b,0"])
def test_a_state_of_no_size_is_refused_in_one_sentence(tmp_path: Path, shape: str) -> None:
    path = streaming(tmp_path)

    with pytest.raises(ExportError, match=rf"--state state=stateN:{shape}: wanted sizes of at least 1"):
        pack(path, state={"state": f"stateN:{shape}"}, scalar={"gain": 1.0}, output_kind="logits")


def test_a_long_reason_of_the_child_is_cut_at_a_word(tmp_path: Path) -> None:
    name = "word " * 60
    nodes, options = means(
        [helper.make_node("MatMul", ["m", "w"], ["y"], name=name)], constants={"w": np.ones((3, 2), np.float32)}
    )

    with pytest.raises(ExportError, match=r" word …$"):
        pack(graph(tmp_path, nodes, **options), output_kind="logits")


HALF = np.float16(0.5)
LOW_PRECISION = {
    "QLinearMatMul": ([helper.make_node("QLinearMatMul", list("abcdefgh"), ["y"])], {}, "int8"),
    "MatMulInteger": ([helper.make_node("MatMulInteger", ["a", "b"], ["y"])], {}, "int8"),
    "DynamicQuantizeLinear": ([helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "y"])], {}, "int8"),
    "ConvInteger": ([helper.make_node("ConvInteger", ["a", "b"], ["y"])], {}, "int8"),
    "float16 weight": ([helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)], {"h": HALF}, "float16"),
    "neither": ([helper.make_node("Identity", ["x"], ["y"])], {}, "float32"),
}


@pytest.mark.parametrize("case", LOW_PRECISION)
def test_the_precision_is_read_from_operators_and_weights(tmp_path: Path, case: str) -> None:
    nodes, constants, precision = LOW_PRECISION[case]

    assert signature.read(graph(tmp_path, nodes, constants=constants)).precision == precision


def test_float16_is_held_to_a_hundredth_of_its_largest_output(tmp_path: Path) -> None:
    nodes, options = means(
        [
            helper.make_node("Cast", ["m"], ["h"], to=TensorProto.FLOAT16),
            helper.make_node("Mul", ["h", "half"], ["p"]),
            helper.make_node("Cast", ["p"], ["y"], to=TensorProto.FLOAT),
        ],
        constants={"half": HALF},
    )

    made = pack(graph(tmp_path, nodes, **options), output_kind="logits")

    assert made.manifest.precision == "float16"
    largest = float(np.abs(made.golden.outputs).max())
    assert made.manifest.tolerances["default"].absolute == pytest.approx(0.01 * largest)


def test_an_error_below_zero_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0), helper.make_node("Neg", ["m"], ["n"])]
    last = helper.make_node("Unsqueeze", ["n", "last"], ["y"])
    constants = {"axes": np.array([1, 2], np.int64), "last": np.array([1], np.int64)}
    model = graph(tmp_path, [*nodes, last], y=["batch", 1], constants=constants)

    with pytest.raises(ExportError, match=r"goes down to -.*, an error is at least 0"):
        pack(model, output_kind="error", threshold=1.0)


def test_the_tolerance_of_an_int8_probability_is_two_steps_of_its_logit(tmp_path: Path) -> None:
    """One value x in steps of 0.02 through a sigmoid: the probability's logit is x, so is log p - log (1 - p)."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Unsqueeze", ["d", "last"], ["l"]),
        helper.make_node("Sigmoid", ["l"], ["y"]),
    ]
    constants = {"axes": np.array([1, 2], np.int64), "last": np.array([1], np.int64)}
    constants |= {"s": np.float32(0.02), "z": np.int8(0)}
    levels = np.linspace(-2, 2, 16, dtype=np.float32)
    windows = np.broadcast_to(levels[:, None, None], (16, 4, 2)).copy()
    model = graph(tmp_path, nodes, y=["batch", 1], constants=constants)

    made = pack(model, labels=("off", "on"), samples=windows)

    p = made.golden.outputs[:, 0].astype(np.float64)
    wanted = contents.int8_tolerance(*[np.log(np.column_stack([1 - p, p])).astype(np.float32)] * 2, is_logits=True)
    assert (made.manifest.precision, made.manifest.output.kind) == ("int8", "probability")
    assert made.manifest.tolerances["default"].absolute == pytest.approx(wanted, rel=1e-3)
    assert wanted == pytest.approx(0.5 * np.tanh(2 * np.log1p(np.exp(2)) / 255), rel=0.05)


def test_the_card_names_source_and_licence(tmp_path: Path) -> None:
    model = classifier(tmp_path)

    card = pack(model, source="https://example.org/stranger", licence="MIT License\n\nCopyright (c) Somebody\n").card

    assert "\n\nSource: https://example.org/stranger\n\n" in card
    assert "\n\n## Licence\n\nMIT License\n\nCopyright (c) Somebody\n\n" in card
    assert "## Licence" not in pack(model).card


def test_what_was_derived_is_said_as_json_too(tmp_path: Path) -> None:
    target = tmp_path / "out.edge"

    done = cli(classifier(tmp_path), "--layout", "NTC", "-o", target, "--json")

    told = json.loads(done.stdout)
    assert told["bundle"] == str(target)
    facts = {fact["key"]: (fact["value"], fact["origin"]) for fact in told["facts"]}
    assert facts["layout"] == ("NTC", "told")
    assert facts["output_kind"] == ("scores", "graph: Softmax gives it")
