"""A new device: the wheels import, and doctor finds nothing wrong with the board."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from guest import SYSTEMS, Guest

from export.arm64.userland import SUITES

LIMIT_S = 240


@pytest.mark.parametrize(("suite", "core"), SYSTEMS)
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
