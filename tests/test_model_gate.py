"""The gate's own ways: what it reports, how it runs its child, when it need not run one."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hostile
import msgspec
import onnxruntime
import psutil
import pytest
from bundles import means_manifest, means_model, write_means_bundle
from onnx import TensorProto, helper

import edge_runtime
from edge_runtime.config import load
from edge_runtime.errors import BundleError
from edge_runtime.model import gate as room
from edge_runtime.model.bundle import Bundle, read
from edge_runtime.model.gate import CHECKS, GateReport, GateSettings, gate, proven
from edge_runtime.model.onnx_graph import read_facts
from edge_runtime.model.policy import MICROSOFT_OPERATORS, SESSION_ENTRIES, objections
from edge_runtime.model.session import SessionSettings

ROOT = Path(__file__).resolve().parents[1]
Child = Callable[[str], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_means_bundle(tmp_path / "means.edge")


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The command of every process started."""
    started: list[object] = []

    class Counted(subprocess.Popen):
        def __init__(self, command: object, **options: object) -> None:
            started.append(command)
            super().__init__(command, **options)

    monkeypatch.setattr(room.subprocess, "Popen", Counted)
    return started


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Child:
    """Runs other code in the child's place."""
    return lambda code: monkeypatch.setattr(room, "CHILD", ("-c", code))


def prove(path: Path, state_dir: Path, settings: GateSettings | None = None) -> Bundle:
    return proven(path, settings or GateSettings(), session=SessionSettings(), state_dir=state_dir)


def test_a_sound_bundle_passes_every_check_and_the_report_says_on_what(path: Path) -> None:
    report = gate(path)

    assert report.ok, report.reason
    assert report.reason == ""
    assert [check.name for check in report.checks] == list(CHECKS)
    assert all(check.ok and check.detail for check in report.checks)
    assert (report.bundle, report.digest, report.model) == (str(path), read(path).digest, "means@1.0.0")
    assert (report.edge_runtime, report.onnxruntime) == (edge_runtime.__version__, onnxruntime.__version__)
    assert report.provider == "CPUExecutionProvider"
    assert 0 < report.p95_ms < 1000
    assert 10 < report.peak_rss_mb < 1200


def test_the_child_sees_an_empty_folder_a_bare_environment_and_its_limits(
    path: Path, child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("CI", "true")
    child(
        "import sys, os, json, resource, msgspec\n"
        "from edge_runtime.model import proof, gate\n"
        "proof.limit(msgspec.json.decode(sys.argv[1], type=gate.Order))\n"
        "names = ('AS', 'CPU', 'CORE', 'FSIZE', 'NOFILE')\n"
        "limits = {name: resource.getrlimit(getattr(resource, 'RLIMIT_' + name)) for name in names}\n"
        "stdin = os.readlink('/proc/self/fd/0')\n"
        "found = dict(limits=limits, here=os.listdir(), env=sorted(os.environ), stdin=stdin, own=os.getsid(0))\n"
        "found['alone'] = os.getsid(0) == os.getpid()\n"
        "print(json.dumps(found))"
    )
    settings = GateSettings(memory_mb=700, cpu_s=7)
    ended = room._run_child(room.Order(str(path), "", SessionSettings(), settings))
    found = json.loads(ended.output)

    assert found["limits"] == {
        "AS": [700_000_000, 700_000_000],
        "CPU": [7, 8],
        "CORE": [0, 0],
        "FSIZE": [0, 0],
        "NOFILE": [256, 256],
    }
    assert found["here"] == []
    assert found["alone"]
    assert found["stdin"] == "/dev/null"
    assert "ORT_DISABLE_TELEMETRY" in found["env"]
    assert not {"SECRET_TOKEN", "CI", "PATH"} & set(found["env"])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('no report')", "ended with status 0 and no report: 'no report'"),
        ("", "ended with status 0 and no report: 'it printed nothing'"),
        ("raise SystemExit(3)", "ended with status 3 and no report"),
        ("print('{' * 100_000)", "printed more than 65536 bytes"),
        ("print('{\"check\":' * 1000)", "ended with status 0 and no report"),
        ("import sys; sys.stderr.write('MemoryError')", "needs more memory than gate.memory_mb = 1200 allows"),
        ("import os, time; os.close(1); os.close(2); time.sleep(60)", "by SIGKILL"),
        ('print(\'{"proof":{"digest":"","model":"","onnxruntime":"","p95_ms":1,"peak_rss_mb":1}}\')', "no report"),
        ("import signal; signal.raise_signal(signal.SIGRTMIN)", "by SIGRTMIN"),
    ],
)
def test_a_child_that_ends_without_its_report_is_a_refusal(path: Path, child: Child, code: str, words: str) -> None:
    child(code)
    report = gate(path)

    assert not report.ok
    assert words in report.reason
    assert (report.checks[-1].name, report.checks[-1].ok) == ("file", False)
    assert (report.p95_ms, report.onnxruntime) == (None, "")


