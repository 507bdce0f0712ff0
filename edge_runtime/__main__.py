"""The edge-runtime command."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from edge_runtime.cli_run import exit_code, run


def main() -> None:
    """Start the daemon at once when that is plainly what is asked for; click has the word on all else."""
    match sys.argv[1:]:
        case ["run", config, *rest] if rest in ([], ["--json"]) and _is_readable_file(config):
            sys.exit(exit_code(partial(run, Path(config), as_json=bool(rest))))
    from edge_runtime.cli import main as command_line  # noqa: PLC0415  not for a start of the daemon

    command_line(prog_name="edge-runtime")


def _is_readable_file(name: str) -> bool:
    return os.path.isfile(name) and os.access(name, os.R_OK)  # noqa: PTH113  Path raises for some names


if __name__ == "__main__":
    main()
