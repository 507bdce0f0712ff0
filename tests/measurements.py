"""Two messages in turn, right are the labels a and b in turn; and runs of them as a generator would report them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import workloads
from benchmarks.generator import Run
from benchmarks.workloads import FIRST_NUMBER, Cut, Expected, Model, Workload

NO_CC = "no C compiler (cc) on PATH: install one (apt-get install gcc libc6-dev) to run the benchmarks' programs"
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason=NO_CC)
MODEL = Model(Path("m.onnx"), Path("m.edge"), ("a", "b"), 0.001)
BOTH = (Expected("a", 0.9), Expected("b", 0.8))
NUMBERED = b'{"seq":1000000000}'


def workload(cut: Cut = workloads.ONE_EACH, path: Path = Path("p")) -> Workload:
    return Workload("w", MODEL, (NUMBERED, NUMBERED), path, BOTH, "", number_at=7, cut=cut)


def answer(number: int, label: str, score: float | None = None, begun: int | None = None) -> bytes:
    last = FIRST_NUMBER + number
    known = {expected.label: expected.score for expected in BOTH}
    seq = last if begun is None else [FIRST_NUMBER + begun, last]
    return json.dumps({"seq": seq, "label": label, "score": known.get(label, 0.5) if score is None else score}).encode()


def run_of(first: int, written_ns: list[int], arrivals: list[tuple[int, bytes]]) -> Run:
    return Run(
        first,
        np.array(written_ns, np.int64),
        np.array([at_ns for at_ns, _ in arrivals], np.int64),
        np.array([len(body) for _, body in arrivals], np.uint32),
        [body for _, body in arrivals],
        begin_ns=0,
        end_ns=10**9,
    )
