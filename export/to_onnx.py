"""torch to ONNX with a dynamic batch axis, proven equal at several batch sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec
import onnx
import torch
from onnxscript import ir, optimizer
from torch import nn

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export import parity
from export.artifact import Artifact, batch_of, changed, name_nodes, outputs_of, parse
from export.quiet import silenced
from export.train import torch_outputs

BIAS = 2  # the input of a Conv
MAX_COMPUTED = 256  # elements: larger tensors that can be computed from smaller ones are not stored in the file
EXAMPLE_BATCH = 2  # an example of one window makes the exporter fix the batch axis to 1 (pytorch#157621)
FRONT_END = "front_end"
SCORES = "scores"


class _WithBoundary(nn.Module):
    """The model, returning beside its output that of its front-end, so that the boundary has a name in the graph."""

    def __init__(self, model: nn.Module, front_end: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.boundary: list[torch.Tensor] = []
        self.hook = front_end.register_forward_hook(lambda _module, _inputs, output: self.boundary.append(output))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.boundary.clear()
        output = self.model(x)
        if len(self.boundary) != 1 or not isinstance(self.boundary[0], torch.Tensor):
            raise ExportError(f"front_end must be called once and return one tensor, got {len(self.boundary)} calls")
        return output, self.boundary[0]


class Form(msgspec.Struct, frozen=True):
    """Another way to write a network down, whose outputs must equal the network's all the same.

    mode: what the exporter runs in. finish: changes the graph that it made.
    """

    mode: Callable[[], AbstractContextManager[object]]
    finish: Callable[[onnx.ModelProto], None]


def export(
    model: nn.Module, windows: Floats, *, input_name: str, output_name: str, form: Form | None = None
) -> Artifact:
    """The model as a float32 artifact whose outputs equal torch's.

    windows: (n, ...) float32 in the model's layout, n >= 7, real ones: they are the example and the proof.
    Raises ExportError naming the operator that cannot be exported, or the figure when the outputs differ.
    """
    if len(windows) < max(parity.BATCHES):
        raise ExportError(f"parity needs {max(parity.BATCHES)} windows, found {len(windows)} to calibrate with")
    front_end = getattr(model, FRONT_END, None)
    has_front_end = isinstance(front_end, nn.Module)
    _check_forward(model.eval(), windows[:EXAMPLE_BATCH])
    module = _WithBoundary(model, front_end).eval() if has_front_end else model  # type: ignore[arg-type]
    names = [output_name, FRONT_END] if has_front_end else [output_name]
    try:
        example = torch.from_numpy(windows[:EXAMPLE_BATCH].copy())
        with form.mode() if form else nullcontext():
            proto = _dynamo(module, example, input_name, names)
    finally:
        if isinstance(module, _WithBoundary):
            module.hook.remove()
    _check_batch(proto)
    boundary = _drop_boundary(proto) if has_front_end else ""
    _strip(proto)
    if form:
        form.finish(proto)
    artifact = Artifact(
        name="float32",
        precision="float32",
        model=proto.SerializeToString(deterministic=True),
        input=input_name,
        output=output_name,
        steps=(f"torch.onnx dynamo export, opset {_opset(proto)}, dynamic batch axis",),
        front_end=boundary,
        module=model,
    )
    error = check_parity(artifact, model, windows)
    sizes = ", ".join(map(str, parity.BATCHES))
    return msgspec.structs.replace(
        artifact, steps=(*artifact.steps, f"parity with torch at batch {sizes}: largest difference {error:.1e}")
    )


def _check_batch(proto: onnx.ModelProto) -> None:
    fixed = batch_of(proto)
    if isinstance(fixed, int):
        raise ExportError(
            f"the exporter fixed the batch axis to {fixed}: forward() must work for any batch and not turn x.shape[0] "
            "into a Python number or branch on it"
        )


def with_scores(artifact: Artifact) -> Artifact:
    """A step: append the softmax, so that the graph gives scores in [0, 1] where it gave logits.

    Raises ExportError when the output is that of a softmax already: twice it flattens the scores.
    """
    proto = parse(artifact.model)
    graph = proto.graph
    if any(artifact.output in node.output and node.op_type == "Softmax" for node in graph.node):
        raise ExportError(f"{artifact.name}: {artifact.output!r} is the output of a Softmax already, wanted logits")
    taken = {name for node in graph.node for name in node.output}
    scores = SCORES
    while scores in taken:
        scores += "_"
    output = graph.output[0]
    graph.node.append(onnx.helper.make_node("Softmax", [output.name], [scores], name=f"{scores}_softmax", axis=-1))
    output.name = scores
    return msgspec.structs.replace(changed(artifact, proto, "softmax appended: logits to scores"), output=scores)


def check_parity(artifact: Artifact, model: nn.Module, windows: Floats) -> float:
    """The largest absolute difference between torch and the graph, at each of the parity batch sizes.

    Raises ExportError beyond what `parity` allows.
    """
    return parity.largest_difference(
        "the graph",
        lambda inputs: outputs_of(artifact, inputs),
        "torch",
        lambda inputs: torch_outputs(model, inputs),
        windows,
    )


def _check_forward(model: nn.Module, windows: Floats) -> None:
    try:
        torch_outputs(model, windows)
    except Exception as error:
        raise ExportError(explain(error)) from error


def _dynamo(module: nn.Module, example: torch.Tensor, input_name: str, output_names: list[str]) -> onnx.ModelProto:
    try:
        with silenced():
            program = torch.onnx.export(
                module,
                (example,),
                None,
                dynamo=True,
                external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[input_name],
                output_names=output_names,
                verbose=False,
                optimize=False,
            )
            if program is None:
                raise ExportError("the torch exporter returned no program")
            optimizer.optimize_ir(program.model, should_fold=_is_stored)
    except Exception as error:
        raise ExportError(explain(error)) from error
    return parse(program.model_proto.SerializeToString())


def _is_stored(node: ir.Node) -> bool | None:
    """False for a large tensor that small constants give: ONNX Runtime computes it while loading, the file stays small.

    The exporter's own folding, which None leaves the decision to, makes 120 KB of the cosines of a Fourier transform.
    Biases are stored: one that is computed keeps a normalization from being folded into its convolution.
    """
    if any(use.node.op_type == "Conv" and use.idx == BIAS for value in node.outputs for use in value.uses()):
        return None
    given = [value.const_value for value in node.inputs if value is not None]
    if any(tensor is None or tensor.size > MAX_COMPUTED for tensor in given):
        return None
    large = [value for value in node.outputs if value.shape is not None and _elements(value.shape) > MAX_COMPUTED]
    return False if large else None


def _elements(shape: ir.Shape) -> int:
    """0 where the batch axis, or any other, is free."""
    return math.prod(size if isinstance(size, int) else 0 for size in shape)


def explain(error: BaseException) -> str:
    """One line on why the exporter failed: the operator, or the line of the model, and the reason."""
    chain = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        if isinstance(link, ExportError):
            return str(link)
    texts = [str(link) for link in chain]
    for text in texts:
        if found := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)', overload='([^']+)'\)>", text):
            return (
                f"operator {found[1]} ({found[2]}) cannot be exported: torch {torch.__version__} has no ONNX form of it"
            )
    reason = _first_line(texts[-1]) or type(chain[-1]).__name__
    for text in texts:
        if found := re.search(r'raised this error:\s+File "([^"]+)", line (\d+), in (\w+)\s+(.+)', text):
            place = f"{Path(found[1]).name}, line {found[2]}, in {found[3]}"
            return f"cannot be exported: {found[4].strip()!r} ({place}): {reason}"
    for text in texts:
        if found := re.search(r"target=(?:torch\.ops\.)?([\w.]+)\]", text):
            return f"operator {found[1]} cannot be exported: {reason}"
    return f"cannot be exported: {type(chain[-1]).__name__}: {reason}"


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:300]


def _drop_boundary(proto: onnx.ModelProto) -> str:
    """Take the front-end's output off the graph's outputs; its tensor's name, "" when it is the input itself."""
    graph = proto.graph
    extra = next(value for value in graph.output if value.name == FRONT_END)
    graph.value_info.append(extra)
    graph.output.remove(extra)
    makers = {output for node in graph.node for output in node.output}
    return FRONT_END if FRONT_END in makers else ""


def _strip(proto: onnx.ModelProto) -> None:
    """Name every node and remove the exporter's notes, which hold stack traces with this machine's paths."""
    proto.ClearField("metadata_props")
    proto.doc_string = ""
    graph = proto.graph
    graph.name, graph.doc_string = "model", ""
    graph.ClearField("metadata_props")
    name_nodes(proto)
    for value in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        value.ClearField("metadata_props")
        value.doc_string = ""


def _opset(proto: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in proto.opset_import if entry.domain == ""))
