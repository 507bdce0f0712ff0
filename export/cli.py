"""edge-export: a recipe in, a table and a bundle out. Thin; nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

from edge_runtime.errors import EdgeRuntimeError

DONE, FAILED, BUDGET_MISSED = 0, 1, 3
LAYOUTS = ("NTC", "NCT", "NT", "NF", "N1TC", "N1CT", "NTC1")
OUTPUT_KINDS = ("scores", "logits", "probability", "reconstruction", "error")


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
    _check_folder(output, "--output")
    _end(lambda: _run(recipe, output, as_json=as_json))


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


def _words(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(word.strip() for word in text.split(","))


def _pair(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise click.BadParameter(f"{text!r}, wanted NAME=VALUE")
    return name, value


def _scalar(text: str) -> tuple[str, float]:
    """NAME=NUMBER, or true or false."""
    name, value = _pair(text)
    try:
        return name, float({"true": "1", "false": "0"}.get(value, value))
    except ValueError:
        raise click.BadParameter(f"{text!r}, wanted a number") from None


@main.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "target",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Bundle to write; default NAME-VERSION.edge, in this folder.",
)
@click.option("--spec", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML file of what follows.")
@click.option("--name", help="Default: the file's name.")
@click.option("--version", help="Default: 0.1.0.")
@click.option("--input", help="The graph's input that takes a window.")
@click.option("--output", help="The graph's output to read.")
@click.option("--channels", type=_words, metavar="A,B", help="Names, with commas.")
@click.option("--units", type=_words, metavar="A,B", help="One for each channel, or one for all.")
@click.option("--length", type=int, help="Samples in a window.")
@click.option("--hop", type=int, help="Samples between window starts.")
@click.option("--rate-hz", type=float, help="Samples a second.")
@click.option("--layout", type=click.Choice(LAYOUTS), help="The axes behind the batch.")
@click.option("--lead-in", type=int, help="Zeros before the first sample of a stream.")
@click.option("--labels", type=_words, metavar="A,B", help="Names, with commas, in the order of the output.")
@click.option("--output-kind", type=click.Choice(OUTPUT_KINDS), help="What the output is.")
@click.option("--threshold", type=float, help="Error above which a window is an anomaly.")
@click.option("--tolerance", type=float, help="How far golden outputs may be off, absolute.")
@click.option("--scalar", multiple=True, type=_scalar, metavar="INPUT=VALUE", help="An input that is always the same.")
@click.option(
    "--state", multiple=True, type=_pair, metavar="INPUT=OUTPUT", help="What a stream carries from window to window."
)
@click.option(
    "--session", multiple=True, type=_pair, metavar="KEY=VALUE", help="ONNX Runtime session config entry it needs."
)
@click.option("--licence", help="Text for the card; many need to go on with the model.")
@click.option("--source", help="Where the model comes from, for the card.")
@click.option(
    "--samples",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Windows for the golden vectors, float32 .npy; default noise.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the noise.")
@click.option("--json", "as_json", is_flag=True, help="Print what was derived as JSON instead of a table.")
def pack(
    *,
    model: Path,
    target: Path | None,
    spec: Path | None,
    samples: Path | None,
    seed: int,
    scalar: tuple[tuple[str, float], ...],
    state: tuple[tuple[str, str], ...],
    session: tuple[tuple[str, str], ...],
    as_json: bool,
    **flags: object,
) -> None:
    """Make a bundle from somebody else's MODEL.onnx.

    The graph is asked for what it says itself; the rest comes from these options or the TOML file.
    """
    _check_folder(target, "-o")
    told = {key: value for key, value in flags.items() if value not in (None, ())}
    tables = (("scalar", scalar), ("state", state), ("session", session))
    told |= {key: dict(pairs) for key, pairs in tables if pairs}
    _end(lambda: _pack(model, target, spec, told, samples=samples, seed=seed, as_json=as_json))


def _pack(
    model: Path,
    target: Path | None,
    spec: Path | None,
    told: dict[str, object],
    *,
    samples: Path | None,
    seed: int,
    as_json: bool,
) -> int:
    from export.recipe import require_tools

    require_tools(("onnx",))
    from export.pack_onnx import pack_onnx, read_spec

    with _progress() as say:
        say("asking the graph, running it")
        path, facts = pack_onnx(model, read_spec(spec, told), target=target, samples=samples, seed=seed)
    if as_json:
        click.echo(json.dumps({"bundle": str(path), "facts": [fact._asdict() for fact in facts]}, indent=2))
        return DONE
    widths = [max(len(fact[column]) for fact in facts) for column in (0, 1)]
    for key, value, origin in facts:
        click.echo(f"{key:{widths[0]}}  {value:{widths[1]}}  {origin}")
    click.echo(f"{path}: {path.stat().st_size / 1000:.1f} KB", err=True)
    return DONE


def _check_folder(bundle: Path | None, option: str) -> None:
    if bundle is not None and not bundle.parent.is_dir():
        raise click.BadParameter(f"{bundle.parent} is not a folder", param_hint=option)


def _end(command: Callable[[], int]) -> NoReturn:
    """End with the command's exit code; an error raised on purpose is one line on stderr."""
    try:
        code = command()
    except EdgeRuntimeError as error:
        click.echo(f"edge-export: {error}", err=True)
        code = FAILED
    raise SystemExit(code)


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
