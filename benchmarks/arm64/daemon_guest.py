"""The guest that is the daemon: `Daemon.run` over a socket, fed with recorded reads; each of its rounds is counted.

`python -m benchmarks.arm64.daemon_guest`, in a folder that holds the recording and the configuration.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.arm64.far_end import FarEnd, Read, Recording, Report
from export.arm64.counter import mark

if TYPE_CHECKING:
    from edge_runtime.daemon import Daemon

CONFIG = Path("daemon.toml")
PORT = "{port}"
TICK_NS = 10_000
MONOTONIC_NS, UNIX_NS = 1_000_000_000_000, 1_790_000_000_000_000_000


class Feeder:
    """The stop signal of a daemon, which it looks at before every round: the place to play the broker, uncounted."""

    daemon: Daemon

    def __init__(self, far_end: FarEnd, reads: Iterator[Read]) -> None:
        self._far_end, self._reads = far_end, reads
        self._read: Read | None = None

    @property
    def asked(self) -> bool:
        """Whether nothing is left to feed."""
        if self._read is not None and self._read.is_counted:
            mark()
        self._far_end.serve()
        if not self._far_end.is_subscribed:
            return False
        if self._read is not None:
            self._far_end.settle()
        self._read = next(self._reads, None)
        if self._read is None:
            self._far_end.close()
            return True
        self._far_end.send(self._read, self.daemon.lanes["p"].connection.client.fileno())
        if self._read.is_counted:
            mark()
        return False


def main() -> None:
    tick()
    from edge_runtime import daemon  # noqa: PLC0415  what it imports takes its clocks when imported
    from edge_runtime.config import load  # noqa: PLC0415
    from edge_runtime.model import bundle  # noqa: PLC0415

    # The gate's child could not be started here: Linux need not know how to run aarch64 programs.
    daemon.proven = lambda path, _settings, **_: bundle.read(path)  # type: ignore[attr-defined]
    recording = Recording.load()
    far_end = FarEnd(recording)
    CONFIG.write_text(CONFIG.read_text().replace(PORT, str(far_end.port)))
    feeder = Feeder(far_end, iter(recording.reads))
    feeder.daemon = daemon.Daemon(load(CONFIG), str(CONFIG))
    summary = feeder.daemon.run(feeder)  # type: ignore[arg-type]
    rounds = (1,) * sum(read.is_counted for read in recording.reads)
    Report(tuple(far_end.results), rounds, is_balanced=summary.balanced).save()


def tick() -> None:
    """Clocks that move by TICK_NS whenever they are read: what is due, and how many digits a time has, never varies."""
    time.monotonic_ns = itertools.count(MONOTONIC_NS, TICK_NS).__next__
    time.time_ns = itertools.count(UNIX_NS, TICK_NS).__next__


if __name__ == "__main__":
    main()
