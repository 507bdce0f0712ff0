"""The load generators in C, run once for each load; what they wrote down, read back."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.programs import Programs, words
from benchmarks.workloads import Workload

WHOLE = 65_536
STALL_S, END_S = 5.0, 60.0

Times = npt.NDArray[np.int64]
NOT_LATE: Times = np.zeros(0, np.int64)


class GeneratorError(Exception):
    """A generator failed: no connection, or the other side broke it off."""


class Load(msgspec.Struct, frozen=True):
    """closed: amount messages unanswered at any time. open: amount a second on an absolute schedule."""

    loop: Literal["closed", "open"]
    amount: float
    seconds: float
    warm_up_s: float


class Route(msgspec.Struct, frozen=True):
    """Where messages go and results come from. qos: of both. watch: processes whose CPU time counts.

    topic: published to, or the path of an HTTP server. keep: bytes of each result that are kept.
    """

    port: int
    topic: str
    results: str
    qos: int
    watch: tuple[int, ...] = ()
    keep: int = WHOLE
    http: bool = False


class Run(msgspec.Struct):
    """One run: every message and every result of it.

    first: number of the first message. written_ns: per message, when it was written, or due if it was written too
    late; late_ns: how much later than due. arrived_ns, lengths, bodies: per result, when it was read, its bytes, and as
    many of them as were kept.
    begin_ns, end_ns: what is measured lies between; earlier is warm-up. late: how many counted from when they were
    due. own_ns, watched_ns: CPU time meanwhile, of the generator and the watched processes; idle_ns, interrupts_ns: of
    all cores. stalled: given up, without a result for too long, before the measured time was over.
    """

    first: int
    written_ns: Times
    arrived_ns: Times
    lengths: npt.NDArray[np.uint32]
    bodies: list[bytes]
    begin_ns: int
    end_ns: int
    late: int = 0
    own_ns: int = 0
    watched_ns: tuple[int, ...] = ()
    late_ns: Times = NOT_LATE
    cores: int = 0
    idle_ns: int = 0
    interrupts_ns: int = 0
    stalled: bool = False

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9


class _Told(msgspec.Struct, forbid_unknown_fields=True):
    """What a generator prints at its end."""

    sent: int
    results: int
    begin_ns: int
    end_ns: int
    late: int
    own_ns: int
    cores: int
    idle_ns: int
    interrupts_ns: int
    stalled: bool
    watched_ns: tuple[int, ...]


class Generator:
    """Sends a workload over a route, load after load; message numbers go on."""

    def __init__(
        self, programs: Programs, workload: Workload, route: Route, folder: Path, *, stall_s: float = STALL_S
    ) -> None:
        """stall_s: without a result, those still missing are given up."""
        self._stall_s = stall_s
        self._programs, self._workload, self._route = programs, workload, route
        self._out = folder / "run.bin"
        self.sent = 0

    def run(self, load: Load) -> Run:
        """Raises GeneratorError."""
        words = (*self._common(load), *(self._http(load) if self._route.http else self._mqtt(load)))
        program = self._programs.httpgen if self._route.http else self._programs.loadgen
        try:
            done = subprocess.run([program, *words], capture_output=True, text=True, timeout=END_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise GeneratorError(f"{program.name} on {self._route.topic} did not end in {END_S:.0f} s") from error
        if done.returncode:
            raise GeneratorError(f"{program.name} on {self._route.topic}: {done.stderr.strip()}")
        found = read(self._out, msgspec.json.decode(done.stdout, type=_Told), first=self.sent)
        self.sent += len(found.written_ns)
        if found.stalled:
            raise GeneratorError(
                f"{self._route.topic} stalled for {self._stall_s:g} s: {len(found.written_ns)} messages, "
                f"{len(found.arrived_ns)} results"
            )
        return found

    def _common(self, load: Load) -> tuple[str, ...]:
        route, workload = self._route, self._workload
        options: dict[str, object] = {
            "--port": route.port,
            "--payloads": workload.payloads,
            "--number-at": workload.number_at,
            "--first": self.sent,
            "--warm-up": load.warm_up_s,
            "--seconds": load.seconds,
            "--stall": self._stall_s,
            "--watch": ",".join(map(str, route.watch)),
            "--keep": route.keep,
            "--out": self._out,
        }
        return words(options)

    def _mqtt(self, load: Load) -> tuple[str, ...]:
        route, cut = self._route, self._workload.cut
        options: dict[str, object] = {
            "--publish": route.topic,
            "--subscribe": route.results,
            "--qos": route.qos,
            "--loop": load.loop,
            "--rate": load.amount,
            "--samples": cut.samples,
            "--length": cut.length,
            "--hop": cut.hop,
        }
        return words(options)

    def _http(self, load: Load) -> tuple[str, ...]:
        if load.loop != "closed":
            raise GeneratorError("httpgen has no open loop")
        return words({"--path": self._route.topic, "--connections": int(load.amount)})


def read(path: Path, told: _Told, *, first: int) -> Run:
    """A run as close_record in record.h writes it."""
    raw, sent, results = path.read_bytes(), told.sent, told.results
    arrived_at = 16 * sent
    lengths_at = arrived_at + 8 * results
    kept_at = lengths_at + 4 * results
    bodies_at = kept_at + 4 * results
    ends = bodies_at + np.cumsum(np.frombuffer(raw, np.uint32, results, kept_at), dtype=np.int64)
    edges = [bodies_at, *ends.tolist()]
    if edges[-1] != len(raw):
        raise GeneratorError(f"{path} holds {len(raw)} bytes, wanted {edges[-1]}")
    return Run(
        first=first,
        written_ns=np.frombuffer(raw, np.int64, sent),
        late_ns=np.frombuffer(raw, np.int64, sent, 8 * sent),
        arrived_ns=np.frombuffer(raw, np.int64, results, arrived_at),
        lengths=np.frombuffer(raw, np.uint32, results, lengths_at),
        bodies=[raw[start:stop] for start, stop in pairwise(edges)],
        begin_ns=told.begin_ns,
        end_ns=told.end_ns,
        late=told.late,
        own_ns=told.own_ns,
        cores=told.cores,
        idle_ns=told.idle_ns,
        interrupts_ns=told.interrupts_ns,
        stalled=told.stalled,
        watched_ns=told.watched_ns,
    )
