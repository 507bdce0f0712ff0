"""Instructions per message, from read to write: our daemon, and the script of an afternoon.

What the program itself executes: a system call is one instruction, however much the kernel does for it.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks import judge, workloads
from benchmarks.arm64 import daemon_guest
from benchmarks.arm64.far_end import RECORDING, Read, Recording, Report
from benchmarks.programs import words
from benchmarks.subjects import CONFIG
from benchmarks.workloads import Workload
from edge_runtime.errors import ExportError
from edge_runtime.model import bundle
from export.arm64 import runs
from export.arm64.counter import Mark, count, workplace
from export.arm64.userland import Userland
from export.probe import Failure

SUBJECTS = ("daemon", "naive")
NAMES = ("pump", "feat64", "win-raw")
READ_MESSAGES = (1, 16, 64)
WARM_UP, COUNTED = 192, 320
"""Messages before those that are counted, and those: whole reads, and the whole cycle of each workload's windows."""
READ_BYTES = 100_000
"""At most in a read: all of it has to be in Linux's buffer before the subject takes any."""
DELIVERIES = {0: "memory", 1: "normal"}
"""Of the daemon, by QoS."""
NODE, TOPIC = "n", "in/n"
MODEL, BUNDLE = "model.onnx", "model.edge"
RESULTS = {"daemon": f"edge/v1/{NODE}/p/p/out/{NODE}", "naive": "out/naive"}


class PerMessage(msgspec.Struct, frozen=True, tag="message"):
    """What a message costs a subject that finds read_messages of them whenever it reads.

    delivery: of the daemon, "" for the script, which has none. messages, windows: that were counted. inference: of the
    model's runs alone, counted apart, in the batches that the subject makes. is_right: each window had one result, with
    its label and score, and the ledger balanced. calls: of the system, whose work is not among the instructions.
    """

    subject: str
    workload: str
    core: str
    qos: int
    delivery: str
    read_messages: int
    messages: int
    windows: int
    instructions_per_message: int
    calls_per_message: float
    inference_per_message: int
    is_right: bool


class Counts(msgspec.Struct, frozen=True):
    """Of each counted read, in order."""

    reads: tuple[Mark, ...]
    is_right: bool


def hot_path(
    where: Userland,
    cores: Iterable[str],
    folder: Path,
    *,
    names: Sequence[str] = NAMES,
    qos: Sequence[int] = tuple(DELIVERIES),
) -> Iterator[PerMessage]:
    """Each workload at each QoS on each core, for each subject. folder: to work in.

    Raises ExportError when a guest fails, or nothing can be counted here.
    """
    built = workloads.build(folder, names)
    for core, workload in itertools.product(cores, built.values()):
        inference = _inference(workload, where, core)
        for one, subject in itertools.product(qos, SUBJECTS):
            counts = run(subject, workload, one, where=where, core=core)
            yield from _per_message(counts, inference[subject], subject=subject, workload=workload, qos=one, core=core)


def run(subject: str, workload: Workload, qos: int, *, where: Userland, core: str) -> Counts:
    """Count one subject in a process of its own. Raises ExportError."""
    with workplace(where) as place:
        marks = count(where, core, prepare(subject, workload, qos, place), folder=place)
        if isinstance(marks, Failure):
            raise ExportError(f"{subject}, {workload.name}, QoS {qos}, {core}: {marks.reason}")
        report = Report.load(place)
    return Counts(tuple(_spent(marks, report.rounds)), is_right(report, workload))


def prepare(subject: str, workload: Workload, qos: int, place: Path) -> list[str]:
    """What the guest finds in its folder; Python's arguments to run it there. All paths are inside that folder."""
    recording = Recording(TOPIC, RESULTS[subject], qos, is_five=subject == "daemon", reads=tuple(_reads(workload)))
    (place / RECORDING).write_bytes(msgspec.msgpack.encode(recording))
    program = ["-m", f"benchmarks.arm64.{subject}_guest"]
    if subject == "naive":
        shutil.copy(workload.model.onnx, place / MODEL)
        return program + _options(workload, qos)
    shutil.copy(workload.model.bundle, place / BUNDLE)
    (place / daemon_guest.CONFIG).write_text(_config(workload, qos))
    return program


def is_right(report: Report, workload: Workload) -> bool:
    """Whether every window had one result, in order, with its label and score, and the ledger balanced."""
    windows = sum(read.windows for read in _reads(workload))
    return report.is_balanced and list(judge.windows(report.results, workload)) == list(range(windows))


