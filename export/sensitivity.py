"""What int8 costs layer by layer, measured on the outputs: which layers to leave in float32."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.model.session import SessionSettings, create
from edge_runtime.records import Floats
from export.artifact import Artifact, ran
from export.calibrate import Range, ranges
from export.evaluate import snr_db
from export.front_end import Feed
from export.prepare import MIN_OPSET, prepared
from export.quantize import Scheme, check_scheme, qdq, staying_float, weighted

if TYPE_CHECKING:
    import onnx

ACTIVATIONS = ("Relu", "Clip")  # the range of what they read is that of what they make


class Sensitivity(msgspec.Struct, frozen=True):
    """One layer of the prepared graph, under the name that `static_qdq(keep=...)` takes.

    weights: their number. snr_db: of the outputs when this layer alone is int8, infinite where nothing changes.
    gain_db: what the SNR gains when this layer alone stays float32 in an int8 graph.
    """

    name: str
    op: str
    weights: int
    snr_db: float
    gain_db: float


def sensitivity(
    artifact: Artifact, windows: Floats, *, scheme: str = "u8s8", method: str = "minmax"
) -> tuple[Sensitivity, ...]:
    """Every layer with weights that can become int8, the most harmful first: by what float32 there gains.

    windows: (n, ...) float32 in the model's layout, for the ranges and the outputs. Calibration is done once.
    Raises ExportError as `static_qdq` does when the graph cannot be quantized, ModelError when ONNX Runtime fails.
    """
    check_scheme(scheme)
    ready = prepared(artifact, "sensitivity", min_opset=MIN_OPSET)
    feeds = ready.parts.feeds(windows)
    found = ranges(ready.body, feeds, method=method, session=artifact.session)
    study = _Study(ready.body, feeds, found, Scheme(scheme, method), staying_float(artifact.session))
    layers = weighted(ready.body)
    if not layers:
        return ()
    all_int8 = study.snr_db()
    kinds = {node.name: node.op_type for node in ready.body.graph.node}
    measured = [
        Sensitivity(
            name,
            kinds[name],
            _weights(ready.body, name),
            study.snr_db(only=(name, *_activation_of(ready.body, name))),
            _difference(study.snr_db(keep=(name,)), all_int8),
        )
        for name in layers
    ]
    return tuple(sorted(measured, key=lambda layer: (-layer.gain_db, layer.snr_db)))


class _Study:
    """The float32 outputs, and those of variants of the same ranges."""

    def __init__(
        self, body: onnx.ModelProto, feeds: list[Feed], found: dict[str, Range], scheme: Scheme, session: dict[str, str]
    ) -> None:
        self._body, self._feeds, self._found, self._scheme, self._session = body, feeds, found, scheme, session
        self._wanted = self._outputs(body)

    def snr_db(self, *, only: tuple[str, ...] = (), keep: tuple[str, ...] = ()) -> float:
        """Of the outputs when some nodes alone, or all but some, are int8."""
        scheme = msgspec.structs.replace(self._scheme, keep=keep)
        return snr_db(self._wanted, self._outputs(qdq(self._body, self._found, scheme, only=only)))

    def _outputs(self, body: onnx.ModelProto) -> Floats:
        session = create(body.SerializeToString(), settings=SessionSettings(), entries=self._session)
        output = session.get_outputs()[0].name
        joined: Floats = np.concatenate([ran(session, output, feed) for feed in self._feeds])
        return joined


def _difference(one: float, other: float) -> float:
    return 0.0 if math.isinf(one) and math.isinf(other) else one - other


def _weights(body: onnx.ModelProto, name: str) -> int:
    node = next(node for node in body.graph.node if node.name == name)
    return sum(math.prod(tensor.dims) for tensor in body.graph.initializer if tensor.name == node.input[1])


def _activation_of(body: onnx.ModelProto, name: str) -> list[str]:
    """The activation that becomes one with a layer in int8."""
    made = next(node for node in body.graph.node if node.name == name).output[0]
    readers = [node for node in body.graph.node if made in node.input]
    return [node.name for node in readers if node.op_type in ACTIVATIONS and len(readers) == 1]
