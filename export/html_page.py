"""One page of HTML in one file: no network, no script, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, ROW, LINE = 400, 30, 12
"""Of a plot of bars, in its own units; a phone shows about as many pixels."""
CSS = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6878; --paper: #ffffff; --line: #d8dee8; --panel: #f4f6fa;
  --int8: #1a7f5a; --float32: #b4570e; --float16: #7a5cc0; --conversion: #c2334d; --shape: #6b7785;
  --front-end: #2563b8; --plain: #2563b8; --chosen: #1a7f5a; --rejected: #c2334d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf2; --soft: #9aa6b8; --paper: #12161d; --line: #2c3442;
  --panel: #1a202b; --int8: #4cc38a; --float32: #f0a35e; --float16: #b39df0; --conversion: #f2778c; --shape: #8f9bab;
  --front-end: #7db0f7; --plain: #7db0f7; --chosen: #4cc38a; --rejected: #f2778c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.75rem 0 .5rem; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
ul, ol { padding-left: 1.25rem; }
.soft { color: var(--soft); }
.figures { display: flex; flex-wrap: wrap; gap: .5rem; padding: 0; margin: .75rem 0; list-style: none; }
.figures li { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .4rem .8rem; }
.figures b { display: block; font-size: 1.15rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { display: block; width: 100%; max-width: 36rem; height: auto; margin: .5rem 0; }
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; }
svg .soft { fill: var(--soft); }
svg .track { fill: var(--panel); stroke: var(--line); stroke-width: .5; }
.int8 { fill: var(--int8); } .float32 { fill: var(--float32); } .float16 { fill: var(--float16); }
.conversion { fill: var(--conversion); } .shape { fill: var(--shape); } .front-end { fill: var(--front-end); }
.plain { fill: var(--plain); }
summary { cursor: pointer; padding: .25rem 0; }
"""


class Bar(NamedTuple):
    """One bar of a plot. value: at least 0. told: the value in words. style: a CSS class that gives its colour."""

    label: str
    value: float
    told: str
    style: str = "plain"


class Column(NamedTuple):
    """Of a table. is_number: to be set flush right."""

    title: str
    is_number: bool = False


def page(title: str, sections: Sequence[str], *, css: str = "") -> str:
    """A whole document. sections: HTML, escaped already; empty ones are left out."""
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{css}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it, HTML; nothing when nothing does."""
    inside = "\n".join(part for part in parts if part)
    return f"<h2>{escape(title)}</h2>\n{inside}" if inside else ""


def paragraph(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def listing(items: Sequence[str], *, ordered: bool = False) -> str:
    """A list of plain texts; nothing for none."""
    tag = "ol" if ordered else "ul"
    inside = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<{tag}>{inside}</{tag}>" if items else ""


def figures(pairs: Sequence[tuple[str, str]]) -> str:
    """Large figures with what they are."""
    inside = "".join(f"<li><b>{escape(value)}</b>{escape(name)}</li>" for name, value in pairs)
    return f'<ul class="figures">{inside}</ul>'


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts that scrolls by itself where the screen is narrow."""
    kinds = [' class="number"' if column.is_number else "" for column in columns]
    head = "".join(f"<th{kind}>{escape(column.title)}</th>" for column, kind in zip(columns, kinds, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{escape(cell)}</td>' for cell, kind in zip(row, kinds, strict=True))}</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def folded(summary: str, content: str) -> str:
    """Content that is shown on demand."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"


def bars(rows: Sequence[Bar], *, title: str) -> str:
    """A plot of horizontal bars, each under its label; nothing for none. title: read out to who cannot see it."""
    if not rows:
        return ""
    most = max(row.value for row in rows) or 1.0
    drawn = []
    for index, row in enumerate(rows):
        top, wide = index * ROW, WIDTH * max(row.value, 0.0) / most
        drawn.append(
            f"<g><title>{escape(f'{row.label}: {row.told}')}</title>"
            f'<text x="0" y="{top + LINE}">{escape(_cut(row.label, len(row.told)))}</text>'
            f'<text class="soft" x="{WIDTH}" y="{top + LINE}" text-anchor="end">{escape(row.told)}</text>'
            f'<rect class="track" x="0" y="{top + LINE + 4}" width="{WIDTH}" height="7" rx="2"/>'
            f'<rect class="{escape(row.style)}" x="0" y="{top + LINE + 4}" width="{wide:.1f}" height="7" rx="2"/></g>'
        )
    height = len(rows) * ROW
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'


def _cut(label: str, taken: int) -> str:
    """As much of a label as fits on a line beside so many characters."""
    room = 64 - taken
    return label if len(label) <= room else f"{label[: room - 1]}…"
