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
    """0 done, 1 when it cannot be counted here, when a count is off or missing, or a result is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arm64", description=__doc__)
    parser.add_argument("--check", action="store_true", help="count anew, and write nothing")
    parser.add_argument("--render", action="store_true", help="only make the page anew, from the lines there are")
    parser.add_argument("--cores", nargs="+", choices=list(CORES), default=list(CORES))
    options = parser.parse_args(arguments)
    left_out = [name for name in CORES if name not in options.cores]
    if left_out and not (options.check or options.render):
        return _told([f"a baseline without {', '.join(left_out)} would hold nothing to account there: not written"])
    try:
        lines = records.read(RESULTS) if options.render else list(_counted(options.cores))
    except ExportError as error:
        return _told([str(error)])
    if options.check:
        return _check(records.read(RESULTS), lines, options.cores)
    records.write(RESULTS, lines)
    PAGE.write_text(page.page(lines))
    print(f"{PAGE} written", file=sys.stderr)
    return _told(baseline.wrong(lines))


def _counted(cores: Sequence[str]) -> Iterator[Line]:
    if reason := counter.problem():
        raise ExportError(f"no instructions can be counted: {reason}")
    where = userland(SUITE, progress=lambda text: print(text, file=sys.stderr))
    today = dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d")
    versions = dict(wanted.split("==") for wanted in requirements())
    yield Where(machine.commit(CODE), today, counter.version(), SUITE, versions, records.debian(where.root))
    yield from inference(where, cores, variants.bundles())
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        yield from hot_path(where, cores, Path(folder))


def _check(before: Sequence[Line], after: Sequence[Line], cores: Sequence[str]) -> int:
    found, moved = baseline.differences(before, after, cores), baseline.moved(before, after)
    for difference in found:
        print(f"{difference.status:4} {' '.join(difference.key)}: {difference.told}")
    failed = [difference for difference in found if difference.status == "FAIL"]
    told = [f"{' '.join(difference.key)}: {difference.told}" for difference in failed]
    if moved and any(difference.is_beyond for difference in failed):
        told.append(f"cannot be compared: {', '.join(moved)}; {baseline.ANEW}")
    if not found:
        told.append("nothing could be compared")
    return _told([*told, *baseline.wrong(after)])


def _told(problems: Sequence[str]) -> int:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return FAILED if problems else DONE


if __name__ == "__main__":
    sys.exit(main())
