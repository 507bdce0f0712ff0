"""docs/memory.md from the lines of `python -m benchmarks.memory`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import render
from benchmarks.broker import SUBSCRIBE_S
from benchmarks.figures import of, spread
from benchmarks.results import Confined, Imported, Line
from benchmarks.tables import table

HEAD = """\
# Memory

Made by `python -m benchmarks.memory` from `benchmarks/results/memory`; do not edit. The daemon of the demo: its int8
bundle, three streams at QoS 1, `delivery = "normal"`. Measured on x86; no board was used. Libraries for arm64 are
nearly as large.

"""
STEP_MIB = 4
REPEATS = 2
"""Times that a limit must be enough."""
NOTES = """
- *Counted* by a memory cgroup, children included: anonymous pages, file pages with the page cache, and what the kernel
  keeps for them. Swapping is not allowed. numpy, ONNX Runtime, paho, msgspec and the daemon are a private copy that is
  out of the page cache before each trial; pages of Python itself and of the system's libraries may be in use by others
  already and are then not counted.
- *Least limit*: in steps of {step} MiB, the lowest in which {messages} messages were answered {repeats} times in a row,
  ledger balanced, alarm raised, nothing killed, ready within {start_s:g} s. Near it the kernel drops library pages and
  reads them again (*major faults*), which an SD card makes slow: a floor, not a setting.
- *Without a limit*: the highest of each. The page cache in it gives way to whoever needs memory. *Resident*: of the
  daemon's process alone, pages that it shares included.
- *First start*: a child process proves the bundle beside the daemon ([gate](gate.md)); *later* its report is kept.

128 MiB is enough: `tests/test_memory_limit.py` holds the first start to it. Larger bundles add their weights and
activations, at the first start twice.
"""
IMPORTS = """
n = {n} fresh interpreters each, in turn, file cache filled; median (lowest to highest). What a plain run may import is
held by `tests/test_import_budget.py`.
"""
FIELDS = (
    ("highest, MiB", "peak_mib"),
    ("anonymous, MiB", "anonymous_mib"),
    ("page cache, MiB", "file_mib"),
    ("of it mapped, MiB", "mapped_mib"),
    ("resident, MiB", "rss_mib"),
)
SUBJECTS = {"libraries": "the libraries alone", "run": "`edge-runtime run`"}


def page(lines: Sequence[Line]) -> str:
    """Markdown. Raises ValueError when there are no lines of a machine, or of one of the two starts."""
    parts = [HEAD, render.machine(lines), "\n## What it needs\n\n", _needs(of(lines, Confined))]
    return "".join([*parts, "\n## What imports cost\n\n", _imports(of(lines, Imported))])


def least_mib(trials: Sequence[Confined]) -> int:
    """The lowest limit that was enough with none above it that was not. Raises ValueError without one."""
    limited = [(trial.limit_mib, trial.served) for trial in trials if trial.limit_mib is not None]
    most_failed = max((limit_mib for limit_mib, served in limited if not served), default=0)
    return min(limit_mib for limit_mib, _ in limited if limit_mib > most_failed)


def _needs(trials: Sequence[Confined]) -> str:
    starts = [[trial for trial in trials if trial.first_start == first] for first in (True, False)]
    least = [least_mib(found) for found in starts]
    enough = [
        [trial for trial in found if trial.limit_mib == limit] for found, limit in zip(starts, least, strict=True)
    ]
    free = [next(trial for trial in found if trial.limit_mib is None) for found in starts]
    rows = [
        ("**least limit, MiB**", *(f"**{limit_mib}**" for limit_mib in least)),
        *_starts("in it", enough),
        *((f"without a limit: {name}", *(f"{getattr(trial, field):.0f}" for trial in free)) for name, field in FIELDS),
        *_starts("without a limit", [[trial] for trial in free]),
    ]
    notes = NOTES.format(step=STEP_MIB, messages=free[0].messages, repeats=REPEATS, start_s=SUBSCRIBE_S)
    return table(("", "first start", "later starts"), rows) + notes


def _starts(title: str, trials: Sequence[Sequence[Confined]]) -> list[tuple[str, ...]]:
    """trials: of the first start and of later ones."""
    fields = {"start, s": "start_s", "major faults": "major_faults"}
    return [
        (f"{title}: {name}", *(" and ".join(f"{getattr(trial, field):g}" for trial in found) for found in trials))
        for name, field in fields.items()
    ]


def _imports(lines: Sequence[Imported]) -> str:
    found = {name: [line for line in lines if line.subject == name] for name in SUBJECTS}
    rows = [
        (
            title,
            spread([line.cpu_ms for line in found[name]]),
            spread([line.ms for line in found[name]]),
            spread([line.rss_mib for line in found[name]], 1),
            spread([line.anonymous_mib for line in found[name]], 1),
            spread([line.modules for line in found[name]]),
        )
        for name, title in SUBJECTS.items()
    ]
    alone = {line.round: line.cpu_ms for line in found["libraries"]}
    ratios = [line.cpu_ms / alone[line.round] for line in found["run"]]
    rows.append(("ratio of the two, by round", spread(ratios, 2), "", "", "", ""))
    head = ("", "CPU ms", "ms", "resident, MiB", "anonymous, MiB", "modules")
    return table(head, rows) + IMPORTS.format(n=len(ratios))
