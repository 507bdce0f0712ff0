from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
from bundles import means_model, write_means_bundle

from edge_runtime.device import runtime
from edge_runtime.device.runtime import Tried, attempt, installed, judge, trouble

IMPORTED = '{"type": "Imported", "version": "1.2.3", "providers": ["CPUExecutionProvider"]}'


Run = Callable[..., Tried]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """An attempt in which another program runs in the child's place; what it says is its report."""

    def attempt_with(program: str, **options: float) -> Tried:
        says = "say = lambda text: os.write(int(sys.argv[1]), text.encode() + b'\\n')"
        monkeypatch.setattr(runtime, "CHILD", ("-c", f"import os, signal, sys, time; {says}; {program}"))
        return attempt(**options)

    return attempt_with


def test_the_installed_runtime_is_imported_and_runs_a_bundle_in_a_child(tmp_path: Path) -> None:
    tried = attempt(write_means_bundle(tmp_path / "with space.edge"))
    (found,) = judge(tried, installed(), "x86_64")

    assert tried.imported is not None
    assert tried.imported.version == onnxruntime.__version__
    assert tried.ran is not None
    assert (tried.ran.model, tried.ran.golden_error) == ("means@1.0.0", 0.0)
    assert found.status == "ok"
    assert f"onnxruntime {onnxruntime.__version__}: imported; " in found.found


@pytest.mark.parametrize("name", ["SIGILL", "SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_child_that_dies_is_a_finding_with_the_signals_name(run: Run, name: str) -> None:
    tried = run(f"os.kill(os.getpid(), signal.{name})")
    (found,) = judge(tried, {"onnxruntime": "1.30.0"}, "aarch64")

    assert (found.name, found.status) == ("onnxruntime", "fail")
    assert found.found == f"onnxruntime 1.30.0: the import died with {name}"
    assert ("memory" if name == "SIGKILL" else "another version") in found.advice


def test_a_death_after_the_import_is_told_from_one_at_the_import(run: Run) -> None:
    tried = run(f"say({IMPORTED!r}); os.kill(os.getpid(), signal.SIGILL)")

    assert trouble(tried) == "running a model died with SIGILL"


@pytest.mark.parametrize(
    ("version", "machine", "source"),
    [("1.21.0", "aarch64", "microsoft/onnxruntime#23957"), ("1.23.0", "aarch64", "KleidiAI"), ("1.21.0", "x86_64", "")],
)
def test_versions_known_to_crash_are_named_also_when_they_did_not(
    run: Run, version: str, machine: str, source: str
) -> None:
    died, ran = run("os.kill(os.getpid(), signal.SIGILL)"), run(f"say({IMPORTED!r})")
    (dead,), (alive,) = (judge(tried, {"onnxruntime": version}, machine) for tried in (died, ran))

    assert (dead.status, alive.status) == ("fail", "warn" if source else "ok")
    assert source in dead.advice
    assert source in alive.found


def test_what_is_printed_is_no_report_and_a_silent_child_is_trouble(run: Run) -> None:
    lie = IMPORTED.replace("1.2.3", "6.6.6")
    noisy = run(f"print({lie!r}, flush=True); say({IMPORTED!r}); print({lie!r})")

    assert noisy.imported is not None
    assert noisy.imported.version == "1.2.3"
    assert trouble(noisy) == ""
    assert trouble(run(f"print({lie!r})")) == "said nothing"


def test_a_child_that_fails_hangs_or_cannot_start_is_trouble(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trouble(run(r"sys.exit('bad \x1b luck')")) == r"the import ended with code 1: bad \x1b luck"
    assert trouble(run("time.sleep(60)", timeout_s=0.3)) == "the import did not end within 0.3 s"
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert trouble(attempt()).startswith("the import could not be started: No such file")


def test_a_model_that_does_not_run_is_an_error_in_words(tmp_path: Path) -> None:
    wide = write_means_bundle(tmp_path / "wide.edge", model=means_model(length=4, channels=3))

    assert "manifest says" in trouble(attempt(wide))


def test_without_onnxruntime_the_advice_is_which_extra_to_install() -> None:
    (found,) = judge(Tried(error="onnxruntime cannot be imported (No module named 'onnxruntime')"), {}, "aarch64")

    assert found.status == "fail"
    assert found.found.startswith("not installed: ")
    assert "pip install 'edge-runtime[cpu]'" in found.advice


def distribution(folder: Path, name: str, version: str, files: tuple[str, ...]) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_two_distributions_of_the_same_module_are_a_failure_of_their_own(run: Run, tmp_path: Path) -> None:
    distribution(tmp_path, "onnxruntime", "1.32.0", ("onnxruntime/__init__.py",))
    distribution(tmp_path, "onnxruntime_gpu", "1.31.1", ("onnxruntime/__init__.py",))
    distribution(tmp_path, "onnxruntime-extensions", "0.15.0", ("onnxruntime_extensions/__init__.py",))
    (tmp_path / "broken-1.0.dist-info").mkdir()
    found = installed([str(tmp_path)])

    assert found == {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    once, twice = judge(run(f"say({IMPORTED!r})"), found, "x86_64")
    assert (once.status, twice.name, twice.status) == ("ok", "onnxruntime.twice", "fail")
    assert "onnxruntime 1.32.0, onnxruntime-gpu 1.31.1" in twice.found
    assert "uninstall them all" in twice.advice


def test_telemetry_is_off_in_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in place of the real one tells what it was imported under."""
    (tmp_path / "onnxruntime.py").write_text(
        "import os\n__version__ = os.environ['ORT_DISABLE_TELEMETRY']\nget_available_providers = list\n"
    )
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    tried = attempt()

    assert tried.imported is not None
    assert tried.imported.version == "1"
