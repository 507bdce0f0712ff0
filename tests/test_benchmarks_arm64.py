"""Counts against a baseline, and the page made of them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.arm64 import __main__ as program
from benchmarks.arm64 import baseline, golden, page, records
from benchmarks.arm64.arithmetic import output_step
from benchmarks.arm64.golden import Proof
from benchmarks.arm64.hot_path import PerMessage
from benchmarks.arm64.inference import Inference
from benchmarks.arm64.records import Where
from benchmarks.arm64.variants import COMMITTED
from edge_runtime.errors import ExportError
from edge_runtime.model.bundle import read
from export.arm64 import runs
from export.arm64.cores import CORES
from export.arm64.counter import Mark
from export.arm64.marks import RUNS
from export.arm64.runs import Instructions

WHERE = Where("abc", "2026-11-23", "qemu-aarch64 version 7.2", "bookworm", {"numpy": "2.4.6"}, {"libc6": "2.36-9"})


def model(
    variant: str, median: int, *, core: str = "a72", sha256: str = "s", example: str = "gesture_gru", **proof: str
) -> Inference:
    counted = {"least": median - 1, "median": median, "most": median + 1}
    known: dict[str, Any] = {"example": example, "variant": variant, "core": core, "sha256": sha256}
    return Inference(**known, onnx=8000, precision="int8", **counted, proof=Proof(**proof))


def message(subject: str, instructions: int, *, right: bool = True) -> PerMessage:
    return PerMessage(
        subject=subject, workload="pump", core="a72", qos=1, delivery="normal", read_messages=16, messages=160,
        windows=100, instructions_per_message=instructions, calls_per_message=9.0, inference_per_message=1000,
        is_right=right,
    )  # fmt: skip


def test_a_count_is_beyond_the_limit_above_one_percent_in_either_direction() -> None:
    before = [WHERE, model("int8", 1000), model("pruned", 1000), model("chosen", 1000)]
    after = [WHERE, model("int8", 1010), model("pruned", 1011), model("chosen", 989)]

    found = baseline.differences(before, after, ["a72"])

    assert [difference.status for difference in found] == ["ok", "FAIL", "FAIL"]
    assert [round(difference.share, 3) for difference in found] == [0.01, 0.011, -0.011]


def test_what_is_missing_or_another_graph_or_new_fails() -> None:
    before = [WHERE, model("int8", 1000), model("pruned", 1000), message("daemon", 50)]
    after = [WHERE, model("int8", 1000, sha256="other"), model("chosen", 1000)]

    found = baseline.differences(before, after, ["a72"])

    assert [(difference.key[1], difference.status, difference.told) for difference in found] == [
        ("int8", "FAIL", "another graph: count a new baseline"),
        ("pruned", "FAIL", "not counted here"),
        ("pump", "FAIL", "not counted here"),
        ("chosen", "FAIL", "not in the baseline: count a new baseline"),
    ]


def test_what_needs_data_that_is_not_ours_may_be_absent_but_not_off() -> None:
    names = ("float32", "int8", "pruned")
    before = [WHERE, *(model(name, 1000, example="spoken_digits") for name in names)]
    digits = {"example": "spoken_digits"}
    after = [WHERE, model("int8", 1000, sha256="other", **digits), model("pruned", 1100, **digits)]

    found = baseline.differences(before, after, ["a72"])

    assert [difference.status for difference in found] == ["skip", "skip", "FAIL"]
    assert found[0].told == "not counted here; its data is not part of the project"


def test_of_fewer_cores_only_those_are_compared() -> None:
    before = [WHERE, model("int8", 1000), model("int8", 1000, core="a53")]

    found = baseline.differences(before, [WHERE, model("int8", 1000)], ["a72"])

    assert [(difference.key[-1], difference.status) for difference in found] == [("a72", "ok")]


def test_wrong_results_and_moved_versions_are_told() -> None:
    lines = [
        model("int8", 1, refused="golden vectors: outputs differ"),
        model("pruned", 1),
        message("naive", 1, right=False),
    ]

    assert baseline.wrong(lines) == [
        "gesture_gru int8 a72: golden vectors: outputs differ",
        "naive pump QoS 1 16 a read a72: wrong results",
    ]
    newer = msgspec.structs.replace(
        WHERE, qemu="qemu-aarch64 version 10.0", versions={"onnxruntime": "2"}, debian={"libc6": "2.41-1"}
    )
    assert baseline.moved([WHERE], [newer]) == [
        "qemu qemu-aarch64 version 7.2 to qemu-aarch64 version 10.0",
        "numpy 2.4.6 to none",
        "onnxruntime none to 2",
        "libc6 2.36-9 to 2.41-1",
    ]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "lines.jsonl"
    records.write(path, [WHERE, model("int8", 1000)])
    monkeypatch.setattr(program, "RESULTS", path)
    monkeypatch.setattr(program, "PAGE", tmp_path / "page.md")
    return path


def test_a_check_fails_for_what_is_beyond_and_for_another_graph_and_writes_nothing(
    monkeypatch, results: Path, capsys
) -> None:
    def checked(median: int, where: Where = WHERE, **facts: Any) -> tuple[int, str]:
        monkeypatch.setattr(program, "_counted", lambda _cores: iter([where, model("int8", median, **facts)]))
        return program.main(["--check"]), capsys.readouterr().err

    assert checked(1000) == (0, "")
    assert checked(1100) == (1, "error: gesture_gru int8 a72: 1,000 to 1,100, +10.00%, wanted at most 1%\n")
    moved = checked(1100, where=msgspec.structs.replace(WHERE, debian={"libc6": "2.41-1"}))
    assert moved[0] == 1
    assert "cannot be compared: libc6 2.36-9 to 2.41-1; count a new baseline" in moved[1]
    assert checked(1000, where=msgspec.structs.replace(WHERE, debian={"libc6": "2.41-1"})) == (0, "")
    assert checked(1000, sha256="other")[0] == 1
    assert records.read(results) == [WHERE, model("int8", 1000)]


def test_a_baseline_of_fewer_cores_is_not_written(results: Path, capsys) -> None:
    assert program.main(["--cores", "a72"]) == 1

    assert "a baseline without a53, a76 would hold nothing to account there: not written" in capsys.readouterr().err
    assert records.read(results) == [WHERE, model("int8", 1000)]


def test_a_userland_says_which_debian_packages_it_has(tmp_path: Path) -> None:
    for name, text in (("python3.11", "python3.11 (3.11.2-6+deb12u9) bookworm; …"), ("libc6", "glibc (2.36-9) x")):
        folder = tmp_path / "usr/share/doc" / name
        folder.mkdir(parents=True)
        (folder / records.CHANGES).write_bytes(gzip.compress(text.encode()))

    assert records.debian(tmp_path) == {"python3.11": "3.11.2-6+deb12u9", "libc6": "2.36-9"}


@pytest.mark.parametrize(
    ("factor", "exactness", "is_right"), [(1.0, "bits equal", True), (1 + 4e-6, "4e-06", True), (1.001, "1e-03", False)]
)
def test_float32_is_held_to_a_share_of_the_largest_output(factor: float, exactness: str, is_right: bool) -> None:
    bundle = read(COMMITTED / "gesture_gru-float32.edge")

    found = golden.proof(bundle, (bundle.golden.outputs * factor).astype(np.float32))

    assert (found.exactness, not found.refused) == (exactness, is_right)


def test_int8_with_float_parts_is_held_to_steps_of_its_last_quantization() -> None:
    bundle = read(COMMITTED / "pump_vibration-int8.edge")
    step = output_step(bundle.model, bundle.manifest.output.name)
    assert step is not None

    one, three = (golden.proof(bundle, bundle.golden.outputs + np.float32(steps * step)) for steps in (1, 3))

    assert (one, three.exactness) == (Proof("1.0 steps"), "3.0 steps")
    assert "3.0 steps from the golden outputs of x86" in three.refused


def test_of_marks_the_least_median_and_most_are_told_model_by_model() -> None:
    at = 0
    marks = []
    for run in [7, *range(1, RUNS + 1), 99, *[5] * RUNS]:
        at += run
        marks.append(Mark(at, 0))

    assert runs.summaries(marks, 2) == [Instructions(1, 6, RUNS), Instructions(5, 5, 5)]
    with pytest.raises(ExportError, match=f"{len(marks)} marks of 3 models, wanted {3 * (RUNS + 1)}"):
        runs.summaries(marks, 3)


def test_the_page_tells_each_variant_beside_float32_and_the_daemon_beside_the_script() -> None:
    lines = [WHERE, model("float32", 3000, core="a76"), model("int8", 1000, core="a76", exactness="1.0 steps")]
    lines += [message("naive", 5000), message("daemon", 2000)]

    text = page.page(lines)

    assert "| int8 | int8 | 8.0 | - | - | 1,000 (3.00x fewer) | - | - | 1.0 steps |" in text
    assert "| pump, QoS 1 | 16 | - | - | - | - | - | 5,000 | 2,000 | 2.50x | 4.00x | 9 / 9 |" in text
    with pytest.raises(ValueError, match="no results"):
        page.page(lines[1:])


def test_the_page_says_how_often_the_aim_is_reached() -> None:
    at_one = [
        msgspec.structs.replace(message(name, n), read_messages=1) for name, n in (("naive", 299), ("daemon", 100))
    ]

    told = page.messages([*at_one, message("naive", 300), message("daemon", 100)])

    assert "The aim is 3 times fewer than the script: reached in 1 of 2 of these lines." in told


def test_the_page_in_the_repository_is_that_of_the_baseline_which_has_every_committed_bundle_on_every_core() -> None:
    lines = records.read(program.RESULTS)

    counted = {baseline.key(line) for line in lines if isinstance(line, Inference)}
    wanted = {(*path.stem.rsplit("-", 1), core) for path in sorted(COMMITTED.glob("*.edge")) for core in CORES}
    assert wanted <= counted
    assert baseline.wrong(lines) == []
    assert program.PAGE.read_text() == page.page(lines)
