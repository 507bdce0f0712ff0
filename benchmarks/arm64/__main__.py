"""python -m benchmarks.arm64: count instructions on emulated boards; write lines and page, or hold them to those there.

Of the examples whose data is not part of the project, the bundles are counted that benchmarks.arm64.variants has made.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.arm64 import baseline, page, records, variants
from benchmarks.arm64.hot_path import hot_path
from benchmarks.arm64.inference import inference
from benchmarks.arm64.records import Line, Where
from edge_runtime.errors import ExportError
from export.arm64 import counter
from export.arm64.cores import CORES
from export.arm64.userland import SUITE, requirements, userland

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "arm64" / "lines.jsonl"
PAGE = ROOT / "docs" / "arm64.md"
CODE = ("edge_runtime", "export", "benchmarks", ":!benchmarks/results", "pyproject.toml", "constraints.txt")
DONE, FAILED = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done, 1 when it cannot be counted here, when a count is off or a result is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arm64", description=__doc__)
    parser.add_argument("--check", action="store_true", help="count anew, and write nothing")
    parser.add_argument("--render", action="store_true", help="only make the page anew, from the lines there are")
    parser.add_argument("--cores", nargs="+", choices=list(CORES), default=list(CORES))
    options = parser.parse_args(arguments)
    try:
        lines = records.read(RESULTS) if options.render else list(_counted(options.cores))
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    if options.check:
        return _check(records.read(RESULTS), lines)
    records.write(RESULTS, lines)
    PAGE.write_text(page.page(lines))
    print(f"{PAGE} written", file=sys.stderr)
    return _told(baseline.wrong(lines))


def _counted(cores: Sequence[str]) -> Iterator[Line]:
    where = userland(SUITE, progress=lambda text: print(text, file=sys.stderr))
    today = dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d")
    versions = dict(wanted.split("==") for wanted in requirements())
    yield Where(machine.commit(CODE), today, counter.version(), SUITE, versions)
    yield from inference(where, cores, variants.bundles())
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        yield from hot_path(where, cores, Path(folder))


def _check(before: Sequence[Line], after: Sequence[Line]) -> int:
    found = baseline.differences(before, after)
    for difference in found:
        told = difference.reason or f"{difference.before:,} to {difference.after:,}, {difference.share:+.2%}"
        print(f"{'FAIL' if difference.is_beyond else 'ok  '} {' '.join(difference.key)}: {told}")
    compared = [difference for difference in found if not difference.reason]
    beyond = [
        f"{' '.join(d.key)}: {d.share:+.2%}, wanted at most {baseline.LIMIT:.0%}" for d in compared if d.is_beyond
    ]
    if beyond and (moved := baseline.moved(before, after)):
        print(f"changed since the baseline: {'; '.join(moved)}", file=sys.stderr)
    return _told([*beyond, *baseline.wrong(after), *([] if compared else ["nothing could be compared"])])


def _told(problems: Sequence[str]) -> int:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return FAILED if problems else DONE


if __name__ == "__main__":
    sys.exit(main())
