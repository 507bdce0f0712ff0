"""edge-export: a recipe in, a table and a bundle out. Thin; nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from edge_runtime.errors import EdgeRuntimeError

DONE, FAILED, BUDGET_MISSED = 0, 1, 3


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edge-runtime", prog_name="edge-export")
def main() -> None:
    """Turn a PyTorch model into one bundle file that is proven equal to it within a budget.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no variant keeps the budget.
    """


@main.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Bundle to write; default NAME-VERSION.edge of the recipe, in this folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON instead of a table.")
def run(recipe: Path, output: Path | None, *, as_json: bool) -> None:
    """Train, export, quantize, measure and choose as RECIPE says, then write the bundle."""
    if output is not None and not output.parent.is_dir():
        raise click.BadParameter(f"{output.parent} is not a folder", param_hint="--output")
    try:
        code = _run(recipe, output, as_json=as_json)
    except EdgeRuntimeError as error:
        click.echo(f"edge-export: {error}", err=True)
        code = FAILED
    raise SystemExit(code)


def _run(path: Path, output: Path | None, *, as_json: bool) -> int:
    from export.recipe import load, require_tools  # --help must not wait for numpy and torch

    require_tools()
    with _progress() as say:
        say("loading the recipe")
        recipe = load(path)
        from export import pack, report, search

        outcome = search.search(recipe, progress=say)
        target = output or Path(f"{recipe.name}-{recipe.version}.edge")
        if outcome.chosen:
            say("packing")
            pack.pack(target, recipe, outcome)
    click.echo(report.as_json(recipe, outcome) if as_json else report.plain(report.rows(recipe, outcome)))
    if outcome.chosen is None:
        near = search.nearest(outcome.measured, recipe.budget)
        click.echo(f"edge-export: {report.missed(recipe, near)}", err=True)
        return BUDGET_MISSED
    click.echo(f"{target}: {outcome.chosen.name}, {target.stat().st_size / 1000:.1f} KB", err=True)
    return DONE


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """One changing line on a terminal's stderr; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _text: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(escape(text))
