"""What a model is made of: nodes, reasons, bytes and time, as facts, as text and as a page of HTML."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from bundles import slow_model, write_means_bundle, write_running_bundle
from export_nets import artifact_of, exported, recurrent, two_matrices, windows
from onnx import helper

from edge_runtime.errors import ExportError
from edge_runtime.model import bundle
from export import explain as explanations
from export import explain_html, quantize, space, weight_only
from export.artifact import Artifact
from export.candidate import Measured
from export.choose import Verdict
from export.evaluate import Drop, Evaluation
from export.explain import Explanation, Node, explain, explain_bundle, explain_file, explain_outcome, text
from export.node_times import overhead, profile
from export.reasons import KINDS
from export.recipe import Budget, Split
from export.search import Outcome
from export.sensitivity import Sensitivity, sensitivity
from export.sizes import sizes
from export.space import Move
from export.task import Task

pytestmark = pytest.mark.torch

VOID = {"meta", "br", "hr", "img", "link", "input"}


@cache
def int8(name: str, keep: tuple[str, ...] = ()) -> Artifact:
    return quantize.static_qdq(windows(name), keep=keep)(exported(name))


@cache
def explained() -> Explanation:
    sensitive = sensitivity(exported("convolutions"), windows("convolutions"))
    return explain(
        int8("convolutions"),
        windows=windows("convolutions"),
        original=exported("convolutions"),
        sensitivity=sensitive,
    )


def steps(count: int = 8) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 12, 6)).astype(np.float32)


def why(told: Explanation) -> dict[str, str]:
    """Reason of each node that is not int8, by the operator."""
    return {node.op: node.why for node in told.nodes if node.why}


def test_nodes_are_told_apart_by_what_they_compute_in() -> None:
    kinds = {node.op: node.kind for node in explained().nodes}

    assert kinds["QLinearConv"] == kinds["QGemm"] == "int8"
    assert kinds["QuantizeLinear"] == kinds["DequantizeLinear"] == "conversion"
    assert kinds["ReduceMean"] == "float32"


def test_every_node_that_runs_has_a_share_of_the_time_and_they_add_up() -> None:
    told = explained()

    assert sum(node.share for node in told.nodes) == pytest.approx(1)
    assert sum(told.share(kind) for kind in KINDS) == pytest.approx(1)
    assert told.run_us > 0
    assert told.overhead_us >= 0
    assert all(node.us >= 0 for node in told.nodes)


def test_an_operator_that_onnx_runtime_has_no_int8_of_is_named_as_the_reason() -> None:
    assert why(explained()) == {"ReduceMean": "ONNX Runtime has no int8 ReduceMean"}


def test_left_over_conversions_and_islands_are_warned_of_with_their_time() -> None:
    warnings = " · ".join(explained().warnings)

    assert re.search(
        r"left-over conversions cost time: 2 QuantizeLinear, 2 DequantizeLinear, [\d.]+ us, \d+%", warnings
    )
    assert "float islands, where values go from int8 to float and back: 1 ReduceMean" in warnings


def test_a_layer_that_a_move_kept_is_kept_on_purpose() -> None:
    chain = (Move("int8", {"scheme": "u8s8", "keep": ("node_linear",)}),)
    kept = int8("convolutions", ("node_linear",))
    nameless = msgspec.structs.replace(kept, steps=())

    from_chain = why(explain(nameless, windows=windows("convolutions"), chain=chain))
    from_steps = why(explain(kept, windows=windows("convolutions")))
    from_nothing = why(explain(nameless, windows=windows("convolutions")))

    assert from_chain["Gemm"] == from_steps["Gemm"] == "kept on purpose: int8 would cost too much accuracy"
    assert from_nothing["Gemm"] != from_chain["Gemm"]


def test_what_comes_before_the_boundary_is_the_front_end() -> None:
    artifact = quantize.static_qdq(np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32))(two_matrices())

    told = explain(artifact, windows=np.ones((1, 8), np.float32))

    front = {node.name: node.why for node in told.of_kind("front-end")}
    assert front == {"front": "belongs to the front-end"}
    assert told.size.parts["front-end constants"] > 8 * 32 * 4


def test_weights_that_are_int8_only_in_the_file_are_said_to_be_float32_again() -> None:
    told = explain(weight_only.int8()(recurrent("GRU")), windows=steps())

    assert why(told)["GRU"] == "int8 only in the file: the weights are float32 again once it is loaded"
    assert any("saves storage, not time or memory" in warning for warning in told.warnings)
    assert "nothing is computed in int8" in told.warnings
    assert told.size.parts["int8 weights"] > 3 * 32 * 32 > told.size.parts["float32 weights"]


def test_a_dynamic_lstm_is_int8_and_what_stands_around_it_says_why_it_is_not() -> None:
    told = explain(quantize.dynamic()(recurrent("LSTM")), windows=steps())

    assert {node.op for node in told.of_kind("int8")} == {"DynamicQuantizeLSTM", "DynamicQuantizeMatMul"}
    assert set(why(told).values()) == {"dynamic int8 computes products with a weight and LSTM only"}


def test_a_float32_model_owes_no_reasons_and_no_conversions() -> None:
    told = explain(recurrent("GRU"), windows=steps())

    assert why(told) == {}
    assert told.of_kind("conversion") == ()


def test_nodes_that_compute_sizes_are_told_apart() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="sizes"),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"], name="zeros"),
        helper.make_node("Add", ["x", "zeros"], ["y"], name="sum"),
    ]

    told = explain(artifact_of(nodes, {}, shape=[4], width=4), windows=np.ones((1, 4), np.float32))

    assert {node.name: node.kind for node in told.nodes} == {"sizes": "shape", "zeros": "float32", "sum": "float32"}


def test_the_bytes_of_the_parts_are_the_bytes_of_the_file() -> None:
    for artifact in (exported("convolutions"), int8("convolutions"), weight_only.int8()(recurrent("GRU"))):
        found = sizes(artifact)

        assert sum(found.parts.values()) == found.total == len(artifact.model)
        assert all(count >= 0 for count in found.parts.values())


def test_bytes_are_told_by_what_they_are() -> None:
    before, after = sizes(exported("convolutions")), sizes(int8("convolutions"))

    assert before.parts["int8 weights"] == 0 == after.parts["float32 weights"]
    assert before.parts["float32 weights"] > 3 * after.parts["int8 weights"] > 0
    assert after.parts["scales and zero points"] > 0
    assert after.parts["int32 biases"] > 0
    assert (after.tensors[0].dtype, after.tensors[0].shape, after.tensors[0].reader) == ("int8", (32, 16, 5), "Conv")


def test_what_the_profile_costs_is_taken_off_but_never_more_than_the_quickest_node() -> None:
    assert overhead([5.0, 3.0, 4.0], 6.0) == 2.0
    assert overhead([9.0, 1.0], 2.0) == 1.0
    assert overhead([2.0, 2.0], 10.0) == 0.0


def test_nodes_inside_a_loop_are_the_time_of_the_loop() -> None:
    artifact = Artifact("loop", "float32", slow_model(length=4, channels=2), "x", "y", ())

    told = profile(artifact, {"x": np.full((1, 4, 2), 3.0, np.float32)})

    assert "Loop" in {node.op for node in told.nodes}
    assert "Neg" not in {node.op for node in told.nodes}


def test_a_model_that_does_not_load_is_an_error_with_its_reason() -> None:
    nodes = [helper.make_node("NoSuchOperator", ["x"], ["y"], name="odd")]

    with pytest.raises(ExportError, match="float32: the profile of the model failed: .*NoSuchOperator"):
        explain(artifact_of(nodes, {}, shape=[4], width=4), windows=np.zeros((1, 4), np.float32))


def test_a_bundle_is_explained_on_its_golden_window_and_with_its_state(tmp_path: Path) -> None:
    means = explain_bundle(bundle.read(write_means_bundle(tmp_path / "means.edge")))
    running = explain_bundle(bundle.read(write_running_bundle(tmp_path / "running.edge")))

    assert (means.name, [node.op for node in means.nodes]) == ("means@1.0.0", ["ReduceMean"])
    assert "Gather" in {node.op for node in running.nodes}


def test_a_file_is_explained_as_what_it_is_a_bundle_or_an_onnx_graph(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(int8("convolutions").model)

    told = explain_file(path)

    assert (told.name, told.precision) == ("net.onnx", "int8")
    assert {node.op for node in told.of_kind("int8")} >= {"QLinearConv", "QGemm"}
    assert explain_file(write_means_bundle(tmp_path / "means.edge")).name == "means@1.0.0"


def test_a_graph_whose_windows_nobody_can_make_up_is_refused_with_its_input(tmp_path: Path) -> None:
    proto = onnx.load_from_string(recurrent("GRU").model)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "time"
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())

    with pytest.raises(ExportError, match=r"net.onnx: x float32 \(\?, \?, 6\) cannot be made up"):
        explain_file(tmp_path / "net.onnx")


def found(*, chosen: bool) -> Outcome:
    """A search over float32 and int8, as far as an explanation reads it."""
    split = Split(windows("convolutions"), np.zeros(32, np.int64))
    float32 = exported("convolutions")
    task = Task(
        "noise", "1.0.0", "r", 0, None, (), "logits", None, None, Budget(),
        None, split.inputs, split, None, float32, {},
    )  # fmt: skip
    measured = (Measured((), float32), Measured((space.int8("u8s8"),), int8("convolutions")))
    return Outcome(task, "local", "quick", measured, (), measured[1] if chosen else None, 1.0)


def test_what_a_search_chose_is_explained_beside_the_original_with_its_layers() -> None:
    told = explain_outcome(found(chosen=True))

    assert told.name == "noise: int8 u8s8 minmax"
    assert told.original is not None
    assert {layer.op for layer in told.sensitivity} == {"Conv", "Gemm"}
    assert str(told).startswith("noise: int8 u8s8 minmax, int8: ")


def test_where_int8_was_tried_and_not_chosen_its_layers_and_the_reason_are_shown() -> None:
    searched = found(chosen=True)
    float32, tried = searched.measured
    drop = Drop(0.3, 0.01, 0.25, 0.35, 0.0)
    judged = Evaluation(n=32, metric=0.6, low=0.4, high=0.8, agreement=0.7, snr_db=9.0, drop=drop)
    worse = Measured(
        (space.int8("s8s8"),), tried.artifact, validation=msgspec.structs.replace(judged, drop=drop._replace(value=0.4))
    )
    measured = (float32, worse, msgspec.structs.replace(tried, validation=judged))
    verdicts = (
        Verdict("float32", "chosen"),
        Verdict(worse.name, "rejected"),
        Verdict(tried.name, "rejected", ("too bad",)),
    )
    outcome = msgspec.structs.replace(searched, measured=measured, verdicts=verdicts, chosen=float32)

    told = explain_outcome(outcome)

    assert told.name == "noise: float32"
    assert {layer.op for layer in told.sensitivity} == {"Conv", "Gemm"}
    assert "Sensitivity of int8 u8s8 minmax, which was not chosen: too bad" in str(told)
    assert "Of int8 u8s8 minmax, which was not chosen: too bad" in explain_html.page(told)


def test_where_no_static_int8_was_tried_no_sensitivity_is_shown() -> None:
    searched = found(chosen=True)
    float32 = searched.measured[0]

    told = explain_outcome(msgspec.structs.replace(searched, measured=(float32,), chosen=float32))

    assert (told.sensitivity, told.untaken) == ((), "")
    assert "Sensitivity" not in str(told) + explain_html.page(told)


def test_a_search_that_chose_nothing_has_nothing_to_explain() -> None:
    with pytest.raises(ExportError, match="noise: nothing was chosen"):
        explain_outcome(found(chosen=False))


def test_the_text_is_one_page_with_every_part() -> None:
    page = text(explained())

    assert page == str(explained())
    parts = ("Time by node", "Not computed in int8", "Size", "Sensitivity", "What was done", "Worth knowing")
    assert [part for part in parts if part not in page] == []
    assert "ONNX Runtime has no int8 ReduceMean: 1 ReduceMean" in page
    assert "static QDQ int8 u8s8" in page
    assert len(page.splitlines()) < 80


class Checker(HTMLParser):
    """Whether every element is closed in order, and what would reach for the network."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.reaching: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.reaching += [f"{tag} {name}" for name, _ in attrs if name in {"src", "href", "srcset", "action"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_is_sound_html_that_reaches_for_nothing() -> None:
    page = explain_html.page(explained())

    found = checked(page)

    assert found.reaching == []
    assert "script" not in found.tags
    assert "://" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    assert found.tags.count("svg") == 4
    assert found.tags.count("table") == 3


