"""Somebody else's quantizer at its defaults, or a run of what it made, in a process of its own: it may crash.

`python -m benchmarks.compression.child WHAT FOLDER [ENTRIES INPUT OUTPUT]`: the folder holds the model and windows.
"""
# ruff: noqa: PLC0415  ONNX Runtime is imported by load_onnxruntime first, and NNCF is not in everybody's environment

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from edge_runtime.model.session import SessionSettings, create, load_onnxruntime
from edge_runtime.records import Floats
from export.artifact import parse

MODEL, PREPARED, QUANTIZED = "model.onnx", "prepared.onnx", "quantized.onnx"
WINDOWS, OUTPUTS, FRONT_END = "windows.npy", "outputs.npy", "front_end.json"
RUN = "run"


class Windows:
    """Calibration windows, one at a time, as ONNX Runtime's calibrator asks for them."""

    def __init__(self, folder: Path) -> None:
        self._left = feeds(folder)

    def get_next(self) -> dict[str, Floats] | None:
        return next(self._left, None)


def feeds(folder: Path) -> Iterator[dict[str, Floats]]:
    name = parse((folder / MODEL).read_bytes()).graph.input[0].name
    return ({name: window[np.newaxis]} for window in np.load(folder / WINDOWS))


def front_end(folder: Path) -> list[str]:
    """Names of the nodes that a peer is told to leave in float32."""
    return msgspec.json.decode((folder / FRONT_END).read_bytes(), type=list[str])


def dynamic(folder: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(folder / MODEL, folder / QUANTIZED)


def static(folder: Path) -> None:
    from onnxruntime.quantization import quantize_static

    quantize_static(folder / MODEL, folder / QUANTIZED, Windows(folder))


def static_told(folder: Path) -> None:
    from onnxruntime.quantization import quantize_static

    quantize_static(folder / MODEL, folder / QUANTIZED, Windows(folder), nodes_to_exclude=front_end(folder))


def prepared(quantize: Callable[[Path], None]) -> Callable[[Path], None]:
    """The pre-processing that ONNX Runtime's documentation recommends before it, at its defaults; where its symbolic
    shape inference fails, without that.
    """

    def after(folder: Path) -> None:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        try:
            quant_pre_process(folder / MODEL, folder / PREPARED)
        except Exception:  # noqa: BLE001  its failures have no class of their own
            quant_pre_process(folder / MODEL, folder / PREPARED, skip_symbolic_shape=True)
        (folder / PREPARED).replace(folder / MODEL)
        quantize(folder)

    return after


def nncf(folder: Path) -> None:
    import nncf
    import onnx

    quantized = nncf.quantize(onnx.load(folder / MODEL), nncf.Dataset(list(feeds(folder))))
    onnx.save(quantized, folder / QUANTIZED)


def nncf_told(folder: Path) -> None:
    import nncf
    import onnx

    ignored = nncf.IgnoredScope(names=front_end(folder))
    quantized = nncf.quantize(onnx.load(folder / MODEL), nncf.Dataset(list(feeds(folder))), ignored_scope=ignored)
    onnx.save(quantized, folder / QUANTIZED)


QUANTIZERS: dict[str, Callable[[Path], None]] = {
    "dynamic": dynamic,
    "dynamic-prepared": prepared(dynamic),
    "static": static,
    "static-prepared": prepared(static),
    "static-told": static_told,
    "nncf": nncf,
    "nncf-told": nncf_told,
}
"""Told: which nodes are the front-end, and that they stay float32."""


def run(folder: Path, entries: str, input_name: str, output_name: str) -> None:
    """What the model returns for every window alone, as a device gives them: some quantizers scale over the batch."""
    session = create(
        (folder / MODEL).read_bytes(),
        settings=SessionSettings(),
        entries=msgspec.json.decode(entries, type=dict[str, str]),
    )
    windows = np.load(folder / WINDOWS)
    np.save(folder / OUTPUTS, np.concatenate([session.run([output_name], {input_name: x[None]})[0] for x in windows]))


def main(arguments: list[str]) -> None:
    what, folder, *rest = arguments
    load_onnxruntime()  # before a quantizer imports it with its telemetry on
    if what == RUN:
        run(Path(folder), *rest)
    else:
        QUANTIZERS[what](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
