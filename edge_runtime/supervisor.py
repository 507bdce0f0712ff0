"""What ends the process when a part of it has died or hangs: restarted is better than half alive."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from edge_runtime.model.session import Session
    from edge_runtime.worker import Worker

log = logging.getLogger(__name__)

DIED = 1
"""Exit status of a process that ended so."""
LAST_WORDS_S = 2.0
"""The longest that log and stderr may hold up the end."""
LOOKS = 4
LONGEST_RUNS = 4
"""A model's longest run may take so many times what was expected of it."""
LOOP, MODEL = "the loop", "the model"

Sign = Callable[[], object]
"""What a part shows of its work: another value whenever it has moved, None while it has nothing to do."""


def watch_threads() -> None:
    """Let an exception that leaves a thread end the process; called once, in the main thread.

    A fault in native code, and the SIGABRT of systemd's watchdog, write every thread's stack to stderr.
    """
    faulthandler.enable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    threading.excepthook = _on_thread
    sys.unraisablehook = _on_unraisable


def died(thread: str, error: BaseException) -> NoReturn:
    """End the process for an exception that nobody in the thread has an answer to."""
    _end(
        "thread_died",
        f"the thread {thread} died: {type(error).__name__}: {error}",
        exc_info=error,
        thread_name=thread,
    )


def hung(part: str, limit_s: float) -> NoReturn:
    """End the process for a part that has not moved for limit_s; the log tells where every thread stands."""
    _end_soon()
    _end("hung", f"{part} has not moved for {limit_s:g} s", part=part, limit_s=limit_s, stacks=_stacks())


def _end(event: str, sentence: str, *, exc_info: BaseException | None = None, **fields: object) -> NoReturn:
    """Log, say one line, exit at once: nothing is tidied up, as the part to do it with may be the broken one."""
    try:
        _end_soon()
        log.critical(event, exc_info=exc_info, extra=fields)
        sys.stderr.write(f"error: {sentence}\n")
        sys.stderr.flush()
    finally:
        os._exit(DIED)


def _end_soon() -> None:
    """Whatever the last words wait for (a full pipe, a lock, a dead disk), the kernel ends the process by SIGALRM."""
    signal.setitimer(signal.ITIMER_REAL, LAST_WORDS_S)


def _on_thread(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread else "unknown"
    died(name, args.exc_value or args.exc_type())


def _on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """An exception in a destructor or a callback of the collector: told, but no thread has died of it."""
    error = unraisable.exc_value or unraisable.exc_type()
    where = f"{unraisable.err_msg or 'Exception ignored in'}: {type(unraisable.object).__name__}"
    log.error("exception_ignored", exc_info=error, extra={"where": where})


def _stacks() -> dict[str, str]:
    """Where every thread stands, by its name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()  # noqa: SLF001  documented, its name notwithstanding
    return {names.get(ident, str(ident)): "".join(traceback.format_stack(frame)) for ident, frame in frames.items()}


def signs_of_work(rounds: Callable[[], int], worker: Worker | None, sessions: Collection[Session]) -> dict[str, Sign]:
    """Of the loop, and of the model on the worker; a turn may hold many runs, each of which is a move.

    rounds: how often the loop has gone round.
    """

    def runs() -> int:
        return sum(session.runs for session in sessions)

    def predicting() -> object:
        since_ns = worker and worker.busy_since_ns()
        return None if since_ns is None else (since_ns, runs())

    return {LOOP: lambda: (rounds(), runs()), MODEL: predicting}


class Watch:
    """Ends the process when one of its parts shows the same sign of work for as long as the limit; a context.

    Looks are counted, not time: of a process that was stopped, or a machine that slept, one look passed. Code that
    holds Python's lock for ever stops this watch, too; that is left to systemd's.
    """

    def __init__(self, signs: Mapping[str, Sign], limit_s: float, *, longest_run_s: float = 0.0) -> None:
        """signs: by part. limit_s: 0 = no watch. longest_run_s: what the longest run of a model is expected to take."""
        self._signs = signs
        self.limit_s = max(limit_s, LONGEST_RUNS * longest_run_s) if limit_s else 0.0
        self._shown: dict[str, object] = {}
        self._unmoved = dict.fromkeys(signs, 0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> None:
        if self.limit_s:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self.limit_s:
            self._thread.join()

    def look(self) -> str:
        """Take a look; the part that shows what it showed LOOKS looks ago and ever since, "" while all move."""
        for part, sign in self._signs.items():
            shown = sign()
            unmoved = shown is not None and shown == self._shown.get(part)
            self._unmoved[part] = self._unmoved[part] + 1 if unmoved else 0
            self._shown[part] = shown
        return next((part for part, looks in self._unmoved.items() if looks >= LOOKS), "")

    def _run(self) -> None:
        while not self._over.wait(self.limit_s / LOOKS):
            part = self.look()
            if part:
                hung(part, self.limit_s)