def _sizes(workload: Workload) -> list[int]:
    return [size for size in READ_MESSAGES if size * max(map(len, workload.bodies)) <= READ_BYTES]


def _reads(workload: Workload) -> Iterator[Read]:
    """Of each size a warm-up and what is counted."""
    number = 0
    for size in _sizes(workload):
        for messages, is_counted in ((WARM_UP, False), (COUNTED, True)):
            for first in range(number, number + messages, size):
                payloads = tuple(workload.body(k) for k in range(first, first + size))
                windows = workload.cut.completed(first + size) - workload.cut.completed(first)
                yield Read(payloads, windows, is_counted)
            number += messages


def _config(workload: Workload, qos: int) -> str:
    """In one thread: no watch, and the model inline, however slow it is where it is emulated."""
    text = CONFIG.format(
        node=NODE,
        folder=".",
        port=daemon_guest.PORT,
        bundle=BUNDLE,
        topic=TOPIC,
        qos=qos,
        source=workload.settings,
        window=workload.window,
        node_settings="watchdog_s = 0",
        mqtt_settings="",
        latency_settings="",
        delivery=DELIVERIES[qos],
    )
    return text + 'execution = "inline"\n'


def _options(workload: Workload, qos: int) -> list[str]:
    """Of the script."""
    options = {
        "--model": MODEL,
        "--labels": ",".join(workload.model.labels),
        "--topic": TOPIC,
        "--results": RESULTS["naive"],
        "--qos": str(qos),
    }
    return [*words(options), *workload.naive]


def _spent(marks: list[Mark], rounds: Sequence[int]) -> Iterator[Mark]:
    """What each read took, from the marks before and after each of its rounds."""
    if len(marks) != 2 * sum(rounds):
        raise ExportError(f"{len(marks)} marks, wanted {2 * sum(rounds)}")
    of_rounds = (end.since(begin) for begin, end in zip(marks[::2], marks[1::2], strict=True))
    for number in rounds:
        yield Mark(*map(sum, zip(*itertools.islice(of_rounds, number), strict=True)))


def _per_message(
    counts: Counts, inference: Mapping[int, int], *, subject: str, workload: Workload, qos: int, core: str
) -> Iterator[PerMessage]:
    reads = [read for read in _reads(workload) if read.is_counted]
    for size in _sizes(workload):
        spent = [spent for read, spent in zip(reads, counts.reads, strict=True) if len(read.payloads) == size]
        windows = [read.windows for read in reads if len(read.payloads) == size]
        batches = windows if subject == "daemon" else [1] * sum(windows)
        yield PerMessage(
            subject=subject,
            workload=workload.name,
            core=core,
            qos=qos,
            delivery=DELIVERIES[qos] if subject == "daemon" else "",
            read_messages=size,
            messages=COUNTED,
            windows=sum(windows),
            instructions_per_message=round(sum(read.instructions for read in spent) / COUNTED),
            calls_per_message=round(sum(read.calls for read in spent) / COUNTED, 2),
            inference_per_message=round(sum(inference[batch] for batch in batches) / COUNTED),
            is_right=counts.is_right,
        )


def _inference(workload: Workload, where: Userland, core: str) -> dict[str, dict[int, int]]:
    """Instructions by subject and the windows it infers at once: the daemon by its session, the script by ONNX's."""
    found = bundle.read(workload.model.bundle)
    sizes = sorted({read.windows for read in _reads(workload)} - {0})
    with workplace(where) as place:
        shutil.copy(workload.model.bundle, place / BUNDLE)
        program = ["-m", "benchmarks.arm64.batch_guest", BUNDLE, *map(str, sizes)]
        marks = count(where, core, program, folder=place)
    model = runs.Model(found.model, found.manifest.input.name, found.manifest.session)
    naive = runs.instructions([model], found.golden.inputs[:1], where=where, core=core)
    if isinstance(marks, Failure) or isinstance(naive, Failure):
        failed = marks if isinstance(marks, Failure) else naive
        raise ExportError(f"{workload.name}, {core}: {failed}")
    daemon = zip(sizes, runs.summaries(marks, len(sizes)), strict=True)
    return {"daemon": {0: 0} | {size: spent.median for size, spent in daemon}, "naive": {1: naive[0].median}}
