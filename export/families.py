"""The parity certificate: what the golden windows give on every numeric family that can be measured on this machine.

A family that cannot be measured here is left out: nothing is claimed for it, and its devices are held to the default.
"""

from __future__ import annotations

import platform
import shutil
import sys
from typing import NamedTuple

import msgspec
import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.model.bundle import Golden
from edge_runtime.model.family import FAMILIES, numeric_family
from edge_runtime.model.manifest import DEFAULT, Parity, Tolerance
from edge_runtime.model.session import EXACT_INT8
from edge_runtime.records import Floats
from export import trial
from export.arm64 import counter
from export.arm64.cores import core
from export.arm64.userland import SUITE, place_of
from export.probe import Failure

HERE = "measured here"
FLOAT32_SHARE = 0.1
"""Of the default tolerance, for float32 outputs that were measured: 1e-5 of the largest output instead of 1e-4."""
TIMES_MEASURED = 10
"""A family's CPUs differ among themselves, too: allowed is so much more than what was measured between two families."""


class Emulator(msgspec.Struct, frozen=True):
    """A program that runs our Python as on a CPU of another family.

    programs: its names, the first one on PATH is taken. arguments: before Python. machine: whose Python it runs.
    """

    programs: tuple[str, ...]
    arguments: tuple[str, ...]
    machine: str
    how: str

    @property
    def name(self) -> str:
        return self.programs[0]

    def python(self) -> tuple[str, ...]:
        """The command that is Python under it. Raises ExportError when it is not here."""
        if platform.machine() != self.machine:
            raise ExportError(f"{self.programs[0]} wants a {self.machine} machine, this is {platform.machine()}")
        found = next(filter(None, map(shutil.which, self.programs)), None)
        if found is None:
            raise ExportError(f"{self.programs[0]} is not on PATH")
        return (found, *self.arguments, sys.executable)


class Board(msgspec.Struct, frozen=True):
    """An emulated board, which runs a Python of its own in a userland that `make arm64` has built."""

    core: str

    @property
    def name(self) -> str:
        return f"emulated {self.core}"

    @property
    def how(self) -> str:
        return f"measured under emulation (qemu {core(self.core).name})"

    def python(self) -> tuple[str, ...]:
        """As Emulator's."""
        where = place_of(SUITE)
        if not where.is_built:
            raise ExportError("no arm64 userland: make arm64 builds it")
        return counter.python(where, self.core)


EMULATORS: dict[str, Emulator | Board] = {
    "avx2": Emulator(
        ("qemu-x86_64-static", "qemu-x86_64"), ("-cpu", "Haswell"), "x86_64", "measured under emulation (qemu Haswell)"
    ),
    "neon": Board("a72"),
}


class Expected(NamedTuple):
    """What a family returns for the golden windows, (n, ...), and how that is known."""

    outputs: Floats
    how: str


class Certificate(NamedTuple):
    """golden: with the outputs of the families that differ in any bit. tolerances, parity: as the manifest has them.

    gaps: family to why nothing is claimed for it.
    """

    golden: Golden
    tolerances: dict[str, Tolerance]
    parity: dict[str, Parity]
    gaps: dict[str, str]


def expected(model: bytes, golden: Golden, request: trial.Request) -> tuple[dict[str, Expected], dict[str, str]]:
    """What each family returns that can be measured here, and why the others cannot.

    golden: its outputs are this machine's, one window at a time.
    """
    found: dict[str, Expected] = {}
    gaps: dict[str, str] = {}
    for family in FAMILIES:
        if family == numeric_family():
            found[family] = Expected(golden.outputs, HERE)
        elif isinstance(emulated := _emulated(family, model, golden, request), Failure):
            gaps[family] = emulated.reason
        else:
            found[family] = emulated
    return found, gaps


def _emulated(family: str, model: bytes, golden: Golden, request: trial.Request) -> Expected | Failure:
    emulator = EMULATORS.get(family)
    if emulator is None:
        return Failure("nothing here emulates it")
    # /proc/cpuinfo still describes this machine: what sessions do on the other one has to be said
    asked = msgspec.structs.replace(request, golden=(), session={**request.session, **EXACT_INT8})
    try:
        ran = trial.run(model, golden.inputs, asked, name=emulator.name, python=emulator.python())
    except ExportError as error:
        return Failure(str(error))
    return Expected(ran.outputs, emulator.how)


def certify(
    model: bytes,
    golden: Golden,
    allowed: float,
    request: trial.Request,
    *,
    computes_float32: bool = False,
    float32: Floats | None = None,
) -> Certificate:
    """The certificate of a model whose default outputs are golden's, and may differ by allowed.

    computes_float32: no step of a quantization lies between the last bits of a number and the output. float32: what
    the float32 model gives for the golden windows, where there is one. A family that differs by more than allowed
    is a gap.
    """
    found, gaps = expected(model, golden, request)
    tolerances, parity, own = {DEFAULT: Tolerance(allowed)}, {}, {}
    for family, (outputs, how) in found.items():
        from_default = _largest(outputs, golden.outputs)
        if not from_default <= allowed:
            gaps[family] = f"differs from this machine by {from_default:.3g}, allowed {allowed:.3g} ({how})"
            continue
        least = max(FLOAT32_SHARE * allowed, TIMES_MEASURED * from_default) if computes_float32 else allowed
        tolerances[family] = Tolerance(min(allowed, least))
        parity[family] = Parity(how, from_default, None if float32 is None else _largest(outputs, float32))
        if from_default > 0:
            own[family] = outputs
    return Certificate(msgspec.structs.replace(golden, family_outputs=own), tolerances, parity, gaps)


def _largest(one: Floats, other: Floats) -> float:
    return float(np.abs(one.astype(np.float64) - other).max())
