"""The one worker thread: it predicts, and nothing else."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

Job = Callable[[], None]


class Worker:
    """Runs jobs first in, first out; its file descriptor becomes readable when one has finished.

    An exception in a job is raised again by `finished`, in the thread that asks.
    """

    def __init__(self, *, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._busy_since_ns: int | None = None
        self._jobs: SimpleQueue[tuple[str, Job] | None] = SimpleQueue()
        self._done: deque[tuple[str, BaseException | None]] = deque()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="predict", daemon=True)

    def fileno(self) -> int:
        return self._wake_read.fileno()

    def busy_since_ns(self) -> int | None:
        """When the job that is running began, None while there is none; may be asked from any thread."""
        return self._busy_since_ns

    def submit(self, name: str, job: Job) -> None:
        """Put a job in line under a name that `finished` gives back."""
        if not self._thread.is_alive():
            self._thread.start()
        self._jobs.put((name, job))

    def finished(self) -> list[str]:
        """Names of the jobs that ended since the last call, in order."""
        names = []
        with suppress(BlockingIOError):
            self._wake_read.recv(4096)
        while self._done:
            name, error = self._done.popleft()
            if error is not None:
                raise error
            names.append(name)
        return names

    def stop(self) -> None:
        """End the thread after the jobs already in line."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        self._wake_read.close()
        self._wake_write.close()

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            name, job = entry
            error: BaseException | None = None
            self._busy_since_ns = self._now_ns()
            try:
                job()
            except BaseException as caught:  # noqa: BLE001  handed to the owner, who raises it
                error = caught
            self._busy_since_ns = None
            self._done.append((name, error))
            self._wake_write.send(b"\0")
