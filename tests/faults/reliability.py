"""docs/reliability.md from the results of the long form. Pure, but for `main`, which reads and writes the files."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from outcome import RESULTS, Growth, Line, Machine, Run, Tested, Wear, of, read

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
MAX_INFLIGHT = 100
WANTED_KILLS, WANTED_MESSAGES = 200, 100_000
RECOVERY_S, PARTITION_S, STOP_S = 2.0, 2 * 1 + 0.5, 5.0
MOST_MB_PER_MIN = 0.1
BROKER_BACK, PARTITION, SIGTERM = "a broker that comes back", "after a silent partition", "sigterm under load"
HOURS_A_DAY = 24

HEAD = """# Reliability

What the fault suite found: a real mosquitto, real daemon processes, faults from outside, and every result held against
the undisturbed run of the same input, byte for byte apart from times. `make chaos` runs it and writes this page
(about 45 minutes); `make test` runs a short form.

"""

METHOD = """## How

Producers at QoS 1 number their messages and send each until the broker has confirmed it; a sink with a session of its
own keeps what it gets, in order. The pipelines: windows over several messages with an alarm (k of n, hysteresis), the
same stream told on change only, two windows from one message, a model with a carried state, and a stream without
numbers or times. `delivery = "normal"`.

- *lost*: results and events of the undisturbed run that never came. *changed*: came otherwise, or were not to come.
- *duplicates* have the id of a result that came before, and its payload. *inversions*: neighbours of a stream that came
  the wrong way round, which a restart may cause: live results go first, the backlog after them.
- *alarms*: changes come in order, and the retained state is the last one. *ledger*: balanced over all lives of the
  node, and its totals are those of the undisturbed run.
- *recovery*: from the moment the fault is over (for a broker: it listens again) to the first result at the sink.

Limits: kill -9 does not test what a loss of power does, since the page cache survives it. Inputs are multiples of
1/64, so that float32 sums do not depend on how windows were batched. A broker that is killed loses what it had
acknowledged and not yet passed on: the suite keeps its load below that.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def render(lines: Sequence[Line]) -> str:
    """The page. Raises ValueError when it is not said once where the run was made."""
    machines = of(lines, Machine)
    if len(machines) != 1:
        raise ValueError(f"{len(machines)} machines in the results, wanted 1: run make chaos")
    runs = [run for run in of(lines, Run) if run.delivery != "memory"]
    parts = [HEAD, _machine(machines[0]), "## What was promised\n\n", _promises(lines, runs)]
    parts += ["\n## Faults\n\n", _faults(runs), _controls(lines), _points(runs), "\n## Tests\n\n", _tests(lines)]
    parts += ["\n## Memory\n\n", _growth(lines), "\n## Writing to the disk\n\n", _wear(lines), "\n", METHOD]
    return "".join(parts)


