"""The daemon's command, and how every command ends; without click, which a service has no use for while it starts.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_runtime.errors import ConfigError, EdgeRuntimeError
from edge_runtime.stop import StopSignal

FAILED, WRONG_USAGE = 1, 2


def exit_code(command: Callable[[], int]) -> int:
    """What the command returns; an error raised on purpose is one line on stderr, a reader that has gone is none."""
    try:
        return command()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at exit
        return FAILED
    except EdgeRuntimeError as error:
        sys.stderr.write(f"error: {error}\n")
        return WRONG_USAGE if isinstance(error, ConfigError) else FAILED


def run(config: Path, *, as_json: bool) -> int:
    """Run the daemon until it is asked to stop, then print what became of every message."""
    stop = StopSignal()  # before the slow imports
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # noqa: TID251  for numpy, whose idle threads spin at the start
    with _collecting_nothing():
        from edge_runtime.config import load
        from edge_runtime.daemon import Daemon
        from edge_runtime.logs import to_stderr
        from edge_runtime.supervisor import died, watch_threads

        to_stderr()
        watch_threads()
        daemon = Daemon(load(config), str(config))
    try:
        summary = daemon.run(stop)
    except Exception as error:  # noqa: BLE001  the edge of the main thread
        died("main", error)
    import msgspec

    from edge_runtime import report

    sys.stdout.buffer.write((msgspec.json.encode(summary) if as_json else report.summary(summary).encode()) + b"\n")
    sys.stdout.flush()
    code = 0 if summary.balanced else FAILED
    if not summary.drained:
        os._exit(code)  # a model may still be running on the worker, which ONNX Runtime does not survive at exit
    return code


@contextmanager
def _collecting_nothing() -> Iterator[None]:
    """What a start makes stays, and is frozen at its end: until then the collector would find nothing in it."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