def test_names_from_the_graph_are_escaped_in_the_page() -> None:
    proto = onnx.load_from_string(int8("convolutions").model)
    evil = "<script>alert(1)</script>\"'&"
    proto.graph.node[-1].name = evil
    told = explain(
        msgspec.structs.replace(int8("convolutions"), name=evil, model=proto.SerializeToString(), steps=(evil,)),
        windows=windows("convolutions"),
        sensitivity=(Sensitivity(evil, "Conv", 1, 3.0, 1.0),),
    )

    page = explain_html.page(told)

    assert evil not in page
    found = checked(page)
    assert "script" not in found.tags
    assert sum(evil in part for part in found.texts) >= 4


def test_noise_of_20_db_is_a_tenth_of_the_signal() -> None:
    told = msgspec.structs.replace(explained(), sensitivity=(Sensitivity("bad", "Conv", 9, 20.0, 6.5),))

    page = explain_html.page(told)

    assert explain_html.noise(20.0) == pytest.approx(0.1)
    assert "20.0 dB, 10.00%; alone in float32 +6.5 dB" in page
    assert "20.0 dB   +6.5 dB  Conv bad" in text(told)


def test_a_front_end_or_shapes_that_take_most_of_the_time_are_warned_of_with_the_bound() -> None:
    nodes = (Node("mel", "Conv", "front-end", 80.0, 0.8, ""), Node("sizes", "Shape", "shape", 25.0, 0.25, ""))
    graph = onnx.load_from_string(exported("convolutions").model)

    warnings = explanations._warnings(
        msgspec.structs.replace(explained(), nodes=nodes), exported("convolutions"), graph
    )

    assert any("front-end takes 80% of the time" in line and "1.2x as fast" in line for line in warnings)
    assert any(line.startswith("1 nodes compute shapes, 25.0 us, 25%") for line in warnings)


def test_beside_the_original_its_speed_is_measured_in_turn() -> None:
    original = explained().original

    assert original is not None
    assert original.size == len(exported("convolutions").model)
    assert original.latency.speedup_q1 <= original.latency.speedup <= original.latency.speedup_q3
    assert "x as fast" in text(explained())
