"""What the packages offer is what `__all__` says, and nothing public comes in by accident."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

PUBLIC = {
    "edge_runtime": ["__version__"],
    "export": [],
    "export.compress": ["Best", "Budget", "Compressed", "compress", "run"],
    "export.recipe": ["Budget", "InputSpec", "Progress", "Recipe", "Split", "Splits", "load", "require_tools"],
    "edge_runtime.testing": ["ManualClock", "MemoryClient", "ModelOfMeans"],
}
ROOMS = ["stream", "model", "delivery", "monitor", "mqtt", "device", "demo", "top"]


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_of_a_module_are_what_it_says(module: str) -> None:
    found = importlib.import_module(module)

    assert sorted(found.__all__) == sorted(PUBLIC[module])
    assert all(hasattr(found, name) for name in found.__all__)


@pytest.mark.parametrize("package", ["edge_runtime", "export"])
def test_a_package_holds_nothing_public_beside_what_it_says(package: str) -> None:
    found = importlib.import_module(package)
    files = {info.name for info in pkgutil.iter_modules(found.__path__)}

    assert {name for name in vars(found) if not name.startswith("_")} - files <= set(found.__all__)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_entered_by_its_files_its_init_is_empty(room: str) -> None:
    module = importlib.import_module(f"edge_runtime.{room}")
    names = {name for name in vars(module) if not name.startswith("_")}

    assert names <= {info.name for info in pkgutil.iter_modules(module.__path__)}
