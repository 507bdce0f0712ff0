from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_runtime.device.storage import LEAST_FREE_BYTES, state_folder
from edge_runtime.findings import Finding

GIGABYTE = 1_000_000_000


def examine(folder: Path, *mounts: str, free: int = GIGABYTE) -> dict[str, Finding]:
    """mounts: "point type" each."""
    table = folder.parent / "mounts" if folder.parent.is_dir() else folder.parent.parent / "mounts"
    lines = (
        f"dev {point.replace(' ', chr(92) + '040')} {kind} rw 0 0" for point, kind in (m.rsplit(" ", 1) for m in mounts)
    )
    table.write_text("\n".join(["rootfs / ext4 rw 0 0", *lines]))
    return {found.name: found for found in state_folder(folder, mounts=table, free_bytes=lambda _: free)}


def test_a_folder_of_ours_on_a_disk_is_ok_and_stays_empty(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    found = examine(folder)

    assert [finding.status for finding in found.values()] == ["ok", "ok", "ok"]
    assert "mode 0700" in found["state_dir"].found
    assert found["mount"].found == "ext4 at /"
    assert list(folder.iterdir()) == []


def test_a_folder_that_can_be_made_is_ok_and_not_made(tmp_path: Path) -> None:
    found = examine(tmp_path / "a" / "state")

    assert found["state_dir"].status == "ok"
    assert f"can be made in {tmp_path}" in found["state_dir"].found
    assert not (tmp_path / "a").exists()


def test_a_file_in_its_place_or_on_the_way_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "state"):
        found = state_folder(folder, mounts=tmp_path / "none")

        assert [(f.name, f.status) for f in found] == [("state_dir", "fail")]
        assert "file" in found[0].found


def test_a_link_to_itself_and_a_name_too_long_fail(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")

    assert [f.status for f in state_folder(tmp_path / "loop")] == ["fail"]
    assert [f.status for f in state_folder(tmp_path / ("x" * 300))] == ["fail"]


def test_a_folder_that_cannot_be_written_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc takes no files, from root either."""
    (found,) = state_folder(Path("/proc"))
    assert (found.status, "cannot write there" in found.found) == ("fail", True)
    assert "chown" in found.advice

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (found,) = state_folder(Path("/proc/none/state"))
    assert (found.status, "cannot make it in /proc" in found.found) == ("fail", True)


def test_a_folder_open_to_every_user_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o777)
    found = examine(folder)

    assert found["state_dir"].status == "warn"
    assert found["state_dir"].advice == f"chmod o-w {folder}"


def test_a_disk_that_is_nearly_full_is_a_warning(tmp_path: Path) -> None:
    assert examine(tmp_path / "s", free=LEAST_FREE_BYTES)["disk"].status == "ok"
    assert examine(tmp_path / "s", free=LEAST_FREE_BYTES - 1)["disk"].status == "warn"


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [("ext4", "ok", "ext4"), ("tmpfs", "warn", "every restart"), ("overlay", "warn", "container")],
)
def test_what_does_not_outlive_a_restart_is_a_warning(tmp_path: Path, kind: str, status: str, words: str) -> None:
    folder = tmp_path / "with space" / "state"
    folder.mkdir(parents=True)
    found = examine(folder, f"{tmp_path}/with ext4", f"{tmp_path}/with space ext2", f"{tmp_path}/with space {kind}")

    assert found["mount"].status == status
    assert words in found["mount"].found
    assert f"at {tmp_path}/with space" in found["mount"].found


def test_mounts_that_cannot_be_read_are_a_warning(tmp_path: Path) -> None:
    found = state_folder(tmp_path / "state", mounts=tmp_path / "none")

    assert [(f.name, f.status) for f in found if f.status != "ok"] == [("mount", "warn")]
