"""The main job, messages in and results out over MQTT: all subjects beside each other, in one interleaved run.

Same brokers, same models, same messages; a process of its own for each subject of each round, rounds shuffled.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import bare, broker, judge, plan, processes, programs, subjects, workloads
from benchmarks.broker import Broker
from benchmarks.failures import guarded
from benchmarks.generator import Generator, Load, Route, Run
from benchmarks.judge import Verdict
from benchmarks.processes import SubjectError
from benchmarks.programs import Programs
from benchmarks.results import Bare, Closed, Footprint, Line, Machine, Open, Skipped, percentile
from benchmarks.subjects import Place
from benchmarks.workloads import Workload

HEADROOM = 1.1


class Effort(msgspec.Struct, frozen=True):
    """share: of the planned seconds that every load gets, no less than least_s."""

    rounds: int
    share: float = 1.0
    least_s: float = 0.0
    bare_calls: int = bare.CALLS

    def of(self, load: Load) -> Load:
        seconds, warm_up_s = (max(self.least_s, part * self.share) for part in (load.seconds, load.warm_up_s))
        return msgspec.structs.replace(load, seconds=seconds, warm_up_s=warm_up_s)


FULL = Effort(rounds=4)
QUICK = Effort(rounds=1, share=0.1, least_s=0.15, bare_calls=200)


class _Setting(msgspec.Struct, frozen=True):
    """What all cells share."""

    effort: Effort
    machine: Machine
    programs: Programs
    folder: Path
    brokers: Mapping[str, Broker]
    workloads: Mapping[str, Workload]


def run(effort: Effort, selection: plan.Selection, folder: Path, machine: Machine) -> Iterator[Line]:
    """Every measurement as it is made; a cell that fails is a line of its own. Raises BrokerError, CompilerError."""
    cases, alone = selection.cases(), selection.bare()
    built = programs.build()
    known = workloads.build(folder, dict.fromkeys([*(case.workload for case in cases), *alone]))
    shuffled = random.Random(0)
    with ExitStack() as stack:
        kinds = dict.fromkeys(case.broker for case in cases)
        brokers = {kind: stack.enter_context(broker.started(folder, kind)) for kind in kinds}
        setting = _Setting(effort, machine, built, folder, brokers, known)
        for number in range(1, effort.rounds + 1):
            cells: list[tuple[str, Callable[[], Iterator[Line]]]] = [
                (f"{name}, {case.name}, round {number}", _Cell(setting, case, name, number).run)
                for case in cases
                for name in case.loads
            ]
            cells += [(f"model of {name} alone, round {number}", _bare(setting, name, number)) for name in alone]
            shuffled.shuffle(cells)
            for what, cell in cells:
                yield from guarded(what, cell(), machine)


def _bare(setting: _Setting, name: str, number: int) -> Callable[[], Iterator[Line]]:
    def measure() -> Iterator[Line]:
        model = setting.workloads[name].model.onnx
        command = [sys.executable, "-m", "benchmarks.bare", str(model), "--calls", str(setting.effort.bare_calls)]
        done = subprocess.run(command, capture_output=True, text=True, env=processes.ENVIRONMENT, check=False)
        if done.returncode:
            raise SubjectError(f"bare: {done.stderr.strip()[-800:]}")
        times = msgspec.structs.asdict(msgspec.json.decode(done.stdout, type=bare.Times))
        machine = setting.machine
        yield Bare(device=machine.device, git=machine.git, workload=name, round=number, **times)

    return measure


class _Cell:
    """One subject of one round under its loads."""

    def __init__(self, setting: _Setting, case: plan.Case, name: str, number: int) -> None:
        self._setting, self._case, self._name = setting, case, name
        self._broker = setting.brokers[case.broker]
        self._workload = setting.workloads[case.workload]
        self._start: dict[str, Any] = {
            "device": setting.machine.device,
            "git": setting.machine.git,
            "subject": name,
            "workload": case.workload,
            "qos": case.qos,
            "broker": case.broker,
            "round": number,
        }

    def run(self) -> Iterator[Line]:
        return self._alone() if self._name == plan.BROKER else self._subject()

    def _alone(self) -> Iterator[Line]:
        """The generator's messages come straight back."""
        topic = f"alone/{self._workload.name}"
        route = Route(self._broker.port, topic, topic, self._case.qos, (self._broker.process.pid,), subjects.ECHO_KEEP)
        workload = msgspec.structs.replace(self._workload, cut=workloads.ONE_EACH)
        yield from self._measure(Generator(self._setting.programs, workload, route, self._setting.folder), workload)

    def _subject(self) -> Iterator[Line]:
        place = Place(self._broker.port, self._case.qos, self._setting.folder, self._setting.programs)
        subject = subjects.SUBJECTS[self._name](self._workload, place)
        with processes.running(subject, self._broker) as (process, _):
            watch = (self._broker.process.pid, process.process.pid)
            port = subject.port or self._broker.port
            route = Route(
                port, subject.topic, subject.results, self._case.qos, watch, subject.keep, http=bool(subject.port)
            )
            generator = Generator(self._setting.programs, subject.workload, route, self._setting.folder)
            yield from self._measure(generator, subject.workload, subject.judge)
            used = process.memory()
            yield Footprint(**self._start, rss_mb=used.rss_mb, peak_mb=used.peak_mb, messages=generator.sent)

    def _measure(
        self,
        generator: Generator,
        workload: Workload,
        judge_run: Callable[[Run, Workload], Verdict] = judge.echoes,
    ) -> Iterator[Line]:
        """Load after load; a rate above what the subject just showed it can do is skipped."""
        most = 0.0
        for planned in self._case.loads[self._name]:
            load = self._setting.effort.of(planned)
            if load.loop == "open" and 0 < most < load.amount * HEADROOM:
                reason = f"above what it can do: {most:.0f} msg/s"
                yield Skipped(**self._start, rate_hz=load.amount, reason=reason)
                continue
            found = generator.run(load)
            verdict = judge_run(found, workload)
            line = self._line(load, found, verdict)
            most = max(most, line.msg_s) if isinstance(line, Closed) and line.outstanding > 1 else most
            yield line

    def _line(self, load: Load, found: Run, verdict: Verdict) -> Closed | Open:
        if not len(verdict.latencies_ns):
            raise SubjectError(
                f"{self._name} on {self._case.key}: of {len(found.written_ns)} messages none of those measured was "
                f"answered rightly: {verdict.missing} missing, {verdict.wrong} wrong, {verdict.repeated} repeated"
            )
        common = self._start | facts(found, verdict)
        if load.loop == "open":
            timed = found.late_ns[found.written_ns >= found.begin_ns]
            late_ms = np.sort(timed / 1e6).tolist() or [0.0]
            at = {"late_p99_ms": round(percentile(late_ms, 99), 4), "late_max_ms": round(late_ms[-1], 4)}
            return Open(**common, rate_hz=load.amount, late=found.late, **at)
        return Closed(**common, outstanding=int(load.amount), msg_s=round(verdict.answered / found.seconds, 1))


