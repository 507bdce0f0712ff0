"""The device package's unit tests, run by pytest in an arm64 system on the wheel that is installed there."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest
from guest import CHECKOUT, LONG, OUT, ROOT, SYSTEMS, TIMEOUT_S, Guest, once
from unit_files import EMULATOR, LEFT_OUT, SHORT, SKIPPED, TESTS, unit_files

LIMIT_S = 7200 if LONG else 600
WHERE = "import edge_runtime; print(edge_runtime.__file__)"
FILES = unit_files() if LONG else list(SHORT)

pytestmark = pytest.mark.timeout(LIMIT_S + TIMEOUT_S)


class Tally(msgspec.Struct):
    """Of one file. skipped, failed: why and what went wrong, by test."""

    passed: int = 0
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}


@pytest.fixture(scope="session")
def tallies(arm64: Callable[[str], Guest], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Tally]]:
    """What became of the tests on a core, of one pytest in the guest, since an emulated start takes seconds."""
    deselected = [f"--deselect=tests/{name}" for name in EMULATOR]

    @once
    def run(suite: str, core: str) -> dict[str, Tally]:
        out = tmp_path_factory.mktemp("units")
        done = arm64(suite).run(core, [*command(CHECKOUT, OUT), *deselected], limit_s=LIMIT_S, out=out)
        assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
        return tallied(out / "units.xml")

    return run


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], dict[str, Tally]]:
    """What becomes of them on this machine."""

    @once
    def run() -> dict[str, Tally]:
        out = tmp_path_factory.mktemp("units-here")
        start = [sys.executable, *command(str(ROOT), str(out))]
        done = subprocess.run(start, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
        return tallied(out / "units.xml")

    return run


def command(checkout: str, out: str) -> list[str]:
    """Of Python."""
    options = ["-p", "no:cacheprovider", "-q", "--tb=short", f"--junitxml={out}/units.xml", "--rootdir", checkout]
    options += ["-c", f"{checkout}/pyproject.toml", "-o", "pythonpath=tests tests/integration"]
    return ["-m", "pytest", *options, *(f"{checkout}/tests/{name}" for name in FILES)]


def tallied(path: Path) -> dict[str, Tally]:
    """By file below tests/."""
    found = {name: Tally() for name in FILES}
    for case in ET.parse(path).iter("testcase"):
        module = case.get("classname", "").removeprefix("tests.").replace(".", "/")
        tally = found[next(name for name in found if f"{module}/".startswith(f"{name.removesuffix('.py')}/"))]
        if (bad := case.find("failure")) is not None or (bad := case.find("error")) is not None:
            tally.failed[case.get("name", "")] = (bad.text or "")[-2000:]
        elif (skipped := case.find("skipped")) is not None:
            tally.skipped[case.get("name", "")] = skipped.get("message", "")
        else:
            tally.passed += 1
    return found


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("suite", "core"), SYSTEMS if LONG else [("bookworm", "a72")])
def test_the_unit_tests_pass(suite: str, core: str, name: str, tallies: Callable[..., dict[str, Tally]]) -> None:
    tally = tallies(suite, core)[name]

    assert not tally.failed, "\n".join(f"{test}:\n{text}" for test, text in tally.failed.items())
    assert tally.passed


@pytest.mark.parametrize(("suite", "core"), SYSTEMS if LONG else [("bookworm", "a72")])
def test_what_they_skip_is_skipped_here_too_or_has_a_reason(
    suite: str, core: str, tallies: Callable[..., dict[str, Tally]], here: Callable[[], dict[str, Tally]]
) -> None:
    there = {(name, test): why for name, tally in tallies(suite, core).items() for test, why in tally.skipped.items()}
    unexplained = {key: why for key, why in there.items() if not any(map(why.count, SKIPPED))}
    here_too = {(name, test) for name, tally in here().items() for test in tally.skipped} if unexplained else set()

    assert not {key: why for key, why in unexplained.items() if key not in here_too}


@pytest.mark.parametrize(("suite", "core"), SYSTEMS[:1])
def test_what_they_test_is_the_wheel(suite: str, core: str, arm64: Callable[[str], Guest]) -> None:
    done: subprocess.CompletedProcess[str] = arm64(suite).run(core, ["-c", WHERE], limit_s=LIMIT_S)

    assert done.stdout.startswith("/opt/project/edge_runtime/"), done.stderr


def test_what_is_left_out_is_there_and_has_a_reason() -> None:
    for name, reason in EMULATOR.items():
        file, _, test = name.partition("::")
        functions = {node.name for node in ast.walk(ast.parse((TESTS / file).read_text())) if hasattr(node, "name")}
        assert test.partition("[")[0] in functions
        assert reason
    assert all((TESTS / name).is_file() and reason for name, reason in LEFT_OUT.items())
    assert set(SHORT) < set(unit_files())
