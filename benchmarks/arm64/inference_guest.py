"""In the guest: the instructions of a prediction by each bundle, and what it gives for its golden windows.

`python -m benchmarks.arm64.inference_guest BUNDLE…`: marks before and after each of RUNS predictions of one window, as
the daemon makes them; one line of JSON for each bundle in FOUND.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.arm64.moment import fix
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.model.bundle import Bundle, read
from export.arm64.marks import counted

if TYPE_CHECKING:
    from edge_runtime.model.session import Session

FOUND = "found.jsonl"


class Found(msgspec.Struct, frozen=True):
    """refused: why the bundle was, "" when it was not. outputs: (n, ...) of its golden windows, one by one."""

    refused: str = ""
    outputs: list[Any] = []


def main(paths: list[str]) -> None:
    fix()
    with Path(FOUND).open("wb") as lines:
        lines.writelines(msgspec.json.encode(_run(read(Path(path)))) + b"\n" for path in paths)


def _run(bundle: Bundle) -> Found:
    from edge_runtime.model.session import Session, SessionSettings  # noqa: PLC0415  takes its clock
    from export.trial import golden_outputs  # noqa: PLC0415

    try:
        session = Session(bundle, SessionSettings())
    except EdgeRuntimeError as error:
        counted(_nothing)
        return Found(refused=str(error))
    counted(_prediction(session, bundle))
    return Found(outputs=golden_outputs(bundle).tolist())


def _prediction(session: Session, bundle: Bundle) -> Callable[[], object]:
    window = bundle.golden.inputs[:1]
    if not session.is_streaming:
        return partial(session.predict, window)
    return partial(session.step, window, [session.initial()])


def _nothing() -> None: ...


if __name__ == "__main__":
    main(sys.argv[1:])
