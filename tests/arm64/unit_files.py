"""Which unit tests of the device package are run in an arm64 system, and why others are not."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
FOREIGN = {"benchmarks", "examples", "export", "torch", "measurements", "strangers"}
"""A file that imports one of these is not of the device."""
LEFT_OUT: dict[str, str] = {
    "test_deploy.py": "what systemd and mosquitto make of the files in deploy/ is the same everywhere",
    "test_docs.py": "looks at pages, not at a processor",
    "test_example_subscriber.py": "of the examples",
    "test_cli_latency.py": "needs hdrhistogram, of which there is no aarch64 wheel",
    "test_latency_report.py": "likewise",
    "test_monitor_hdrread.py": "likewise",
}
EMULATOR: dict[str, str] = {
    "test_model_gate.py::test_the_child_sees_an_empty_folder_a_bare_environment_and_its_limits": (
        "the emulator sets no bound on the address space"
    ),
    "test_model_session.py::test_no_telemetry_leaves_the_device": "the emulator has a thread of its own",
    "test_monitor_latency.py::test_recording_costs_less_than_the_budget_of_a_record": "the emulator takes its time",
}
"""Tests, and why they cannot pass under emulation; every reason is the emulator's, none the processor's."""
SKIPPED: dict[str, str] = {
    "could not import 'hdrh": "there is no aarch64 wheel of hdrhistogram",
    "silero-vad is not installed": "its graph is read, not run: that is the same everywhere",
    "mounting a tmpfs is not permitted": "the guest has no program that mounts",
    "needs a file system on a disk": "the guest's temporary files are in memory",
}
"""What tests say that are skipped there and not here, and why that is right."""
SHORT = ("test_stream_window.py", "test_stream_decode.py", "test_model_streaming.py", "test_delivery_journal.py")
"""Arithmetic, ONNX Runtime, SQLite: what a processor could change."""


def unit_files() -> list[str]:
    """Names below tests/, sorted."""
    found = [*TESTS.glob("test_*.py"), *(TESTS / "contract").glob("test_*.py")]
    names = [str(path.relative_to(TESTS)) for path in found if not _imports(path) & FOREIGN]
    return sorted(set(names) - set(LEFT_OUT))


def _imports(path: Path) -> set[str]:
    """The top names of what a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found
