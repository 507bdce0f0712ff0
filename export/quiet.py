"""Exporters and quantizers that talk, kept off the terminal; what their errors say, on one line."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

LINE_CHARACTERS = 300


def one_line(error: BaseException) -> str:
    """What a third-party exception says, on one line and not too long."""
    return " ".join(str(error).split())[:LINE_CHARACTERS]


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Drop prints, log lines and deprecations of third-party code; what matters of them is raised as an exception."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(disabled)
