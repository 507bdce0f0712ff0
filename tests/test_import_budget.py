"""What a plain `edge-runtime run` may import, and how much memory and CPU time that may take.

Memory on a small device is import cost. Of times, only the ratio to the libraries' own is held.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from importlib import resources
from typing import Any

import pytest

from benchmarks.memory import import_cost
from edge_runtime.demo.show import BUNDLE, configuration

LIBRARIES = {"edge_runtime", "msgspec", "numpy", "onnxruntime", "paho"}
WHERE_INSTALLED = {"typing_extensions", "tomli"}
"""msgspec imports the one where it is there; Python 3.10 needs the other to read the config."""
OUR_STDLIB = {
    "array",  # latency histograms
    "bz2", "lzma", "shutil", "zipfile",  # the bundle is a zip; zipfile imports the others
    "encodings", "stringprep", "unicodedata",  # idna, which every look-up of a host's name loads
    "faulthandler",  # the supervisor's last words
    "fcntl", "resource", "selectors", "signal", "subprocess", "tempfile",  # the gate's child
    "gc", "heapq", "queue",
    "sqlite3",  # the store
    "tomllib",
}  # fmt: skip
"""What our code imports of the standard library beyond what its libraries do: those that are worth a reason."""
NEVER = {
    "amqtt", "argparse", "asyncio", "cbor2", "click", "concurrent", "csv", "difflib", "doctest", "export", "html",
    "matplotlib", "multiprocessing", "onnx", "optparse", "pdb", "prometheus_client", "pydoc", "rich", "simdjson",
    "starlette", "statistics", "torch", "unittest", "uvicorn", "xml", "yaml",
}  # fmt: skip
OURS_MIB, ALL_MIB, ANONYMOUS_MIB = 8.0, 64.0, 36.0
"""Added by imports to the resident set: by ours beyond the libraries, in all, and the anonymous part of all. About a
third more than was measured: 5.2, 48.0 and 26.5 MiB (ONNX Runtime 1.32, numpy 2.4, Python 3.11)."""
MODULES_OF_OURS = 120
CPU_RATIO, PAIRS = 2.0, 5
"""CPU time of a run's imports to that of its libraries alone: 1.31 was measured."""

RUN = """
import sys
at_start = set(sys.modules)
from edge_runtime.__main__ import main
from edge_runtime.daemon import Daemon

def serve_nothing(daemon, stop):
    daemon.close()
    from json import dumps
    loaded = set(sys.modules) - at_start
    print(dumps({"modules": sorted(loaded - {"json", "json.decoder", "json.encoder", "json.scanner", "_json"})}))
    sys.exit(0)

Daemon.run = serve_nothing
main()
"""


def tops(modules: list[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


def outside(names: set[str]) -> set[str]:
    """Of no standard library."""
    return {name for name in names if name not in sys.stdlib_module_names}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The modules of `edge-runtime run` with the demo's config, when its bundle is proven and its daemon stands."""
    folder = tmp_path_factory.mktemp("demo")
    with resources.as_file(resources.files("edge_runtime.demo") / BUNDLE) as bundle:
        text = configuration("n", "mqtt://127.0.0.1:1", "5", state_dir=folder / "state", bundle=bundle)
    (folder / "demo.toml").write_text(text)
    command = [sys.executable, "-c", RUN, "run", str(folder / "demo.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)["modules"]
    return found


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, dict[str, Any]]]:
    """Of both, run in turn."""
    return [{subject: import_cost(subject) for subject in ("libraries", "run")} for _ in range(PAIRS)]


@pytest.fixture(scope="module")
def costs(pairs: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    return pairs[-1]


def test_a_run_loads_the_four_libraries_it_needs_and_no_other(built: list[str]) -> None:
    assert outside(tops(built)) - WHERE_INSTALLED == LIBRARIES


def test_a_run_loads_nothing_of_what_other_commands_and_the_workstation_need(built: list[str]) -> None:
    assert tops(built) & NEVER == set()
    assert not {"edge_runtime.cli", "edge_runtime.report"} & set(built)
    assert not [name for name in built if name.startswith(("edge_runtime.demo", "numpy.f2py"))]


def test_of_the_standard_library_our_code_adds_to_its_libraries_only_what_has_a_reason(
    built: list[str], costs: dict[str, dict[str, Any]]
) -> None:
    added = tops(built) - tops(costs["libraries"]["modules"]) - LIBRARIES - WHERE_INSTALLED

    assert {name for name in added if not name.startswith("_")} <= OUR_STDLIB
    assert {"sqlite3", "zipfile"} <= added


def test_what_imports_add_to_memory_stays_within_its_budget(costs: dict[str, dict[str, Any]]) -> None:
    libraries, run = costs["libraries"], costs["run"]

    assert 0 < run["rss_mib"] - libraries["rss_mib"] < OURS_MIB
    assert 20 < run["rss_mib"] < ALL_MIB
    assert 10 < run["anonymous_mib"] < ANONYMOUS_MIB


def test_imports_take_less_than_twice_the_cpu_time_of_the_libraries_alone(
    pairs: list[dict[str, dict[str, Any]]],
) -> None:
    ratios = [pair["run"]["cpu_ms"] / pair["libraries"]["cpu_ms"] for pair in pairs]

    assert 1 < statistics.median(ratios) < CPU_RATIO


def test_our_own_modules_are_about_as_many_as_before(built: list[str]) -> None:
    ours = [name for name in built if name.startswith("edge_runtime")]

    assert 80 < len(ours) < MODULES_OF_OURS
