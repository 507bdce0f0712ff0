"""Instructions are counted where the emulator can, the same ones twice, and not of two threads at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import means_model

from edge_runtime.errors import ExportError
from export.arm64 import counter
from export.arm64.marks import RUNS, WARM_UP
from export.arm64.userland import Userland
from export.artifact import Artifact
from export.emulated import Emulated
from export.measure import Instructions

MARKED = "import os; os.getppid(); sum(range(1000)); os.getppid()"
THREAD = "import os, threading, time; threading.Thread(target=time.sleep, args=(1,)).start(); os.getppid()"


def counted(where: Userland, program: str) -> object:
    with counter.workplace(where) as folder:
        return counter.count(where, "a72", ["-c", program], folder=folder)


def test_a_program_without_chance_takes_the_same_instructions_to_the_last_one(where: Userland) -> None:
    one, other = (counted(where, MARKED) for _ in range(2))

    assert one == other
    assert isinstance(one, list)
    before, after = one
    assert 10_000 < after.since(before).instructions < 1_000_000


def test_two_threads_at_once_are_refused(where: Userland) -> None:
    with pytest.raises(ExportError, match="a second thread, whose instructions cannot be told apart"):
        counted(where, THREAD)


def test_an_emulated_target_counts_a_model_beside_float32(where: Userland) -> None:
    window = np.zeros((1, 64, 2), np.float32)
    small, large = (artifact(length) for length in (4, 64))

    cost = Emulated("a72").cost(large, large, window, seed=0)
    other = Emulated("a72").cost(small, small, window[:, :4], seed=0)

    assert isinstance(cost, Instructions)
    assert isinstance(other, Instructions)
    assert cost.float32 == pytest.approx(cost.median, rel=0.01)
    assert 10_000 < other.median < cost.median
    assert cost.least <= cost.median <= cost.most


def artifact(length: int) -> Artifact:
    return Artifact("means", "", means_model(length=length, channels=2), "x", "y", ())


def test_nothing_is_counted_where_a_program_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == "setarch" else f"/bin/{name}")
    monkeypatch.setattr(counter, "problem", counter.problem.__wrapped__)

    assert counter.problem().startswith("setarch missing: ")
    with pytest.raises(ExportError, match="no instructions can be counted: setarch missing"):
        counter.count(Userland("bookworm", tmp_path), "a72", [], folder=tmp_path)


@pytest.mark.parametrize(
    ("emulator", "words"),
    [
        ('case $1 in --version) echo "qemu-aarch64 version 10.0.3";; *) echo "unknown option" >&2; exit 1;; esac',
         "qemu-aarch64 version 10.0.3 does not load the counter, wanted one linked dynamically, of plugin API 1"),
        ('touch "${2#*out=}"', ""),
    ],
)  # fmt: skip
def test_an_emulator_that_takes_no_plugin_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, emulator: str, words: str
) -> None:
    program = tmp_path / "qemu-aarch64"
    program.write_text(f"#!/bin/sh\n{emulator}\n")
    program.chmod(0o755)
    monkeypatch.setattr(counter, "emulator", lambda: str(program))
    if words:
        with pytest.raises(ExportError, match=words):
            counter._load(tmp_path / "counter.so")
    else:
        counter._load(tmp_path / "counter.so")


def test_marks_lie_around_each_run_once_it_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    from export.arm64 import marks

    found: list[str] = []
    monkeypatch.setattr(marks, "mark", lambda: found.append("mark"))

    marks.counted(lambda: found.append("run"))

    assert found == ["run"] * WARM_UP + ["mark"] + ["run", "mark"] * RUNS
