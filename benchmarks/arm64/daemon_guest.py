"""The guest that is the daemon: `Daemon.run` over a socket, fed with recorded reads; each of its rounds is counted.

`python -m benchmarks.arm64.daemon_guest`, in a folder that holds the recording and the configuration.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.arm64.far_end import FarEnd, Read, Recording, Report
from benchmarks.arm64.moment import fix
from export.arm64.marks import mark

if TYPE_CHECKING:
    from edge_runtime.daemon import Daemon

CONFIG = Path("daemon.toml")
PORT = "{port}"


class Feeder:
    """The stop signal of a daemon, which it looks at before every round: the place to play the broker, uncounted.

    rounds: that each counted read took.
    """

    daemon: Daemon

    def __init__(self, far_end: FarEnd, reads: Iterable[Read]) -> None:
        self._far_end, self._coming = far_end, self._feed(reads)
        self._is_counting: bool | None = False
        self.rounds: list[int] = []

    @property
    def asked(self) -> bool:
        """Whether nothing is left to feed."""
        if self._is_counting:
            mark()
        self._is_counting = next(self._coming, None)
        if self._is_counting:
            mark()
        return self._is_counting is None

    def _feed(self, reads: Iterable[Read]) -> Iterator[bool]:
        """Whether the coming round is counted; what the daemon is to read in it is there by then."""
        fileno = self.daemon.lanes["p"].connection.client.fileno
        for _ in self._far_end.connect(fileno):
            yield False
        for read in reads:
            rounds = 0
            for _ in self._far_end.feed(read, fileno()):
                rounds += 1
                yield read.is_counted
            if read.is_counted:
                self.rounds.append(rounds)
        self._far_end.close()


class Now:
    """A thread that is over once it has started: connecting, which else takes its turns with the loop by chance."""

    def __init__(self, *, target: Callable[[], None], **_: object) -> None:
        self.start = target


def main() -> None:
    fix()
    threading.Thread = Now  # type: ignore[assignment,misc]
    from edge_runtime import daemon  # noqa: PLC0415  what it imports takes its clocks when imported
    from edge_runtime.config import load  # noqa: PLC0415
    from edge_runtime.model import bundle  # noqa: PLC0415

    # The gate's child could not be started here: Linux need not know how to run aarch64 programs.
    daemon.proven = lambda path, _settings, **_: bundle.read(path)  # type: ignore[attr-defined]
    recording = Recording.load()
    far_end = FarEnd(recording)
    CONFIG.write_text(CONFIG.read_text().replace(PORT, str(far_end.port)))
    feeder = Feeder(far_end, recording.reads)
    feeder.daemon = daemon.Daemon(load(CONFIG), str(CONFIG))
    summary = feeder.daemon.run(feeder)  # type: ignore[arg-type]
    Report(tuple(far_end.results), tuple(feeder.rounds), is_balanced=summary.balanced).save()


if __name__ == "__main__":
    main()
