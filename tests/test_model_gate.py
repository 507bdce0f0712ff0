"""The gate's own ways: what it reports, how it runs its child, when it need not run one."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hostile
import msgspec
import onnxruntime
import psutil
import pytest
from broker import until
from bundles import means_manifest, means_model, write_means_bundle
from onnx import TensorProto, helper

import edge_runtime
from edge_runtime.config import load
from edge_runtime.errors import BundleError, ConfigError
from edge_runtime.model import child as runner
from edge_runtime.model import gate as room
from edge_runtime.model.bundle import Bundle, read, write
from edge_runtime.model.family import FAMILIES, numeric_family
from edge_runtime.model.gate import CHECKS, Check, GateReport, GateSettings, gate, proven
from edge_runtime.model.manifest import Parity, Tolerance
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

    monkeypatch.setattr(runner.subprocess, "Popen", Counted)
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
    assert (report.session, report.family) == (SessionSettings(), numeric_family())
    assert 0 < report.p95_ms < 1000
    assert 10 < report.peak_rss_mb < 1200


def test_the_report_says_whose_golden_outputs_were_met(path: Path) -> None:
    here = numeric_family() or "this processor or provider"
    assert f"(default, nothing was measured for {here})" in session_check(path).detail

    if here not in FAMILIES:
        pytest.skip("this processor is of no numeric family")
    certified(path, here, outputs={})
    assert f"differ by 0, allowed 0.001 ({here}, measured on a bench)" in session_check(path).detail


def test_golden_outputs_of_this_family_that_were_tampered_with_are_refused(path: Path) -> None:
    here = numeric_family()
    if not here:
        pytest.skip("this processor is of no numeric family")
    outputs = read(path).golden.outputs.copy()
    outputs[3, 1] += 0.002
    certified(path, here, outputs={here: outputs}, apart=0.002)

    check = session_check(path)
    assert not check.ok
    assert check.detail == f"golden vectors: outputs differ by 0.002, allowed 0.001 ({here})"


def test_golden_outputs_of_another_family_do_not_count_here(path: Path) -> None:
    other = next(family for family in FAMILIES if family != numeric_family())
    certified(path, other, outputs={other: read(path).golden.outputs + 0.25}, apart=0.25)

    assert session_check(path).ok


def certified(path: Path, family: str, *, outputs: dict, apart: float = 0.0) -> None:
    """Write the bundle again with a claim for a family, and outputs of its own, so far from the default."""
    made = read(path)
    manifest = msgspec.structs.replace(
        made.manifest,
        tolerances={"default": Tolerance(0.5), family: Tolerance(0.001)},
        parity={family: Parity("measured on a bench", apart)},
    )
    golden = msgspec.structs.replace(made.golden, family_outputs=outputs)
    write(path, manifest, model=made.model, golden=golden, reference=made.reference, card=made.card)


def session_check(path: Path) -> Check:
    (found,) = [check for check in gate(path).checks if check.name == "session"]
    return found


def test_the_child_sees_an_empty_folder_a_bare_environment_and_its_limits(
    path: Path, child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("LD_PRELOAD", "")
    child(
        "import sys, os, json, resource, msgspec\n"
        "from edge_runtime.model import proof, gate\n"
        "proof.limit(msgspec.json.decode(sys.argv[4], type=gate.Order))\n"
        "names = ('AS', 'CPU', 'CORE', 'FSIZE', 'NOFILE')\n"
        "limits = {name: resource.getrlimit(getattr(resource, 'RLIMIT_' + name)) for name in names}\n"
        "stdin = os.readlink('/proc/self/fd/0')\n"
        "found = dict(limits=limits, here=os.listdir(), env=sorted(os.environ), stdin=stdin, own=os.getsid(0))\n"
        "found['alone'] = os.getsid(0) == os.getpid()\n"
        "print(json.dumps(found))"
    )
    order = room.Order("", SessionSettings(), GateSettings(memory_mb=700, cpu_s=7))
    ended = runner.run(room.CHILD, str(path), msgspec.json.encode(order).decode(), timeout_s=30)
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
    assert {"ORT_DISABLE_TELEMETRY", "LD_PRELOAD"} <= set(found["env"])
    assert not {"SECRET_TOKEN", "CI", "PATH"} & set(found["env"])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('no report')", "ended with status 0 and no report: 'no report'"),
        ("", "ended with status 0 and no report: 'it printed nothing'"),
        ("raise SystemExit(3)", "ended with status 3 and no report"),
        ("raise SystemExit('cannot allocate memory in static TLS block')", "ended with status 1 and no report"),
        ("print('x' * 100_000, 'the end')", "ended with status 0 and no report: 'xxx"),
        ("tell(b'{' * 100_000)", "reported more than 65536 bytes"),
        ("tell(b'{\"check\":' * 1000)", "ended with status 0 and no report"),
        ("tell(b'\\xff\\n[]')", "ended with status 0 and no report"),
        ('tell(b\'{"proof":{"model":"\\xff"}}\')', "ended with status 0 and no report"),
        ("import sys; sys.stderr.write('MemoryError')", "needs more memory than gate.memory_mb = 1200 allows"),
        ("import time; os.closerange(1, 99); time.sleep(60)", "by SIGKILL"),
        ("print('a\\x1b[2Jb')", r"'a\\x1b[2Jb'"),
        ('tell(b\'{"proof":{"digest":"","model":"","onnxruntime":"","p95_ms":1,"peak_rss_mb":1}}\')', "no report"),
        ("import signal; signal.raise_signal(signal.SIGRTMIN)", "by SIGRTMIN"),
    ],
)
def test_a_child_that_ends_without_its_report_is_a_refusal(path: Path, child: Child, code: str, words: str) -> None:
    child(f"import os, sys; tell = lambda raw: os.write(int(sys.argv[1]), raw)\n{code}")
    report = gate(path)

    assert not report.ok
    assert words in report.reason
    assert report.reason.isprintable()
    assert (report.checks[-1].name, report.checks[-1].ok) == ("file", False)
    assert (report.p95_ms, report.onnxruntime) == (None, "")


def test_nothing_the_child_started_outlives_the_gate(path: Path, child: Child) -> None:
    sleep = ["sleep", f"60.{os.getpid()}"]
    child(f"import subprocess; subprocess.Popen({sleep})")
    report = gate(path, GateSettings(timeout_s=1.0))

    assert report.reason == "not finished after gate.timeout_s = 1 s"
    sleeping = lambda: [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == sleep]  # noqa: E731
    until(lambda: not sleeping(), what="what it started is gone")


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
    [
        *({"ok": False}, {"digest": "0" * 64}, {"edge_runtime": "0"}, {"onnxruntime": "0"}),
        *({"family": "another"}, {"session": {}}, b"{ damaged", b'{"model":"\xff"}'),
    ],
    ids=str,
)
def test_a_kept_report_of_something_else_is_not_trusted(
    path: Path, tmp_path: Path, children: list[object], change: dict | bytes
) -> None:
    proven(path, GateSettings(), session=SessionSettings(max_batch=8), state_dir=tmp_path)
    (kept,) = (tmp_path / "gate").iterdir()
    damaged = isinstance(change, bytes)
    kept.write_bytes(change if damaged else json.dumps(json.loads(kept.read_text()) | change).encode())

    proven(path, GateSettings(), session=SessionSettings(max_batch=8), state_dir=tmp_path)
    assert len(children) == 2


def test_other_bounds_and_other_bytes_are_proven_anew(path: Path, tmp_path: Path, children: list[object]) -> None:
    prove(path, tmp_path)
    prove(path, tmp_path, GateSettings(p95_ms=500.0))
    for session in (SessionSettings(max_batch=8), SessionSettings(intra_op_threads=2)):
        for _ in range(2):
            proven(path, GateSettings(p95_ms=500.0), session=session, state_dir=tmp_path)
    write_means_bundle(path, msgspec.structs.replace(means_manifest(), version="1.0.1"))
    prove(path, tmp_path)

    assert len(children) == 5


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize(
    "spoil", [lambda kept: kept.chmod(kept.stat().st_mode | 0o020), lambda kept: os.chown(kept, 65534, -1)]
)
def test_a_report_that_somebody_else_can_have_written_is_not_trusted(
    path: Path, tmp_path: Path, children: list[object], place: str, spoil: Callable[[Path], None]
) -> None:
    prove(path, tmp_path)
    folder = tmp_path / "gate"
    (kept,) = folder.iterdir()
    assert [stat.S_IMODE(found.stat().st_mode) for found in (folder, kept)] == [0o700, 0o600]
    try:
        spoil(kept if place == "file" else folder)
    except PermissionError:
        pytest.skip("only root can give a file away")

    prove(path, tmp_path)
    assert len(children) == 2


def test_reports_are_not_written_through_links_or_into_somebody_elses_folder(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "state").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state" / "gate").symlink_to(tmp_path / "elsewhere")
    prove(path, tmp_path / "state")
    assert list((tmp_path / "elsewhere").iterdir()) == []

    prove(path, tmp_path)
    (kept,) = (tmp_path / "gate").iterdir()
    partial, victim = kept.with_name(kept.name + ".part"), tmp_path / "victim"
    victim.write_text("mine")
    partial.symlink_to(victim)
    prove(path, tmp_path, GateSettings(p95_ms=500.0))
    assert victim.read_text() == "mine"
    assert list((tmp_path / "gate").iterdir()) == [kept]
    assert [record.getMessage() for record in caplog.records] == ["gate_report_not_kept"]


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
    judged, run_child = read(path), runner.run

    def swap_around(*arguments: object, **options: float) -> object:
        if moment == "before":
            hostile.bundle_of(path, hostile.with_external_data("x"))
        ended = run_child(*arguments, **options)
        hostile.bundle_of(path, hostile.with_external_data("x"))
        return ended

    monkeypatch.setattr(runner, "run", swap_around)
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


@pytest.mark.parametrize("key", ["memory_mb", "cpu_s", "timeout_s", "p95_ms"])
@pytest.mark.parametrize("value", ["0", "1_000_000_000_000", "inf", "nan"])
def test_a_bound_beyond_reason_is_an_error_of_the_configuration(tmp_path: Path, key: str, value: str) -> None:
    from daemon import write_config

    with pytest.raises(ConfigError, match=f"gate.{key}"):
        load(write_config(tmp_path, "mqtt://127.0.0.1:1", more=f"[gate]\n{key} = {value}"))


def test_the_largest_bounds_can_be_set(path: Path) -> None:
    assert gate(path, GateSettings(memory_mb=1_000_000, cpu_s=3600, timeout_s=3600, p95_ms=3_600_000)).ok


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, full of modules that tell when they are run."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("msgspec", "numpy", "onnxruntime", "ctypes", "edge_runtime"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    monkeypatch.chdir(here)
    return tmp_path / "sprung"


def test_no_module_of_the_current_directory_is_run(path: Path, trap: Path) -> None:
    from edge_runtime.device.runtime import attempt

    assert gate(path).ok
    assert attempt().imported
    assert not trap.exists()


def test_what_onnxruntime_prints_is_no_report(path: Path) -> None:
    """The name of a node that fails, which ONNX Runtime prints, has the lines of a report in it."""
    lines = [msgspec.json.encode(room.Line(check=room.Check(name, True, "\x1b[2J", 1.0))).decode() for name in CHECKS]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Ceil", ["largest"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["one"], to=TensorProto.INT64),
        helper.make_node("Sub", ["one", "much"], ["index"]),
        helper.make_node("Gather", ["none", "index"], ["picked"], axis=0, name="\n".join(["", *lines, ""])),
        helper.make_node("Add", ["none", "picked"], ["extra"]),
    ]
    hostile.bundle_of(path, hostile.model_with(nodes, [helper.make_tensor("much", TensorProto.INT64, [], [1000])]))
    report = gate(path)

    assert [(check.name, check.ok) for check in report.checks][2:] == [("policy", True), ("session", False)]
    assert "Non-zero status code" in report.reason
    assert "\x1b" not in "".join(check.detail for check in report.checks)


def test_texts_of_a_report_cannot_command_a_terminal(path: Path, child: Child) -> None:
    line = msgspec.json.encode(room.Line(check=room.Check("file", False, "a\x1b[2J\n\u202eb", 1.0))).decode()
    child(f"import os, sys; os.write(int(sys.argv[1]), {line.encode()!r})")

    assert gate(path).reason == r"a\x1b[2J\n\u202eb"


@pytest.mark.parametrize("words", ["libgomp.so.1: cannot allocate memory in static TLS block", "annot allocate memory"])
def test_an_import_that_fails_is_not_taken_for_a_model_that_needs_too_much(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "onnxruntime.py").write_text(f"raise ImportError({words!r})\n")
    monkeypatch.syspath_prepend(tmp_path / "fake")

    assert gate(path).reason.startswith(f"onnxruntime cannot be imported ({words}); install it with")


def gate_in_the_background(path: Path) -> tuple[subprocess.Popen, psutil.Process]:
    """A process that waits for its gate, and the gate's child, busy with a model without end."""
    hostile.bundle_of(path, hostile.endless_loop())
    code = "import sys; from pathlib import Path; from edge_runtime.model.gate import gate; gate(Path(sys.argv[1]))"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, path],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(path.parent)},
        stderr=subprocess.PIPE,
    )
    watched = psutil.Process(parent.pid)
    until(watched.children, what="the child runs")
    (busy,) = watched.children()
    until(lambda: busy.cpu_times().user > 0.5, what="the child is busy")
    return parent, busy


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_child_ends_with_its_parent(path: Path, number: signal.Signals) -> None:
    parent, busy = gate_in_the_background(path)
    parent.send_signal(number)
    _, said = parent.communicate(timeout=60)

    until(lambda: not busy.is_running() or busy.status() == psutil.STATUS_ZOMBIE, what="the child is gone")
    assert parent.returncode == -number
    if number == signal.SIGINT:
        assert b"KeyboardInterrupt" in said
        assert list(path.parent.iterdir()) == [path]