def _machine(found: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    text = f"{found.device}, {found.memory_gb} GB, {found.system}, kernel {found.kernel}; {versions}; "
    text += f"commit {found.commit}, {found.date}, load average before it {found.load}.\n\n"
    return text + (
        "**A quick run: it shows that the suite works, its numbers mean nothing.**\n\n" if found.quick else ""
    )


def _met(reached: bool | None) -> str:
    return "not measured" if reached is None else "yes" if reached else "**no**"


def _promises(lines: Sequence[Line], runs: Sequence[Run]) -> str:
    killed = [run for run in runs if run.points and run.kills]
    rows = [*_kill_rows(killed), *_equal_rows(runs), *_time_rows(runs)]
    storms = [one for one in of(lines, Growth) if one.what.startswith("storm")]
    flat = all(abs(one.slope_mb_per_min) <= MOST_MB_PER_MIN for one in storms) if storms else None
    found = "; ".join(f"{one.slope_mb_per_min:+.3f} MB/min over {one.seconds / 60:.0f} min" for one in storms)
    rows.append(
        ("memory over a 10-minute storm", f"slope about 0 (at most {MOST_MB_PER_MIN})", found or "-", _met(flat))
    )
    elsewhere = "see [benchmarks](benchmarks.md)"
    rows.append(("cost: `normal` against `memory`, msg/s, QoS 1", "≥ 0.6x (aim 0.8x)", elsewhere, ""))
    rows.append(("`normal` against the naive QoS 1 script, msg/s", "≥ 8x", elsewhere, ""))
    return table(("what", "target", "found", "met"), rows)


Row = tuple[str, str, str, str]


def _kill_rows(killed: Sequence[Run]) -> list[Row]:
    kills, sent = sum(run.kills for run in killed), sum(run.sent for run in killed)
    lost, duplicates = sum(run.lost for run in killed), sum(run.duplicates for run in killed)
    enough = kills >= WANTED_KILLS and sent >= WANTED_MESSAGES
    most = MAX_INFLIGHT * kills
    return [
        (
            "results lost, QoS 1, `normal`, ≥ 200 kill -9 and ≥ 100,000 messages",
            "0",
            f"{lost} ({kills} kills, {sent:,} messages)",
            _met(lost == 0 and enough if killed else None),
        ),
        (
            "duplicates delivered",
            "only with equal ids; at most the in-flight window times the kills",
            f"{duplicates:,} of at most {most:,}",
            _met(duplicates <= most if killed else None),
        ),
    ]


def _equal_rows(runs: Sequence[Run]) -> list[Row]:
    changed, alarms = sum(run.changed for run in runs), sum(len(run.alarms) for run in runs)
    balanced = sum(not run.ledger for run in runs)
    expected = sum(run.expected for run in runs)
    return [
        (
            "results and alarms equal to an undisturbed run",
            "all",
            f"{changed} of {expected:,} results changed, {alarms} alarms off",
            _met(not changed and not alarms if runs else None),
        ),
        (
            "ledger balanced after every fault",
            "always",
            f"{balanced} of {len(runs)} runs",
            _met(balanced == len(runs) if runs else None),
        ),
    ]


def _time_rows(runs: Sequence[Run]) -> list[Row]:
    back, silent = _recoveries(runs, BROKER_BACK), _recoveries(runs, PARTITION)
    ended = [run for run in runs if run.fault.startswith(SIGTERM)]
    stops_s = [stop_s for run in ended for stop_s in run.stops_s]
    lost, duplicates = sum(run.lost for run in ended), sum(run.duplicates for run in ended)
    drained = max(stops_s) <= STOP_S and not lost and not duplicates if stops_s else None
    return [
        (
            "broker back → delivering",
            f"≤ {RECOVERY_S:g} s",
            _spread(back),
            _met(max(back) <= RECOVERY_S if back else None),
        ),
        (
            "after a silent partition, keep-alive 1 s, back-off ≤ 0.5 s",
            f"≤ {PARTITION_S:g} s",
            _spread(silent),
            _met(max(silent) <= PARTITION_S if silent else None),
        ),
        (
            "SIGTERM under load",
            f"≤ {STOP_S:g} s, 0 lost, 0 duplicates",
            f"{_spread(stops_s)}; {lost} lost, {duplicates} duplicates",
            _met(drained),
        ),
    ]


def _recoveries(runs: Iterable[Run], fault: str) -> list[float]:
    return [one for run in runs if run.fault.startswith(fault) for one in run.recoveries_s]


def _spread(values: Sequence[float]) -> str:
    """n, median, max, in seconds."""
    return f"n {len(values)}, median {statistics.median(values):.2f} s, max {max(values):.2f} s" if values else "-"


def _faults(runs: Sequence[Run]) -> str:
    by_fault: dict[str, list[Run]] = {}
    for run in runs:
        by_fault.setdefault(run.fault, []).append(run)
    head = ("fault", "runs", "faults", "messages", "results", "lost", "changed", "duplicates", "inversions", "recovery")
    rows = []
    for fault, found in by_fault.items():
        counts = [sum(getattr(run, key) for run in found) for key in
                  ("times", "sent", "expected", "lost", "changed", "duplicates", "inversions")]  # fmt: skip
        recoveries = [one for run in found for one in run.recoveries_s]
        rows.append([fault, str(len(found)), *(f"{n:,}" for n in counts), _spread(recoveries)])
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    wrong = [f"- {run.fault} (seed {run.seed}): {text}\n" for run in runs for text in (*run.alarms, *run.ledger)]
    wrong += [f"- {run.fault} (seed {run.seed}): {text}\n" for run in runs for text in run.examples]
    return table(head, rows) + f"\nSeeds: {seeds}.\n" + ("\nWhat went wrong:\n\n" + "".join(wrong) if wrong else "")


def _controls(lines: Sequence[Line]) -> str:
    """That the suite can fail: what it finds where losses are allowed."""
    found = [run for run in of(lines, Run) if run.delivery == "memory" and run.kills]
    lost, expected = sum(run.lost for run in found), sum(run.expected for run in found)
    kills = sum(run.kills for run in found)
    return (
        f"\nThe control, `memory` tier: {lost} of {expected:,} results lost to {kills} kills, and found.\n"
        if found
        else ""
    )


def _points(runs: Sequence[Run]) -> str:
    points = sum((Counter(run.points) for run in runs if run.kills), Counter[str]())
    if not points:
        return ""
    named = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in sorted(points.items()))
    return f"\nKills at named points: {named}; the others at random moments, those of the start included.\n"


