"""python -m benchmarks.compression: search, judge and time every family of models; write lines and page.

What is finished is kept in .cache/compression, and not done again: stop it at any time and start it again. Families
that are named are measured alone; the page is made of all there are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.compression import records, render, show
from benchmarks.compression.families import FAMILIES, Family
from benchmarks.compression.figures import Figures
from benchmarks.compression.work import FULL, PHASES, QUICK, Work
from edge_runtime.errors import ExportError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "compression"
PAGE = ROOT / "docs" / "compression.md"
KEPT = ROOT / ".cache" / "compression"
ASIDE = ROOT / "build" / "compression"
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done, 1 when a family could not be measured, 130 when it was interrupted."""
    options = _parse(arguments)
    folder = options.results or (ASIDE if options.quick else RESULTS)
    page = options.page or (ASIDE / PAGE.name if options.quick else PAGE)
    kept = options.kept or (ASIDE / "kept" if options.quick else KEPT)
    failed = 0
    try:
        if not options.render:
            failed = _measure(_works(options, kept), options.only, folder)
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept: the same command goes on", file=sys.stderr)
        return INTERRUPTED
    page.parent.mkdir(parents=True, exist_ok=True)
    lines = records.read(folder)
    page.write_text(render.page(lines))
    print(f"{page} written", file=sys.stderr)
    print(show.table([Figures(family, lines) for family in options.families]))
    return 1 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=__doc__)
    known = {family.name: family for family in FAMILIES}
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(known)}; default all")
    parser.add_argument("--only", type=_phases, default=PHASES, help=f"of {', '.join(PHASES)}, with commas")
    parser.add_argument("--again", type=_phases, default=(), help="phases to do anew though they are finished")
    parser.add_argument("--render", action="store_true", help="only make the page anew, from the lines there are")
    parser.add_argument("--quick", action="store_true", help="shows that it works, measures nothing")
    parser.add_argument("--results", type=Path, help="folder for the JSON lines")
    parser.add_argument("--page", type=Path, help="file for the page")
    parser.add_argument("--kept", type=Path, help="folder for weights, candidates and finished work")
    options = parser.parse_args(arguments)
    if unknown := set(options.families) - set(known):
        parser.error(f"unknown family {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    options.families = [known[name] for name in options.families] or list(FAMILIES)
    return options


def _phases(text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    if unknown := set(found) - set(PHASES):
        raise argparse.ArgumentTypeError(f"found {', '.join(sorted(unknown))}, wanted of {', '.join(PHASES)}")
    return found


def _works(options: argparse.Namespace, kept: Path) -> list[tuple[Family, Work]]:
    effort = QUICK if options.quick else FULL
    works = [(family, Work(family, kept / family.name, effort, _say)) for family in options.families]
    for _, work in works:
        for phase in options.again:
            work.forget(phase)
    return works


def _measure(works: Sequence[tuple[Family, Work]], phases: tuple[str, ...], folder: Path) -> int:
    """Everything but times first, so that these are taken one after the other on a machine that does nothing else;
    how many families could not be measured."""
    failed: set[str] = set()
    rest = tuple(phase for phase in phases if phase != "timing")
    for part in (rest, ("timing",) if "timing" in phases else ()):
        for family, work in works if part else ():
            if family.name in failed:
                continue
            try:
                if lines := work.lines(part):
                    records.write(folder / f"{family.name}.jsonl", lines)
            except ExportError as error:
                failed.add(family.name)
                print(f"error: {family.name}: {error}", file=sys.stderr)
    return len(failed)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