def facts(found: Run, verdict: Verdict) -> dict[str, Any]:
    ordered = (np.sort(verdict.latencies_ns) / 1e6).tolist()
    broker_ns, subject_ns = (*found.watched_ns, None)[:2]
    n, span_ns = max(verdict.answered, 1), found.end_ns - found.begin_ns
    timed = found.written_ns[(found.written_ns >= found.begin_ns) & (found.written_ns < found.end_ns)]
    used_ns = max(found.cores * span_ns - found.idle_ns, 0)
    others_ns = max(used_ns - found.interrupts_ns - found.own_ns - sum(found.watched_ns), 0)
    return {
        "n": verdict.answered,
        "timed": len(ordered),
        "warm_up": int(np.count_nonzero(found.written_ns < found.begin_ns)),
        "p50_ms": round(percentile(ordered, 50), 4),
        "p99_ms": round(percentile(ordered, 99), 4),
        "max_ms": round(ordered[-1], 4),
        "cpu_us": None if subject_ns is None else round(subject_ns / n / 1e3, 2),
        "subject_cores": None if subject_ns is None else round(subject_ns / span_ns, 3),
        "broker_cores": round((broker_ns or 0) / span_ns, 3),
        "generator_cores": round(found.own_ns / span_ns, 3),
        "machine_cores": round(used_ns / span_ns, 3),
        "others_cores": round(others_ns / span_ns, 3),
        "cores": found.cores,
        "missing": verdict.missing,
        "repeated": verdict.repeated,
        "wrong": verdict.wrong,
        "burst": round(len(timed) / max(len(np.unique(timed)), 1), 2),
    }
