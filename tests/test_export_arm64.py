"""What an arm64 userland is built from, and whose fault it is when it cannot be: no emulator is needed here."""

from __future__ import annotations

import http.server
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from edge_runtime.errors import ExportError
from export.arm64 import chroot, requirements, userland
from export.arm64.userland import MissingError, fetch, place_of, run, sweep

CLOSED = "http://127.0.0.1:9/simple"
WHEELS = {"pip": "pip-1.0-py3-none-any.whl", "kernel": "kernel-1.0-cp311-cp311-manylinux_2_17_x86_64.whl"}


def dist(folder: Path, name: str, version: str, *required: str) -> None:
    """Metadata as pip installs it."""
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (place / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {text}" for text in required), "", ""]))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An edge-runtime that asks for other things than the real one."""
    needs = ("kernel>=2; extra == 'cpu'", "gone; platform_machine == 'aarch64'", "cuda; extra == 'gpu'")
    dist(tmp_path, "edge_runtime", "1.0", *needs, "backport; python_version < '3.12'")
    dist(tmp_path, "backport", "3.0")
    dist(tmp_path, "kernel", "1.0", "fast[more]>=1")
    dist(tmp_path, "fast", "1.5", "more>=1; extra == 'more'", "most; extra == 'most'")
    dist(tmp_path, "more", "1.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package index that has a wheel for x86-64 alone."""
    for name, wheel in WHEELS.items():
        (tmp_path / "simple" / name).mkdir(parents=True)
        (tmp_path / "simple" / name / "index.html").write_text(f"<!DOCTYPE html><a href='{wheel}'>{wheel}</a>")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        only(monkeypatch, f"http://127.0.0.1:{server.server_port}/simple")
        yield
        server.shutdown()


def only(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let pip know of no other index."""
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setenv("PIP_RETRIES", "0")


def test_markers_are_judged_by_the_board_and_not_by_this_machine(project: Path) -> None:
    board = {**userland.TARGET, "python_version": "3.13"}

    found = {wanted.name: version for wanted, version in requirements.needed(board)}

    assert found == {"kernel": "1.0", "gone": "", "fast": "1.5", "more": "1.1"}
    assert "backport" in {wanted.name for wanted, _ in requirements.needed({**board, "python_version": "3.11"})}


def test_what_is_missing_or_too_old_is_named(project: Path) -> None:
    unmet = requirements.unmet()

    assert 'kernel>=2; extra == "cpu": found 1.0' in unmet
    assert not [line for line in unmet if line.startswith(("fast", "more", "most", "cuda"))]
    with pytest.raises(ExportError, match="gone not installed"):
        userland.requirements()


def test_an_index_that_cannot_be_reached_is_what_this_machine_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, CLOSED)

    with pytest.raises(MissingError, match="the package index cannot be reached"):
        fetch("bookworm", tmp_path / "site", ["kernel==1.0"])


@pytest.mark.usefixtures("index")
def test_a_wheel_that_there_is_not_for_aarch64_is_a_fault_of_the_packaging(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"No matching distribution found for kernel==1\.0") as caught:
        fetch("bookworm", tmp_path / "site", ["kernel==1.0"])

    assert not isinstance(caught.value, MissingError)


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["no-such-program"], MissingError),
        (["sh", "-c", "echo 'E: Failed to fetch x  Temporary failure' >&2; echo E: over >&2; exit 1"], MissingError),
        (["sh", "-c", "echo E: Unable to locate package python4 >&2; exit 1"], ExportError),
    ],
)
def test_what_a_program_says_tells_a_missing_network_from_a_fault(command: list[str], kind: type[ExportError]) -> None:
    with pytest.raises(ExportError) as caught:
        run(*command)

    assert type(caught.value) is kind
    assert "over" not in str(caught.value)


def test_what_was_not_used_for_a_week_and_what_killed_builds_left_is_deleted(tmp_path: Path) -> None:
    ages_s = {"tools-used": 0.0, "tools-old": userland.UNUSED_S + 60, ".tools-building": 60.0, "other-old": 1e9}
    for name, age_s in (ages_s | {".tools-left": userland.ABANDONED_S + 60}).items():
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)

    sweep(tmp_path, "tools")

    assert {path.name for path in tmp_path.iterdir()} == {"tools-used", ".tools-building", "other-old"}


def test_a_userland_that_is_looked_for_counts_as_used(tmp_path: Path) -> None:
    found = place_of("bookworm", folder=tmp_path).folder
    found.mkdir()
    os.utime(found, (0, 0))

    assert place_of("bookworm", folder=tmp_path).is_built
    assert time.time() - found.stat().st_mtime < 60


def test_without_root_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert "needs root" in userland.problem()
    assert "needs root" in chroot.problem()
