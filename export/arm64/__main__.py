"""python -m export.arm64 [SUITE…] [--wheel FILE]: build the userlands, and put the project's wheel into them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import click

from edge_runtime.errors import ExportError
from export.arm64 import chroot
from export.arm64.userland import FOLDER, SUITES, Userland, fetch, userland

CHECKED = (
    ("-c", "import edge_runtime.cli, edge_runtime.daemon, edge_runtime.model.gate, onnxruntime"),
    ("-m", "export.arm64.requirements"),
)
"""All that the daemon imports, which compiles it too; that everything the wheel asks for is there."""
CHECK_S = 600.0


@click.command()
@click.argument("suites", nargs=-1, type=click.Choice(list(SUITES)))
@click.option("--wheel", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Of the project.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=FOLDER, show_default=True)
def main(suites: tuple[str, ...], wheel: Path | None, folder: Path) -> None:
    """Build the arm64 SUITES, all of them by default, where they are not built yet; print where they are."""
    try:
        for suite in suites or SUITES:
            found = userland(suite, folder=folder, progress=lambda text: click.echo(text, err=True))
            if wheel:
                fetch(suite, found.root / found.project, [str(wheel)], "--no-deps", "--no-index")
                _check(found)
            click.echo(found.folder)
    except ExportError as error:
        raise click.ClickException(str(error)) from error


def _check(where: Userland) -> None:
    """Raises ExportError when one of CHECKED fails there."""
    if reason := chroot.problem():
        raise ExportError(reason)
    for arguments in CHECKED:
        try:
            done = chroot.ran(where, "a72", [f"/{where.python}", *arguments], limit_s=CHECK_S)
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"{where.suite}: {error}") from error
        if done.returncode:
            raise ExportError(f"{where.suite}: {done.stderr.strip() or f'exit status {done.returncode}'}")


if __name__ == "__main__":
    main()
