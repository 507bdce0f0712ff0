"""The daemon with faults planted in it: python subject.py --fault after_commit:3 run CONFIG --json

    POINT:N              the process kills itself (SIGKILL) at the N-th passing of a point of POINTS
    sqlite:N[:TIMES]     the N-th call of SQLite and those after it, TIMES in all, raise OperationalError
    recv:N[:TIMES]       likewise every reading of a TCP socket: where N is odd the connection is over (ECONNRESET),
                         else only the call has failed (ENETUNREACH)
    send:N[:TIMES]       likewise every writing
    clock                SIGUSR1 puts the wall clock forward by a year, SIGUSR2 back; the monotonic clock is left alone

Methods are wrapped from outside; the production code knows nothing of it.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

YEAR_S = 365 * 86_400
DISK_ERROR = "disk I/O error"
POINTS = (
    "before_infer", "before_commit", "after_commit", "before_ack", "after_ack", "before_publish", "after_publish",
)  # fmt: skip
SQLITE_CALLS = ("execute", "executemany", "executescript", "commit", "rollback")


class Fault(NamedTuple):
    """first: the passing or call it strikes at, counted from 1; times: in how many of them from then on."""

    name: str
    first: int = 1
    times: int = 1

    @classmethod
    def parse(cls, text: str) -> Fault:
        name, *numbers = text.split(":")
        return cls(name, *map(int, numbers))


class Count:
    """Passings or calls so far; whether the fault was reached."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self.n, self.struck = fault, 0, 0

    def strikes(self) -> bool:
        self.n += 1
        hit = self.fault.first <= self.n < self.fault.first + self.fault.times
        self.struck += hit
        return hit


Undo = Callable[[], None]


@contextmanager
def planted(*faults: Fault, thread: int = 0) -> Iterator[list[Count]]:
    """Plant faults in this process, and take them out again. thread: whose socket calls count, 0 for everyone's."""
    counts, undo = plant(faults, thread=thread)
    try:
        yield counts
    finally:
        undo()


def plant(faults: Sequence[Fault], *, thread: int = 0) -> tuple[list[Count], Undo]:
    counts, undos = [Count(fault) for fault in faults], []
    for count in counts:
        name = count.fault.name
        if name in POINTS:
            undos.append(_plant_death(count))
        elif name == "sqlite":
            undos.append(_plant_sqlite(count))
        elif name in ("recv", "send"):
            undos.append(_plant_sockets(count, thread))
        elif name == "clock":
            _plant_clock()
        else:
            raise ValueError(f"no fault {name!r}")

    def undo() -> None:
        for one in reversed(undos):
            one()

    return counts, undo


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> Undo:
    """Put something in the place of an attribute. make: takes what was there."""
    was, own = getattr(owner, name), name in vars(owner)
    setattr(owner, name, make(was))
    return lambda: setattr(owner, name, was) if own else delattr(owner, name)


def die(point: str, n: int) -> None:
    os.write(2, json.dumps({"event": "died", "point": point, "passing": n}).encode() + b"\n")
    os.kill(os.getpid(), signal.SIGKILL)


def _plant_death(count: Count) -> Undo:
    """Make the process kill itself right before or right after a method does something."""
    when, what = count.fault.name.split("_")
    undos = [
        _replace(owner, name, lambda was, does=does, finish=finish: _deadly(was, count, when, does, finish))
        for owner, name, does, finish in _places(what)
    ]
    return lambda: [undo() for undo in undos] and None


def _deadly(was: Any, count: Count, when: str, does: Callable[..., bool], finish: Callable[[Any], Any]) -> Any:
    def method(self: Any, *args: Any, **options: Any) -> Any:
        strikes = does(self, *args) and count.strikes()
        if strikes and when == "before":
            die(count.fault.name, count.n)
        result = was(self, *args, **options)
        if strikes:
            finish(self)
            die(count.fault.name, count.n)
        return result

    return method


