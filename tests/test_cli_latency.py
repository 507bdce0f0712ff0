"""The command edge-runtime latency."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from latency_logs import MS, NOON, foreign, slow_line, write

from edge_runtime.cli import main
from edge_runtime.monitor.hdrlog import LOG_NAME, SLOWEST_NAME
from edge_runtime.monitor.latency import HIGHEST_NS


def latency(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["latency", *map(str, arguments)])


def test_the_table_has_a_row_per_stage_and_the_slowest_windows(tmp_path: Path) -> None:
    write(tmp_path, [{"vibration/infer": [MS] * 1200, "vibration/e2e": [3 * MS]}])
    (tmp_path / SLOWEST_NAME).write_bytes(slow_line(12.5))

    found = latency(tmp_path, "--from", "-1h")

    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert lines[0] == f"{tmp_path / LOG_NAME}: 2 histograms, 2026-09-21 14:13:20 to 2026-09-21 14:13:30 UTC"
    assert lines[1].startswith("range 2026-09-21 13:13:30 to ... UTC")
    assert [" ".join(line.split()) for line in lines[3:6]] == [
        "pipeline stage count p50 ms p90 ms p95 ms p99 ms p99.9 ms max ms",
        "vibration infer 1,200 1.004 1.004 1.004 1.004 1.004 1.004",
        "vibration e2e 1 3.015 3.015 3.015 3.015 3.015 3.015",
    ]
    assert " ".join(lines[-1].split()) == (
        "2026-09-21 14:13:25 vibration machine-1 3 "
        "0.100 0.200 0.300 0.400 0.500 0.600 0.000 0.700 12.500 62 °C throttled"
    )


def test_a_time_before_1970_is_1970(tmp_path: Path) -> None:
    write(tmp_path, [{"a/infer": [MS]}])

    assert "range 1970-01-01 00:00:00 to ... UTC" in latency(tmp_path, "--from", "-99999999999d").stdout


def test_names_from_a_log_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.hlog", 5, tag="Tag=\x1b[31m/infer,")

    for found in (latency(path), latency(path, "--pipeline", "b")):
        assert "\x1b" not in found.output
        assert "\\x1b[31m" in found.output


def test_json_has_every_figure_with_its_unit(tmp_path: Path) -> None:
    path = write(tmp_path, [{"vibration/infer": [MS]}])
    (tmp_path / SLOWEST_NAME).write_bytes(slow_line(12.5))

    found = json.loads(latency(path, "--json", "--to", "2026-09-22").stdout)

    assert set(found) == {"start_unix_s", "end_unix_s", "files", "skipped", "stages", "slowest"}
    assert (found["start_unix_s"], found["end_unix_s"]) == (None, 1_790_035_200.0)
    assert found["files"] == [
        {
            "path": str(path),
            "histograms": 1,
            "start_unix_s": NOON,
            "end_unix_s": NOON + 10,
            "unfinished_bytes": 0,
        }
    ]
    percentiles = dict.fromkeys(("p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms"), 1.003519)
    assert found["stages"] == [{"pipeline": "vibration", "stage": "infer", "count": 1, **percentiles, "mixed": False}]
    assert found["slowest"] == [json.loads(slow_line(12.5))]
    assert found["skipped"] == []


def test_bad_lines_beside_the_log_are_told_and_end_nothing(tmp_path: Path) -> None:
    write(tmp_path, [{"vibration/infer": [MS]}])
    slow = tmp_path / SLOWEST_NAME
    slow.write_bytes(b"\x1b\n" + slow_line(12.5))

    found = latency(tmp_path)

    assert found.exit_code == 0, found.output
    assert f"{slow}: 1 lines skipped, the first is line 1: no slow window: JSON is malformed" in found.stdout
    assert "12.500" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Missing argument 'FILE...'"),
        (["gone.hlog"], 2, "does not exist"),
        (["{log}", "--from", "noon"], 2, "Invalid value for '--from': 'noon', wanted a time as 2026-10-05T12:00"),
        (["{log}", "--to", "2026"], 2, "'2026', wanted a time as 2026-10-05T12:00, seconds since 1970 (9 digits or"),
        (["{log}", "--pipeline", "b"], 1, "error: nothing is selected: the logs hold pipelines a with stages infer"),
        (["{text}"], 1, "error: {text}, line 1: no comment, legend or interval of a HdrHistogram log\n"),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    names = {"log": write(tmp_path, [{"a/infer": [MS]}]), "text": tmp_path / "text"}
    names["text"].write_text("hello\n")

    found = latency(*(argument.format(**names) for argument in arguments))

    assert (found.exit_code, found.stdout) == (code, "")
    assert said.format(**names) in found.stderr


def test_the_command_works_on_its_own_and_without_matplotlib(tmp_path: Path) -> None:
    write(tmp_path, [{"a/infer": [MS]}])
    code = (
        "import sys; sys.modules['matplotlib'] = None; from edge_runtime.cli import main; "
        "main(['latency', *sys.argv[1:]], prog_name='edge-runtime')"
    )

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(tmp_path), *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    plain, plotted = run("--json"), run("--plot", str(tmp_path / "out.png"))

    assert (plain.returncode, plain.stderr) == (0, "")
    assert json.loads(plain.stdout)["stages"][0]["count"] == 1
    assert (plotted.returncode, plotted.stdout) == (1, "")
    assert plotted.stderr == "error: --plot needs matplotlib: pip install 'edge-runtime[plot]'\n"


def png_size(path: Path) -> tuple[int, int]:
    found = path.read_bytes()
    assert found[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", found[16:24])


def test_a_plot_has_a_row_per_pipeline(tmp_path: Path) -> None:
    idle = {"a/infer": [MS], "b/infer": [2 * MS]}
    write(tmp_path, [{"a/e2e": [MS * i for i in range(1, 50)], **idle}, *[idle] * 8, {"a/e2e": [0, HIGHEST_NS]}])
    foreign(tmp_path / "x.hlog", 0, 5, tag="Tag=_$x$,")
    plot = tmp_path / "out.png"

    both, one = latency(tmp_path, tmp_path / "x.hlog", "--plot", plot), tmp_path / "one.png"
    latency(tmp_path, "--pipeline", "a", "--plot", one)

    assert both.exit_code == 0, both.output
    assert "p99.9 ms" in both.stdout
    assert (png_size(plot), png_size(one)) == ((1400, 1380), (1400, 460))
    assert plot.stat().st_size > 30_000


@pytest.mark.parametrize(
    ("name", "said"),
    [("out.txt", "cannot be written: Format 'txt' is not supported"), ("no/out.png", "No such file")],
)
def test_a_plot_that_cannot_be_written_is_told(tmp_path: Path, name: str, said: str) -> None:
    write(tmp_path, [{"a/e2e": [MS]}])

    found = latency(tmp_path, "--plot", tmp_path / name)

    assert (found.exit_code, found.stdout) == (1, "")
    assert said in found.stderr


def test_more_pipelines_than_can_be_seen_are_not_drawn(tmp_path: Path) -> None:
    write(tmp_path, [{f"p{i}/e2e": [MS] for i in range(13)}])

    found = latency(tmp_path, "--plot", tmp_path / "out.png")

    assert found.exit_code == 1
    assert found.stderr == "error: 13 pipelines to draw, at most 12: choose with --pipeline\n"
