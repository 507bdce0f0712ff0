"""The arm64 systems, each built once for all tests; EDGE_ARM64=long for all of them.

Skipped with the reason where root, binfmt_misc, mmdebstrap, the emulator or the network is missing; whatever else
keeps a system from being built is a fault of the packaging, and fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import guest
import pytest
from guest import Guest, once

from export.arm64.userland import MissingError

StartSystem = Callable[[str], Guest]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := guest.problem():
        pytest.skip(reason)
    return guest.built_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def arm64(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> StartSystem:
    """The system of a suite."""
    folder = tmp_path_factory.mktemp("arm64")

    @once
    def system(suite: str) -> Guest:
        try:
            return guest.system(suite, wheel, folder, print)
        except MissingError as error:
            pytest.skip(f"no arm64 system: {error}")

    return system
