"""What the packages offer is what `__all__` says, and nothing public comes in by accident."""

from __future__ import annotations

import importlib
import pkgutil
import types

import pytest

PUBLIC = {
    "edge_runtime": ["__version__"],
    "export": [],
    "edge_runtime.testing": ["ManualClock", "MemoryClient", "MemoryRecorder", "ModelOfMeans"],
}
ROOMS = ["stream", "model", "delivery", "monitor", "mqtt", "device", "demo"]


@pytest.mark.parametrize("package", PUBLIC)
def test_the_public_names_of_a_package_are_what_it_says(package: str) -> None:
    module = importlib.import_module(package)
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
        and getattr(value, "__module__", package) == package
    }  # fmt: skip

    assert sorted(module.__all__) == sorted(PUBLIC[package])
    assert own <= set(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_entered_by_its_files_its_init_is_empty(room: str) -> None:
    module = importlib.import_module(f"edge_runtime.{room}")
    names = {name for name in vars(module) if not name.startswith("_")}

    assert names <= {info.name for info in pkgutil.iter_modules(module.__path__)}
