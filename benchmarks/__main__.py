"""python -m benchmarks: run all of them, write the JSON lines and the page made from them, print the ratios.

A part, or a selection of the main job, is measured beside: its lines and its page go to build/benchmarks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from benchmarks import demo_memory, machine, main_job, payloads, plan, render, results, show, start, tables, workloads
from benchmarks.broker import SETUPS
from benchmarks.failures import FAILURES, guarded
from benchmarks.figures import Figures
from benchmarks.results import Failed, Line, Machine, Measured

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PAYLOADS_PAGE = ROOT / "docs" / "payloads.md"
ASIDE = ROOT / "build" / "benchmarks"
PARTS = ("main", "start", "demo", "payloads")
UNFINISHED = ".part"


def main() -> int:
    """0 done, 1 when a subject failed, or lost, repeated or mistook a message."""
    options = _parse()
    chosen = _selection(options)
    aside = options.quick or bool(chosen) or (options.parts != ["payloads"] and set(options.parts) != set(PARTS))
    folder = options.results or (ASIDE if aside else RESULTS)
    page = options.page or (ASIDE / PAGE.name if aside else PAGE)
    try:
        faults = 0 if options.render else _measure(options, chosen, folder)
    except FAILURES as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.parts != ["payloads"]:
        lines = results.read(folder)
        _write(page, render.page(lines))
        print(show.table(lines), tables.ratios(Figures(lines)), sep="\n")
    if "payloads" in options.parts:
        table = render.with_payloads(PAYLOADS_PAGE.read_text(), results.read(folder / "payloads"))
        _write(page.with_name(PAYLOADS_PAGE.name), table)
    return 1 if faults else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", default=[], help=f"of {', '.join(PARTS)}: measure nothing else")
    parser.add_argument("--quick", action="store_true", help="about a minute: shows that it works, measures nothing")
    parser.add_argument("--rounds", type=int, help="of the main job")
    parser.add_argument("--workloads", type=_words(workloads.WORKLOADS), default=(), help="only these, with commas")
    parser.add_argument("--subjects", type=_words(plan.names()), default=(), help="only these, with commas")
    parser.add_argument("--qos", type=_words(("0", "1")), default=(), help="only this")
    parser.add_argument("--brokers", type=_words(SETUPS), default=(), help="only this kind")
    parser.add_argument("--results", type=Path, help="folder for the JSON lines")
    parser.add_argument("--page", type=Path, help="file for the page")
    parser.add_argument("--render", action="store_true", help="only make the page anew, from the lines there are")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    chosen = bool(_selection(options))
    options.parts = options.parts or (["main"] if chosen else list(PARTS))
    if chosen and options.parts != ["main"]:
        parser.error("--workloads, --subjects, --qos and --brokers are about the main job alone")
    return options


def _words(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    allowed = tuple(known)

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if unknown := set(found) - set(allowed):
            raise argparse.ArgumentTypeError(f"found {', '.join(sorted(unknown))}, wanted of {', '.join(allowed)}")
        return found

    return parse


def _selection(options: argparse.Namespace) -> plan.Selection:
    qos = tuple(int(word) for word in options.qos)
    return plan.Selection(options.workloads, options.subjects, qos, options.brokers)


def _write(page: Path, text: str) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)
    print(f"{page} written", file=sys.stderr)


def _measure(options: argparse.Namespace, chosen: plan.Selection, folder: Path) -> int:
    """Run the parts asked for; how many messages were lost, repeated or mistaken, and measurements failed."""
    found = machine.describe(quick=options.quick)
    parts, quick = options.parts, options.quick
    if "payloads" in parts:
        rounds = payloads.QUICK_ROUNDS if quick else payloads.FULL_ROUNDS
        results.write(folder / "payloads" / "lines.jsonl", [found, *_told(payloads.run(rounds, found))])
    if parts == ["payloads"]:
        return 0
    faults, written = 0, []
    with tempfile.TemporaryDirectory(prefix="edge-runtime-bench-") as name:
        for part, lines in _parts(options, chosen, Path(name), found).items():
            written.append(folder / f"{part}.jsonl{UNFINISHED}")
            faults += sum(map(_faults, results.append(written[-1], _told(guarded(part, lines, found)))))
    for path in written:
        path.replace(path.with_suffix(""))
    return faults


def _parts(
    options: argparse.Namespace, chosen: plan.Selection, scratch: Path, found: Machine
) -> dict[str, Iterable[Line]]:
    """Lines by the file they go to; none of a part that is not asked for."""
    parts, quick = options.parts, options.quick
    rounds, effort = (start.QUICK_ROUNDS, demo_memory.QUICK) if quick else (start.FULL_ROUNDS, demo_memory.FULL)
    return {
        "machine": [found],
        "main_job": main_job.run(_effort(options), chosen, scratch, found) if "main" in parts else (),
        "start": start.run(rounds, scratch, found) if "start" in parts else (),
        "demo_memory": demo_memory.run(*effort, scratch, found) if "demo" in parts else (),
    }


def _faults(line: Line) -> int:
    if isinstance(line, Failed):
        print(f"error: {line.what}: {line.reason}", file=sys.stderr)
        return 1
    return line.missing + line.repeated + line.wrong if isinstance(line, Measured) else 0


def _effort(options: argparse.Namespace) -> main_job.Effort:
    effort = main_job.QUICK if options.quick else main_job.FULL
    return msgspec.structs.replace(effort, rounds=options.rounds) if options.rounds else effort


def _told(lines: Iterable[Line]) -> Iterator[Line]:
    """Each line to stderr as it is made."""
    for line in lines:
        print(msgspec.json.encode(line).decode(), file=sys.stderr, flush=True)
        yield line


if __name__ == "__main__":
    sys.exit(main())
