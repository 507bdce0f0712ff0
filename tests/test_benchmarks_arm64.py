"""Counts against a baseline, and the page made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.arm64 import __main__ as program
from benchmarks.arm64 import baseline, page, records
from benchmarks.arm64.hot_path import PerMessage
from benchmarks.arm64.inference import Inference
from benchmarks.arm64.inference_guest import Proof
from benchmarks.arm64.records import Where

WHERE = Where("abc", "2026-11-23", "qemu-aarch64 version 7.2", "bookworm", {"numpy": "2.4.6"})


def model(variant: str, median: int, *, core: str = "a72", sha256: str = "s", **proof: Any) -> Inference:
    counted = {"least": median - 1, "median": median, "most": median + 1}
    known: dict[str, Any] = {"example": "pump", "variant": variant, "core": core, "sha256": sha256}
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

    found = baseline.differences(before, after)

    assert [difference.is_beyond for difference in found] == [False, True, True]
    assert [round(difference.share, 3) for difference in found] == [0.01, 0.011, -0.011]


def test_another_graph_and_one_that_is_not_here_are_not_compared() -> None:
    before = [model("int8", 1000), model("pruned", 1000), message("daemon", 50)]

    found = baseline.differences(before, [model("int8", 9000, sha256="other"), message("daemon", 70)])

    assert [difference.reason for difference in found] == ["another graph", "not counted here", ""]
    assert [difference.is_beyond for difference in found] == [False, False, True]


def test_wrong_results_and_moved_versions_are_told() -> None:
    lines = [
        model("int8", 1, refused="golden vectors: outputs differ"),
        model("pruned", 1),
        message("naive", 1, right=False),
    ]

    assert baseline.wrong(lines) == [
        "pump int8 a72: golden vectors: outputs differ",
        "naive pump QoS 1 16 a read a72: wrong results",
    ]
    newer = msgspec.structs.replace(WHERE, qemu="qemu-aarch64 version 10.0", versions={"onnxruntime": "2"})
    assert baseline.moved([WHERE], [newer]) == [
        "qemu qemu-aarch64 version 7.2 to qemu-aarch64 version 10.0",
        "numpy 2.4.6 to none",
        "onnxruntime none to 2",
    ]


def test_a_check_fails_for_what_is_beyond_and_when_nothing_could_be_compared(
    monkeypatch, tmp_path: Path, capsys
) -> None:
    path = tmp_path / "lines.jsonl"
    records.write(path, [WHERE, model("int8", 1000)])
    monkeypatch.setattr(program, "RESULTS", path)
    counts = {"same": 1000, "more": 1100}

    def checked(median: int, **facts: Any) -> int:
        monkeypatch.setattr(program, "_counted", lambda _cores: iter([WHERE, model("int8", median, **facts)]))
        return program.main(["--check"])

    assert checked(counts["same"]) == 0
    assert checked(counts["more"]) == 1
    assert "pump int8 a72: +10.00%, wanted at most 1%" in capsys.readouterr().err
    assert checked(counts["same"], sha256="other") == 1
    assert "nothing could be compared" in capsys.readouterr().err
    assert records.read(path) == [WHERE, model("int8", 1000)]


def test_the_page_tells_each_variant_beside_float32_and_the_daemon_beside_the_script() -> None:
    lines = [WHERE, model("float32", 3000, core="a76"), model("int8", 1000, core="a76", error=0.02, allowed=0.1)]
    lines += [message("naive", 5000), message("daemon", 2000)]

    text = page.page(lines)

    assert "| int8 | int8 | 8.0 | - | - | 1,000 (3.00x fewer) | - | - | yes, 0.02 |" in text
    assert "| pump, QoS 1 | 16 | - | - | - | - | - | 5,000 | 2,000 | 2.50x | 4.00x | 9 / 9 |" in text
    with pytest.raises(ValueError, match="no results"):
        page.page(lines[1:])
