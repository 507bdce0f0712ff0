"""What the project with its extra [cpu] needs, and that in turn, by the metadata of what is installed.

`python -m export.arm64.requirements` in the guest: fails with a line for each requirement that is not met there.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PROJECT, EXTRA = "edge-runtime", "cpu"


def needed(environment: Mapping[str, str]) -> Iterator[tuple[Requirement, str]]:
    """Each requirement whose marker holds, and the version that is installed here, "" when none is.

    environment: of the markers, where it is not this interpreter's. Raises PackageNotFoundError without the project.
    """
    from packaging.requirements import Requirement  # ONNX Runtime needs it, and pip brings its own

    seen, open_ = {(PROJECT, EXTRA)}, [(PROJECT, EXTRA)]
    importlib.metadata.version(PROJECT)
    while open_:
        name, extra = open_.pop()
        for text in importlib.metadata.requires(name) or ():
            wanted = Requirement(text)
            if wanted.marker is not None and not wanted.marker.evaluate({**environment, "extra": extra}):
                continue
            version = _version(wanted.name)
            yield wanted, version
            further = {(wanted.name, of) for of in ("", *wanted.extras)} - seen if version else set()
            seen |= further
            open_ += sorted(further)


def unmet() -> list[str]:
    """By this interpreter."""
    return sorted(
        f"{wanted}: {f'found {version}' if version else 'not installed'}"
        for wanted, version in needed({})
        if not version or not wanted.specifier.contains(version, prereleases=True)
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit("\n".join(unmet()) or 0)
