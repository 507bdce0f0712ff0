"""How long from asking for the process to its subscription: the script and the daemon in turn, the same model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks import broker, subjects
from benchmarks.results import Machine, Start
from benchmarks.workloads import Workload

FULL_ROUNDS, QUICK_ROUNDS = 20, 2


def run(rounds: int, workload: Workload, folder: Path, machine: Machine) -> Iterator[Start]:
    """One start of each subject a round, in shuffled order, after one of each that fills the file cache."""
    shuffled = random.Random(0)
    with broker.started(folder) as found:
        for number in range(rounds + 1):
            names = list(subjects.SUBJECTS)
            shuffled.shuffle(names)
            for name in names:
                subject = subjects.SUBJECTS[name](workload, port=found.port, qos=0, folder=folder)
                with subjects.running(subject, found) as (_, start_s):
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