def _places(what: str) -> list[tuple[Any, str, Callable[..., bool], Callable[[Any], Any]]]:
    """Where something happens: class, method, whether this call does it, and how to see it through.

    An acknowledgement or a publication has happened when its bytes are with the kernel.
    """
    from edge_runtime.mqtt.client import MqttClient
    from edge_runtime.stream.pipeline import Pipeline

    def flush(client: Any) -> None:
        client.flush()

    match what:
        case "infer":
            return [(Pipeline, "predict", lambda _self, turn: bool(turn.windows), lambda _self: None)]
        case "ack":
            return [(MqttClient, "acknowledge", lambda _self, _epoch, mids: bool(mids), flush)]
        case "publish":
            return [
                (MqttClient, "publish", lambda _self, message: "/out/" in message.topic, flush),
                (MqttClient, "publish_all", lambda _self, found: any("/out/" in one.topic for one in found), flush),
            ]
        case _:
            from edge_runtime.delivery.store import Store

            return [(Store, "commit", lambda self: bool(self.dirty), lambda _self: None)]


def _plant_sqlite(count: Count) -> Undo:
    from edge_runtime.delivery.store import Store

    class Failing(sqlite3.Connection):
        pass

    for name in SQLITE_CALLS:
        _replace(Failing, name, lambda was: _failing(was, count, _disk_error))

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        if count.strikes():
            raise _disk_error()
        return sqlite3.connect(*args, **{**options, "factory": Failing})

    def make(was: Any) -> Any:
        def init(self: Any, *args: Any, **options: Any) -> None:
            was(self, *args, **{**options, "connect": connect})

        return init

    return _replace(Store, "__init__", make)


def _disk_error() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(DISK_ERROR)
    error.sqlite_errorcode, error.sqlite_errorname = 10, "SQLITE_IOERR"  # as SQLite's own since Python 3.11
    return error


def _failing(was: Any, count: Count, error: Callable[[], Exception]) -> Any:
    def method(self: Any, *args: Any, **options: Any) -> Any:
        if count.strikes():
            raise error()
        return was(self, *args, **options)

    return method


def _plant_sockets(count: Count, thread: int) -> Undo:
    def make(was: Any) -> Any:
        def method(self: socket.socket, *args: Any) -> Any:
            ours = self.family == socket.AF_INET and thread in (0, threading.get_ident())
            if not ours or not count.strikes():
                return was(self, *args)
            if count.fault.first % 2 == 0:
                raise OSError(errno.ENETUNREACH, "planted")
            with suppress(OSError):
                self.shutdown(socket.SHUT_RDWR)  # as after a reset: whoever reads from it sees its end
            raise ConnectionResetError(errno.ECONNRESET, "planted")

        return method

    names = ("recv", "recv_into") if count.fault.name == "recv" else ("send", "sendall")
    undos = [_replace(socket.socket, name, make) for name in names]
    return lambda: [undo() for undo in undos] and None


def _plant_clock() -> None:
    """Shift time.time and time.time_ns; before anything that keeps a reference to them is imported."""
    offset_s = 0
    real_s, real_ns = time.time, time.time_ns

    def shift(number: int, _frame: Any) -> None:
        nonlocal offset_s
        offset_s += YEAR_S if number == signal.SIGUSR1 else -YEAR_S
        os.write(2, json.dumps({"event": "clock_shifted", "offset_s": offset_s}).encode() + b"\n")

    time.time = lambda: real_s() + offset_s
    time.time_ns = lambda: real_ns() + offset_s * 10**9
    signal.signal(signal.SIGUSR1, shift)
    signal.signal(signal.SIGUSR2, shift)


def main() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words, faults = sys.argv[1:], []
    while words[:1] == ["--fault"]:
        faults.append(Fault.parse(words[1]))
        words = words[2:]
    plant(faults)
    sys.argv = ["edge-runtime", *words]
    from edge_runtime.__main__ import main as edge_runtime

    edge_runtime()


if __name__ == "__main__":
    main()
