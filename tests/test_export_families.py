"""The parity certificate: what is measured for which numeric family, what is not, and what it allows."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest
import saturating
from bundles import means_model, running, running_model
from strangers import classifier, cli, pack

from edge_runtime.errors import ExportError
from edge_runtime.model import bundle
from edge_runtime.model.bundle import Golden
from edge_runtime.model.family import FAMILIES, numeric_family
from edge_runtime.model.gate import gate
from edge_runtime.model.manifest import ScalarInput, StateSpec, Tolerance
from export import families
from export.families import HERE, Certificate, Emulator, certify
from export.trial import Request

pytestmark = pytest.mark.usefixtures("emulators")

MEANS = means_model(length=4, channels=2)
WINDOWS = np.random.default_rng(0).random((5, 4, 2), dtype=np.float32)
GOLDEN = Golden(WINDOWS, WINDOWS.mean(axis=1))
HERE_IS = numeric_family()
OTHER = next(family for family in FAMILIES if family != HERE_IS)


def emulate(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    """Stand in for another family with a program that is given the command of the run."""
    emulator = Emulator(command[:1], command[1:], platform.machine(), "measured in a play")
    monkeypatch.setattr(families, "EMULATORS", {OTHER: emulator})


def times(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Another family, whose outputs are so many times ours."""
    change = f"import numpy as np; np.save('outputs.npy', np.load('outputs.npy') * np.float32({factor}))"
    emulate(monkeypatch, "sh", "-c", f'"$@" && "$1" -c "{change}"', "sh")


def certified(*, allowed: float = 1e-4, computes_float32: bool = True, golden: Golden = GOLDEN) -> Certificate:
    return certify(MEANS, golden, allowed, Request("x", "y"), computes_float32=computes_float32, float32=golden.outputs)


def test_this_machine_and_what_it_can_emulate_are_measured_and_nothing_is_claimed_of_the_rest(monkeypatch) -> None:
    emulate(monkeypatch, "env")
    made = certified()

    measured = {family: claim.how for family, claim in made.parity.items()}
    assert measured == {OTHER: "measured in a play"} | ({HERE_IS: HERE} if HERE_IS else {})
    assert set(made.tolerances) == {"default", *measured}
    assert set(made.gaps) == set(FAMILIES) - set(measured)
    assert set(made.gaps.values()) == {"nothing here emulates it"}


def test_a_family_with_the_same_bits_carries_no_outputs_of_its_own(monkeypatch) -> None:
    emulate(monkeypatch, "env")
    outputs, _ = families.expected(MEANS, GOLDEN, Request("x", "y"))
    made = certified(golden=Golden(WINDOWS, outputs[OTHER].outputs))

    assert made.golden.family_outputs == {}
    assert (made.parity[OTHER].from_default, made.parity[OTHER].from_float32) == (0.0, 0.0)


def test_a_family_whose_bits_differ_carries_its_own_outputs_and_ten_times_the_difference(monkeypatch) -> None:
    times(monkeypatch, 1 + 4e-6)
    made = certified()

    claim, own = made.parity[OTHER], made.golden.family_outputs[OTHER]
    assert set(made.golden.family_outputs) == {OTHER}
    np.testing.assert_allclose(own, GOLDEN.outputs * (1 + 4e-6), rtol=3e-7)
    assert claim.from_default == pytest.approx(4e-6 * GOLDEN.outputs.max(), rel=0.1)
    assert made.tolerances[OTHER].absolute == pytest.approx(10 * claim.from_default)
    if HERE_IS:
        assert made.tolerances[HERE_IS] == Tolerance(pytest.approx(1e-5))


@pytest.mark.parametrize(("difference", "computes_float32"), [(4e-5, True), (4e-6, False)])
def test_no_family_is_allowed_more_than_the_default_nor_int8_less(monkeypatch, difference, computes_float32) -> None:
    times(monkeypatch, 1 + difference)
    made = certified(computes_float32=computes_float32)

    assert made.tolerances[OTHER] == made.tolerances["default"] == Tolerance(1e-4)


