"""How long from asking for the process to its subscription: script and daemon in turn, the same model, gate passed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks import broker, processes, programs, subjects, workloads
from benchmarks.results import Machine, Start

FULL_ROUNDS, QUICK_ROUNDS = 15, 2
WORKLOAD = "feat64"
NAMES = ("naive", "lane")


def run(rounds: int, folder: Path, machine: Machine) -> Iterator[Start]:
    """One start of each subject a round, in shuffled order, after one of each that fills the file cache and passes
    the gate.
    """
    shuffled = random.Random(0)
    workload = workloads.build(folder, [WORKLOAD])[WORKLOAD]
    with broker.started(folder) as found:
        place = subjects.Place(found.port, 0, folder, programs.build())
        for number in range(rounds + 1):
            names = list(NAMES)
            shuffled.shuffle(names)
            for name in names:
                subject = subjects.SUBJECTS[name](workload, place)
                with processes.running(subject, found) as (_, start_s):
                    pass
                if number:
                    yield Start(
                        device=machine.device,
                        git=machine.git,
                        subject=name,
                        workload=workload.name,
                        round=number,
                        start_ms=round(start_s * 1e3, 2),
                    )
