"""Whether a processor gives what x86 gave when a bundle was packed, by the rule of benchmarks.arm64.arithmetic."""

from __future__ import annotations

import msgspec
import numpy as np

from benchmarks.arm64.arithmetic import arithmetic, output_step
from edge_runtime.model.bundle import Bundle
from edge_runtime.records import Floats

FLOAT32 = 1e-5
"""Of the largest output, how far float32 may be off."""
STEPS = 2
"""Of the output's quantization, how far int8 with float parts may be off."""


class Proof(msgspec.Struct, frozen=True):
    """exactness: "bits equal", "1.0 steps" of the last quantization, or "3e-07" of the largest output.

    refused: why that is not enough, or the bundle was refused; "" when all is well.
    """

    exactness: str = ""
    refused: str = ""


def proof(bundle: Bundle, found: Floats) -> Proof:
    """found: (n, ...), what the graph returns for the golden windows."""
    golden = bundle.golden.outputs
    if found.shape != golden.shape:
        return Proof(refused=f"outputs of shape {found.shape}, wanted {golden.shape}")
    if found.tobytes() == golden.tobytes():
        return Proof("bits equal")
    apart, kind = float(np.max(np.abs(found - golden))), arithmetic(bundle.model)
    step = output_step(bundle.model, bundle.manifest.output.name) if kind == "mixed" else None
    if kind == "float32":
        share = apart / float(np.max(np.abs(golden)))
        exactness, is_right = f"{share:.0e}", share <= FLOAT32
    elif step is not None:
        exactness, is_right = f"{apart / step:.1f} steps", apart <= STEPS * step
    else:
        exactness, is_right = f"{apart:.0e} absolute", False
    return Proof(exactness, "" if is_right else f"{kind}: {exactness} from the golden outputs of x86")
