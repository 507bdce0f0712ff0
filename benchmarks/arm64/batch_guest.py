"""In the guest: the instructions of `Session.predict` by the windows it is given at once.

`python -m benchmarks.arm64.batch_guest BUNDLE WINDOWS…`
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.arm64.moment import fix
from export.arm64.marks import counted


def main(path: str, *sizes: str) -> None:
    fix()
    from edge_runtime.model import bundle, session  # noqa: PLC0415  takes its clock when imported

    found = bundle.read(Path(path))
    model = session.Session(found, session.SessionSettings())
    for size in map(int, sizes):
        counted(partial(model.predict, np.repeat(found.golden.inputs[:1], size, axis=0)))


if __name__ == "__main__":
    main(*sys.argv[1:])