def _tests(lines: Sequence[Line]) -> str:
    by_name: dict[str, list[Tested]] = {}
    for one in of(lines, Tested):
        by_name.setdefault(one.name, []).append(one)
    rows = []
    for name, found in by_name.items():
        counts = Counter(one.outcome for one in found)
        text = ", ".join(f"{outcome} {n}" for outcome, n in counts.items())
        reasons = {one.reason for one in found if one.reason}
        rows.append((name, f"**no**: {text}" if "failed" in counts else text + "".join(f" ({why})" for why in reasons)))
    return table(("test, in its long form", "outcome, by seed"), rows)


def _growth(lines: Sequence[Line]) -> str:
    head = ("resident memory of one life", "minutes", "first MB", "last MB", "most MB", "slope MB/min")
    rows = [
        (
            one.what,
            f"{one.seconds / 60:.1f}",
            f"{one.first_mb:.1f}",
            f"{one.last_mb:.1f}",
            f"{one.most_mb:.1f}",
            f"{one.slope_mb_per_min:+.4f} ± {one.spread_mb_per_min:.4f}",
        )
        for one in of(lines, Growth)
    ]
    return (
        table(head, rows)
        + "\nSampled each second, without the first two minutes; least squares and its standard error. The latency "
        "histograms have a fixed size, 0.9 MB a pipeline, of which a page counts once a latency of its size has come.\n"
    )


def _wear(lines: Sequence[Line]) -> str:
    found = of(lines, Wear)
    head = ("at 10 messages a second", "profile", "bytes a message", "MB an hour", "MB a day")
    rows = [
        (
            one.workload,
            one.profile,
            f"{one.bytes_per_message:,.0f}",
            f"{one.mb_per_hour:.1f}",
            f"{one.mb_per_hour * HOURS_A_DAY:.0f}",
        )
        for one in found
    ]
    seconds = max((one.seconds for one in found), default=0.0)
    return (
        table(head, rows)
        + f"\nAll side by side for {seconds:.0f} s and extrapolated; `write_bytes` of the process (proc(5), io), "
        "latency log included: whole pages. What the file system's journal and flash add comes on top.\n"
    )


def main() -> None:
    PAGE.write_text(render(read(Path(sys.argv[1]) if sys.argv[1:] else RESULTS)))


if __name__ == "__main__":
    main()