def command(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "edge_runtime", *map(os.fsencode, map(str, arguments))],
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
        Daemon(config, "device.toml").close()

    assert len(children) == 1


def test_bundle_verify_takes_bounds_and_session_from_a_configuration(path: Path, tmp_path: Path) -> None:
    from daemon import write_config

    config = write_config(tmp_path, "mqtt://127.0.0.1:1", more="[gate]\np95_ms = 0.000001")
    config.write_text(config.read_text().replace('bundle = "means.edge"', 'bundle = "means.edge"\nmax_batch = 8'))
    assert command("bundle", "verify", path).returncode == 0

    done = command("bundle", "verify", path, "--config", config, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["session"]["max_batch"]) == (1, 8)
    assert found["reason"].endswith(" ms here, allowed 1e-06 ms, as gate.p95_ms says")


def test_bundle_verify_speaks_json_also_of_a_file_it_cannot_read(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none.edge", "No such file or directory"), (tmp_path, "Is a directory")):
        done = command("bundle", "verify", path, "--json")
        found = json.loads(done.stdout)

        assert (done.returncode, done.stderr, found["ok"], found["digest"]) == (1, "", False, "")
        assert found["reason"] == found["checks"][0]["detail"] == f"cannot be read: {words}"


def test_a_path_that_is_not_utf_8_is_no_obstacle(tmp_path: Path) -> None:
    path = write_means_bundle(tmp_path / "plain.edge").rename(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.edge"))

    text, document = command("bundle", "verify", path), command("bundle", "verify", path, "--json")
    assert (text.returncode, text.stderr) == (0, "")
    assert json.loads(document.stdout)["bundle"] == str(tmp_path / r"m\udcff.edge")
