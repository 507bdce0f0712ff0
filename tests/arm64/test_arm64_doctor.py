"""A new device: all that the wheel asks for is there and imports, and doctor finds nothing wrong with the board."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from guest import EVERY, LIMIT_S, TIMEOUT_S, Guest

from export.arm64.__main__ import main
from export.arm64.userland import SUITES

pytestmark = pytest.mark.timeout(TIMEOUT_S)


@pytest.mark.parametrize("suite", SUITES)
def test_make_arm64_installs_the_wheel_where_everything_is_that_it_asks_for(
    suite: str, arm64: Callable[[str], Guest], wheel: Path
) -> None:
    folder = arm64(suite).where.folder

    done = CliRunner().invoke(main, [suite, "--wheel", str(wheel)])

    assert done.exit_code == 0, done.output
    assert done.stdout == f"{folder}\n"


@pytest.mark.parametrize(("suite", "core"), EVERY)
def test_doctor_finds_nothing_wrong_with_the_board_and_knows_what_its_core_can_do(
    suite: str, core: str, arm64: Callable[[str], Guest]
) -> None:
    done = arm64(suite).run(core, ["-m", "edge_runtime", "doctor", "--json"], limit_s=LIMIT_S)

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    status = {finding["name"]: finding["status"] for finding in found["findings"]}
    texts = {finding["name"]: finding["found"] for finding in found["findings"]}
    assert found["ok"]
    assert "fail" not in status.values()
    assert "aarch64" in texts["architecture"]
    assert texts["python"].startswith(SUITES[suite])
    assert ("no dot product" in texts["processor"]) == (core != "a76")
    assert "dot product" in texts["processor"]
    assert "pump-vibration@1.0.0 runs" in texts["onnxruntime"]
