from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from bundles import means_model, write_means_bundle
from click.testing import CliRunner

from edge_runtime import report
from edge_runtime.cli import main
from edge_runtime.config import load
from edge_runtime.init import Choices, init
from edge_runtime.model import bench
from edge_runtime.model.threads import ThreadChoice


def row(threads: int, batch: int, p50_ms: float) -> bench.BenchRow:
    return bench.BenchRow(batch, threads, 10, p50_ms, p50_ms, p50_ms, p50_ms, batch / p50_ms * 1e3, 0.1)


@pytest.mark.parametrize(
    ("threads", "p50_ms", "wanted"),
    [
        (1, {1: 0.5, 8: 2.0, 64: 14.0}, (1, 64, "auto")),
        (1, {1: 0.5, 8: 2.0, 64: 15.2}, (1, 8, "auto")),
        (2, {1: 1.1, 8: 8.0, 64: 64.5}, (2, 1, "worker")),
        (1, {1: 0.9, 8: 4.0}, (1, 8, "worker")),
        (1, {1: 3.0}, (1, 1, "auto")),
    ],
)
def test_the_advice_is_the_chosen_threads_the_smallest_good_batch_and_where_to_run(
    threads: int, p50_ms: dict[int, float], wanted: tuple[int, int, str]
) -> None:
    others = [row(3 - threads, batch, ms / 10) for batch, ms in p50_ms.items()]

    found = bench.advise(ThreadChoice(threads, {}), [*others, *(row(threads, n, ms) for n, ms in p50_ms.items())])

    assert (found.intra_op_threads, found.max_batch, found.execution) == wanted
    assert found.window_ms == p50_ms[1]


def test_the_batch_is_chosen_by_the_windows_per_second_of_the_table_not_by_medians() -> None:
    """Batches of 8 have the better median, and by pauses now and then a fifth of the throughput."""
    rows = [bench.BenchRow(*(1, 1, 10), *(0.5, 0.5, 0.5, 0.5), windows_per_s=2000, cpu_ms=0.5)]
    rows += [bench.BenchRow(*(8, 1, 10), *(1.0, 99.0, 99.0, 99.0), windows_per_s=400, cpu_ms=0.5)]

    found = bench.advise(ThreadChoice(1, {}), rows)

    assert (found.max_batch, found.windows_per_s, found.most_windows_per_s) == (1, 2000, 2000)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("edge_runtime.model.threads.SECONDS_PER_COUNT", 0.02)


@pytest.mark.usefixtures("two_cores")
def test_autotune_sweeps_threads_and_batches_and_prints_settings_that_a_config_takes(tmp_path: Path) -> None:
    path = write_means_bundle(tmp_path / "m.edge")

    ran = CliRunner().invoke(main, ["bench", str(path), "--autotune", "--seconds", "0.01"])

    assert ran.exit_code == 0, ran.output
    table, advice = ran.output.split("\n\n", 1)
    assert len(table.splitlines()) == 2 + 2 * len(bench.BATCHES)
    config = load(pasted(advice, path, tmp_path / "device.toml"))
    model = config.models["means"]
    assert model.intra_op_threads in (1, 2)
    assert model.max_batch in bench.BATCHES
    assert f"\nintra_op_threads = {model.intra_op_threads}\n" in advice
    assert f"\nmax_batch = {model.max_batch}\n" in advice
    assert config.pipelines["means"].execution == "auto"
    assert "nothing: execution = auto decides" in advice


def pasted(advice: str, bundle: Path, output: Path) -> Path:
    """What init writes for that bundle, and each part of the advice put under the table that it names."""
    init(bundle, output, Choices(node="n1"))
    text = output.read_text()
    for part in advice.strip().split("\n\n"):
        told, _, lines = part.partition("\n")
        header = told.split("[")[1].split("]")[0].replace("NAME", "means")
        assert f"[{header}]\n" in text
        text = text.replace(f"[{header}]\n", f"[{header}]\n{lines}\n")
    output.write_text(text)
    return output


def test_settings_that_auto_could_not_decide_alike_are_printed_and_load(tmp_path: Path) -> None:
    path = write_means_bundle(tmp_path / "m.edge")
    rows = [row(3, 1, 1.1), row(3, 16, 4.0)]
    provider = "CPUExecutionProvider"
    measured = bench.bench(path, threads=(1,), provider=provider, rss_mb=lambda: 1.0, seconds_per_row=0.005)
    found = msgspec.structs.replace(measured, advice=bench.advise(ThreadChoice(3, {1: 2.0, 3: 1.1}), rows))

    config = load(pasted(report.bench(found).split("\n\n", 1)[1], path, tmp_path / "device.toml"))

    assert (config.models["means"].intra_op_threads, config.models["means"].max_batch) == (3, 16)
    assert config.pipelines["means"].execution == "worker"


@pytest.mark.usefixtures("two_cores")
def test_autotune_of_a_graph_without_batches_says_so_as_json(tmp_path: Path) -> None:
    path = write_means_bundle(tmp_path / "m.edge", model=means_model(length=4, channels=2, batch=1))

    ran = CliRunner().invoke(main, ["bench", str(path), "--autotune", "--seconds", "0.01", "--json"])

    found = json.loads(ran.output)
    assert [(r["threads"], r["batch"]) for r in found["rows"]] == [(1, 1), (2, 1)]
    assert all(0 < r["cpu_ms"] < 100 and 0 < r["p50_ms"] <= r["p99_ms"] for r in found["rows"])
    assert found["advice"]["max_batch"] == 1
    assert list(found["advice"]["p50_ms"]) == ["1", "2"]


def test_bench_compares_what_it_is_asked_for_and_advises_nothing(tmp_path: Path) -> None:
    path = write_means_bundle(tmp_path / "m.edge")

    found = bench.bench(path, threads=(2,), provider="CPUExecutionProvider", rss_mb=lambda: 12.5, seconds_per_row=0.005)

    assert {r.threads for r in found.rows} == {2}
    assert (found.advice, found.rss_mb, found.golden_error) == (None, 12.5, 0.0)
    assert "12.5 MB" in report.bench(found)
    assert "under [models." not in report.bench(found)


def test_autotune_and_threads_contradict_each_other(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["bench", str(write_means_bundle(tmp_path / "m.edge")), "--autotune", "--threads=2"])

    assert ran.exit_code == 2
    assert "leave out --threads" in ran.output