def test_nothing_the_child_started_outlives_the_gate(path: Path, child: Child) -> None:
    sleep = ["sleep", f"60.{os.getpid()}"]
    child(f"import subprocess; subprocess.Popen({sleep})")
    report = gate(path, GateSettings(timeout_s=1.0))

    assert report.reason == "not finished after gate.timeout_s = 1 s"
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == sleep]


def test_a_bundle_is_proven_once_and_the_kept_report_is_trusted(
    path: Path, tmp_path: Path, children: list[object]
) -> None:
    first = prove(path, tmp_path / "state")
    second = prove(path, tmp_path / "state")

    assert len(children) == 1
    assert (first.digest, second.digest) == (read(path).digest,) * 2
    (kept,) = (tmp_path / "state" / "gate").iterdir()
    assert msgspec.json.decode(kept.read_bytes(), type=GateReport).ok


@pytest.mark.parametrize(
    "change",
    [{"ok": False}, {"digest": "0" * 64}, {"edge_runtime": "0"}, {"onnxruntime": "0"}, {"provider": "x"}, None],
    ids=str,
)
def test_a_kept_report_of_something_else_is_not_trusted(
    path: Path, tmp_path: Path, children: list[object], change: dict | None
) -> None:
    prove(path, tmp_path)
    (kept,) = (tmp_path / "gate").iterdir()
    kept.write_text(json.dumps(json.loads(kept.read_text()) | change) if change else "{ damaged")

    prove(path, tmp_path)
    assert len(children) == 2


def test_other_bounds_and_other_bytes_are_proven_anew(path: Path, tmp_path: Path, children: list[object]) -> None:
    prove(path, tmp_path)
    prove(path, tmp_path, GateSettings(p95_ms=500.0))
    write_means_bundle(path, msgspec.structs.replace(means_manifest(), version="1.0.1"))
    prove(path, tmp_path)

    assert len(children) == 3


def test_a_refused_bundle_is_proven_again_next_time(path: Path, tmp_path: Path, children: list[object]) -> None:
    hostile.bundle_of(path, hostile.with_external_data("x"))
    for _ in range(2):
        with pytest.raises(BundleError, match="data outside the model"):
            prove(path, tmp_path)

    assert len(children) == 2
    (kept,) = (tmp_path / "gate").iterdir()
    assert "data outside the model" in msgspec.json.decode(kept.read_bytes(), type=GateReport).reason