def test_a_family_that_computes_something_else_is_not_certified(monkeypatch) -> None:
    times(monkeypatch, 1.01)
    made = certified()

    assert OTHER not in made.parity
    assert OTHER not in made.tolerances
    assert made.golden.family_outputs == {}
    assert "differs from this machine by 0.00" in made.gaps[OTHER]
    assert "allowed 0.0001" in made.gaps[OTHER]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("no-such-emulator",), "no-such-emulator is not on PATH"),
        (("false",), "false: failed: exit status 1"),
        (("sh", "-c", "kill -SEGV $$"), "sh: crashed with SIGSEGV"),
        (("sh", "-c", "echo no such model >&2; exit 3"), "no such model"),
    ],
)
def test_an_emulator_that_is_missing_or_dies_leaves_a_gap_that_says_why(monkeypatch, command, words: str) -> None:
    emulate(monkeypatch, *command)
    made = certified()

    assert OTHER not in made.parity
    assert words in made.gaps[OTHER]


def test_an_emulator_of_another_machine_is_not_tried() -> None:
    with pytest.raises(ExportError, match="sh wants a vax machine, this is"):
        Emulator(("sh",), (), "vax", "").python()


def test_a_stream_is_emulated_as_one_stream(monkeypatch) -> None:
    emulate(monkeypatch, "env")
    request = Request("x", "y", (StateSpec("state", "stateN", (2, 1, 2), 1),), (ScalarInput("gain", 0.25),))
    golden = Golden(WINDOWS, running(WINDOWS) * np.float32(0.25))
    found, _ = families.expected(running_model(length=4, channels=2), golden, request)

    np.testing.assert_allclose(found[OTHER].outputs, golden.outputs, atol=1e-6)


def test_a_packed_bundle_carries_the_certificate_and_passes_the_gate(monkeypatch, tmp_path: Path) -> None:
    times(monkeypatch, 1 + 1e-6)
    made = pack(classifier(tmp_path), layout=None, length=4, channels=("x", "y"))

    assert made.manifest.parity[OTHER].how == "measured in a play"
    assert made.manifest.parity[OTHER].from_float32 is None
    assert set(made.golden.family_outputs) == {OTHER}
    assert f"  - {OTHER}: measured in a play, differ by " in made.card
    for family in set(FAMILIES) - set(made.manifest.parity):
        assert f"  - {family}: not measured\n" in made.card
    assert gate(Path(made.path)).ok


def test_packing_tells_of_each_family_what_was_found(monkeypatch, tmp_path: Path) -> None:
    emulate(monkeypatch, "false")
    model = classifier(tmp_path)

    told = cli(model, "--length", "4", "--channels", "x,y", "-o", str(tmp_path / "m.edge")).output

    assert f"{OTHER}: nothing claimed" in told
    assert "false: failed: exit status 1" in told
    if HERE_IS:
        assert f"{HERE_IS}: differs by 0" in told
    assert set(bundle.read(tmp_path / "m.edge").manifest.parity) == {HERE_IS} - {""}


def of_a_saturating_product() -> Certificate:
    inputs = saturating.windows()
    return certify(saturating.int8(), Golden(inputs, saturating.by_hand(inputs)), 1.0, Request("x", "y"))


def test_what_packing_measures_on_an_emulated_haswell_is_what_exact_int8_gives() -> None:
    if HERE_IS != "vnni":
        pytest.skip("only on x86 with VNNI is a Haswell another family that can be emulated")
    try:
        families.EMULATORS["avx2"].python()
    except ExportError as error:
        pytest.skip(f"{error}: install qemu-user-static to measure x86 without VNNI")

    made = of_a_saturating_product()

    assert made.parity["avx2"].how == "measured under emulation (qemu Haswell)"
    assert (made.parity["avx2"].from_default, made.golden.family_outputs) == (0.0, {})


def test_what_packing_measures_on_an_emulated_board_is_what_integers_give() -> None:
    try:
        families.EMULATORS["neon"].python()
    except ExportError as error:
        pytest.skip(f"{error}")

    made = of_a_saturating_product()

    assert made.parity["neon"].how == "measured under emulation (qemu cortex-a72)"
    assert (made.parity["neon"].from_default, made.golden.family_outputs) == (0.0, {})
