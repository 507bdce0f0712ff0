"""The main job, JSON in and JSON out over MQTT: a hand-written script beside the daemon, in one interleaved run.

Same broker, same models, same messages; a process of its own for each variant of each round, rounds shuffled.
The third variant, "broker", is the floor: the generator's messages come straight back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import broker, subjects
from benchmarks.loadgen import Generator, Run, Verdict, judge
from benchmarks.results import Footprint, Latency, Line, Machine, MaxRate, Skipped, percentile
from benchmarks.workloads import Workload

RATES_HZ = (100.0, 1000.0)
OUTSTANDING = 100
HEADROOM = 1.1
FLOOR = "broker"
CASES = (("feat64", 0), ("win", 0), ("feat64", 1))


class Effort(msgspec.Struct, frozen=True):
    """How long is measured, in seconds after each warm-up. floor: share of it that the floor gets."""

    rounds: int
    warm_up_s: float
    closed_s: float
    open_s: tuple[float, ...]
    floor: float = 0.5


FULL = Effort(rounds=4, warm_up_s=0.5, closed_s=3.0, open_s=(4.0, 3.0))
QUICK = Effort(rounds=1, warm_up_s=0.1, closed_s=0.4, open_s=(0.3, 0.3), floor=1.0)


class _Case(msgspec.Struct, frozen=True):
    """One variant of one round; it is also the start of each of its lines."""

    subject: str
    workload: str
    qos: int
    round: int


def run(effort: Effort, workloads: dict[str, Workload], folder: Path, machine: Machine) -> Iterator[Line]:
    """Every measurement as it is made. Raises BrokerError, SubjectError."""
    shuffled = random.Random(0)
    with broker.started(folder) as found:
        for number in range(1, effort.rounds + 1):
            names = (*subjects.SUBJECTS, FLOOR)
            cases = [_Case(name, workload, qos, number) for workload, qos in CASES for name in names]
            shuffled.shuffle(cases)
            for case in cases:
                bench = _Bench(case, workloads[case.workload], effort, found, machine)
                yield from bench.floor() if case.subject == FLOOR else bench.subject(folder)


class _Bench:
    """One variant under its loads."""

    def __init__(self, case: _Case, workload: Workload, effort: Effort, found: broker.Broker, machine: Machine) -> None:
        self._case, self._workload, self._effort, self._broker = case, workload, effort, found
        self._start = {**msgspec.structs.asdict(case), "device": machine.device, "git": machine.git}
        self._sent = 0

    def floor(self) -> Iterator[Line]:
        topic = f"floor/{self._workload.name}"
        with closing(self._generator(topic, topic)) as generator:
            yield from self._measure(generator, lambda: (0.0, self._broker_s()), self._effort.floor)

    def subject(self, folder: Path) -> Iterator[Line]:
        make = subjects.SUBJECTS[self._case.subject]
        subject = make(self._workload, port=self._broker.port, qos=self._case.qos, folder=folder)
        with (
            subjects.running(subject, self._broker) as (process, _),
            closing(self._generator(subject.topic, subject.results)) as generator,
        ):
            yield from self._measure(generator, lambda: (process.cpu_s(), self._broker_s()), 1.0)
            used = process.memory()
            yield Footprint(**self._start, rss_mb=used.rss_mb, peak_mb=used.peak_mb, messages=self._sent)

    def _generator(self, topic: str, results: str) -> Generator:
        port, qos = self._broker.port, self._case.qos
        return Generator(port, self._workload.payloads, topic=topic, results=results, qos=qos)

    def _broker_s(self) -> float:
        return subjects.cpu_s(self._broker.process.pid)

    def _measure(
        self, generator: Generator, counter: Callable[[], tuple[float, float]], share: float
    ) -> Iterator[Line]:
        """The highest rate first, then the latency at each rate below it."""
        effort = self._effort
        options: dict[str, Any] = {"warm_up_s": effort.warm_up_s, "counter": counter}
        found = generator.closed_loop(OUTSTANDING, seconds=effort.closed_s * share, **options)
        most = self._max_rate(found)
        yield most
        for rate_hz, seconds in zip(RATES_HZ, effort.open_s, strict=True):
            if most.msg_s < rate_hz * HEADROOM:
                reason = f"above what it can do: {most.msg_s:.0f} msg/s"
                yield Skipped(**self._start, rate_hz=rate_hz, reason=reason)
            else:
                found = generator.open_loop(rate_hz, seconds=seconds * share, **options)
                yield self._latency(found, rate_hz)

    def _max_rate(self, found: Run) -> MaxRate:
        verdict = self._judge(found)
        n = sum(found.begin_ns <= at_ns < found.end_ns for at_ns, _ in found.arrivals)
        return MaxRate(
            **self._start, **self._facts(found, verdict, n), outstanding=OUTSTANDING, msg_s=round(n / found.seconds, 1)
        )

    def _latency(self, found: Run, rate_hz: float) -> Latency:
        verdict = self._judge(found)
        ordered = sorted(ns / 1e6 for ns in verdict.latencies_ns)
        return Latency(
            **self._start,
            **self._facts(found, verdict, len(ordered)),
            rate_hz=rate_hz,
            p50_ms=round(percentile(ordered, 50), 4),
            p99_ms=round(percentile(ordered, 99), 4),
            max_ms=round(ordered[-1], 4),
            late=found.late,
        )

    def _judge(self, found: Run) -> Verdict:
        self._sent += len(found.stamps_ns)
        if not found.arrivals:
            raise subjects.SubjectError(f"{self._case.subject}: none of {len(found.stamps_ns)} messages was answered")
        return judge(found, self._workload.payloads, labelled=self._case.subject != FLOOR)

    def _facts(self, found: Run, verdict: Verdict, n: int) -> dict[str, Any]:
        subject_s, broker_s = found.costs
        floor = self._case.subject == FLOOR
        return {
            "n": n,
            "warm_up": sum(stamp_ns < found.begin_ns for stamp_ns in found.stamps_ns),
            "cpu_us": None if floor else round(subject_s / n * 1e6, 1),
            "subject_cores": None if floor else round(subject_s / found.seconds, 3),
            "broker_cores": round(broker_s / found.seconds, 3),
            "generator_cores": round(found.own_cpu_s / found.seconds, 3),
            "missing": verdict.missing,
            "repeated": verdict.repeated,
            "wrong": verdict.wrong,
        }