def test_without_a_place_for_reports_a_bundle_is_proven_each_time_with_a_warning(
    path: Path, tmp_path: Path, children: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "state").write_text("a file where the folder should be")
    for _ in range(2):
        prove(path, tmp_path / "state")

    assert len(children) == 2
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warned] == ["gate_report_not_kept"] * 2
    assert "Not a directory" in warned[0].reason


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_file_swapped_while_it_is_proven_is_never_what_serves(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    judged, run_child = read(path), room._run_child

    def swap_around(order: room.Order) -> object:
        if moment == "before":
            hostile.bundle_of(path, hostile.with_external_data("x"))
        ended = run_child(order)
        hostile.bundle_of(path, hostile.with_external_data("x"))
        return ended

    monkeypatch.setattr(room, "_run_child", swap_around)
    if moment == "before":
        with pytest.raises(BundleError, match="the file changed meanwhile: sha256 "):
            prove(path, tmp_path)
    else:
        assert prove(path, tmp_path).model == judged.model


def test_a_provider_that_is_not_there_is_named_with_what_there_is(path: Path) -> None:
    report = gate(path, session=SessionSettings(provider="CUDAExecutionProvider"))

    assert report.reason.startswith("execution provider CUDAExecutionProvider is not available; available: ")


def test_functions_of_the_model_itself_are_allowed(path: Path) -> None:
    body = [helper.make_node("Sub", ["a", "a"], ["b"])]
    own = helper.make_function("own", "Nothing", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    call = helper.make_node("Nothing", ["means"], ["extra"], domain="own")
    model = hostile.model_with([call], functions=[own], opsets=[helper.make_opsetid("own", 1)])

    assert gate(hostile.bundle_of(path, model)).ok


def test_what_onnxruntimes_own_tools_write_is_allowed(path: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0])
    source.write_bytes(hostile.model_with([helper.make_node("MatMul", ["means", "w"], ["extra"])], [weights]))
    quantize_dynamic(source, target)
    optimized = onnxruntime.SessionOptions()
    optimized.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(str(target), optimized)

    for model in (target, tmp_path / "fused.onnx"):
        assert read(hostile.bundle_of(path, model.read_bytes()))


def test_too_many_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.model.policy.MAX_NODES", 0)
    monkeypatch.setattr("edge_runtime.model.policy.MAX_TENSORS", 5)

    assert objections(read_facts(means_model(length=4, channels=2)), {}) == ["1 nodes and 1 tensors, allowed 0 and 5"]


def test_every_operator_on_the_list_is_one_onnxruntime_knows() -> None:
    from onnxruntime.capi import _pybind_state

    known = {schema.name for schema in _pybind_state.get_all_operator_schema() if schema.domain == "com.microsoft"}
    assert known >= MICROSOFT_OPERATORS


def test_the_page_lists_what_is_allowed() -> None:
    page = (ROOT / "docs" / "gate.md").read_text()

    assert [name for name in sorted(MICROSOFT_OPERATORS | SESSION_ENTRIES) if f"`{name}`" not in page] == []


def test_the_settings_come_from_the_gate_table(path: Path, tmp_path: Path) -> None:
    from daemon import write_config

    config = load(write_config(tmp_path, "mqtt://127.0.0.1:1", more="[gate]\nmemory_mb = 800\np95_ms = 5"))
    assert config.gate == GateSettings(memory_mb=800.0, p95_ms=5.0)


def command(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "edge_runtime", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_bundle_verify_speaks_text_and_json_and_its_exit_code_is_the_verdict(path: Path) -> None:
    good, good_json = command("bundle", "verify", path), command("bundle", "verify", path, "--json")
    assert (good.returncode, good_json.returncode) == (0, 0)
    assert "means@1.0.0 is proven here: onnxruntime " in good.stdout
    assert json.loads(good_json.stdout)["ok"]

    hostile.bundle_of(path, hostile.with_external_data("/etc/passwd"))
    bad, bad_json = command("bundle", "verify", path), command("bundle", "verify", path, "--json")
    assert (bad.returncode, bad_json.returncode) == (1, 1)
    assert bad.stdout.splitlines()[-1].startswith("refused: 1 of 3 tensors have their data outside the model")
    assert json.loads(bad_json.stdout)["reason"] in bad.stdout


def test_the_daemon_starts_no_child_the_second_time(path: Path, tmp_path: Path, children: list[object]) -> None:
    from daemon import write_config

    from edge_runtime.daemon import Daemon

    config = load(write_config(tmp_path, "mqtt://127.0.0.1:1"))
    for _ in range(2):
        Daemon(config, "device.toml")

    assert len(children) == 1
