"""python -m benchmarks: run all of them, write the JSON lines, and the page made from them."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from benchmarks import demo_memory, machine, main_job, payloads, render, results, start, workloads
from benchmarks.broker import BrokerError
from benchmarks.results import Latency, Line, Machine, MaxRate
from benchmarks.subjects import SubjectError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PAYLOADS_PAGE = ROOT / "docs" / "payloads.md"
QUICK = ROOT / "build" / "benchmarks"


def main() -> int:
    """0 done, 1 when a subject failed, or lost, repeated or mistook a message."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("only", nargs="?", choices=["payloads"], help="measure nothing else")
    parser.add_argument("--quick", action="store_true", help="half a minute: shows that it works, measures nothing")
    parser.add_argument("--results", type=Path, help="folder for the JSON lines")
    parser.add_argument("--page", type=Path, help="file for the page")
    parser.add_argument("--render", action="store_true", help="only make the page anew, from the lines there are")
    options = parser.parse_args()
    folder = options.results or (QUICK if options.quick else RESULTS)
    page = options.page or (QUICK / PAGE.name if options.quick else PAGE)
    try:
        faults = 0 if options.render else _measure(folder, quick=options.quick, only=options.only)
    except (BrokerError, SubjectError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not options.only:
        _write(page, render.page(results.read(folder)))
    table = render.with_payloads(PAYLOADS_PAGE.read_text(), results.read(folder / "payloads"))
    _write(page.with_name(PAYLOADS_PAGE.name), table)
    return 1 if faults else 0


def _write(page: Path, text: str) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)
    print(f"{page} written", file=sys.stderr)


def _measure(folder: Path, *, quick: bool, only: str | None) -> int:
    """Run everything, or only one; how many messages were lost, repeated or mistaken."""
    found = machine.describe(quick=quick)
    rounds = payloads.QUICK_ROUNDS if quick else payloads.FULL_ROUNDS
    results.write(folder / "payloads" / "lines.jsonl", _shown([found, *payloads.run(rounds, found)]))
    if only:
        return 0
    results.write(folder / "machine.jsonl", _shown([found]))
    with tempfile.TemporaryDirectory(prefix="edge-runtime-bench-") as name:
        scratch = Path(name)
        models = workloads.build(scratch)
        lines = _main_job(models, scratch, found)
        results.write(folder / "main_job.jsonl", lines)
        starts = start.QUICK_ROUNDS if quick else start.FULL_ROUNDS
        results.write(folder / "start.jsonl", _shown(start.run(starts, models["feat64"], scratch, found)))
        demos = (
            (demo_memory.QUICK_ROUNDS, demo_memory.QUICK_S) if quick else (demo_memory.FULL_ROUNDS, demo_memory.FULL_S)
        )
        results.write(folder / "demo_memory.jsonl", _shown(demo_memory.run(*demos, scratch, found)))
    return sum(line.missing + line.repeated + line.wrong for line in lines if isinstance(line, MaxRate | Latency))


def _main_job(models: dict[str, workloads.Workload], scratch: Path, found: Machine) -> list[Line]:
    effort = main_job.QUICK if found.quick else main_job.FULL
    return list(_shown(main_job.run(effort, models, scratch, found)))


def _shown(lines: Iterable[Line]) -> Iterable[Line]:
    for line in lines:
        print(msgspec.json.encode(line).decode(), flush=True)
        yield line


if __name__ == "__main__":
    sys.exit(main())
