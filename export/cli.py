"""edge-export: a recipe in, a table and a bundle out. Thin; nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from export.cli_compress import compress, explain, verify
from export.cli_options import DONE, FILE, NEW_FILE, check_folder, conclude, end, progress, spec_options


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edge-runtime", prog_name="edge-export")
def main() -> None:
    """Turn a PyTorch model into one bundle file that is proven equal to it within a budget.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no variant keeps the budget.
    """


@main.command()
@click.argument("recipe", type=FILE)
@click.option(
    "-o",
    "--output",
    type=NEW_FILE,
    help="Bundle to write; default NAME-VERSION.edge of the recipe, in this folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON instead of a table.")
def run(recipe: Path, output: Path | None, *, as_json: bool) -> None:
    """Train, export, quantize, measure and choose as RECIPE says, then write the bundle.

    What `compress` does, but without pruning and fine-tuning, and without keeping anything for another time.
    """
    check_folder(output, "--output")
    end(lambda: _run(recipe, output, as_json=as_json))


def _run(path: Path, output: Path | None, *, as_json: bool) -> int:
    from export.recipe import load, require_tools  # --help must not wait for numpy and torch

    require_tools()
    with progress() as say:
        say("loading the recipe")
        recipe = load(path)
        from export import compress, originals

        task = originals.of_recipe(recipe, folder=None, progress=say)
        found = compress.run(task, effort="post-training", progress=say)
    return conclude(found, output or Path(f"{recipe.name}-{recipe.version}.edge"), as_json=as_json)


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
@click.argument("model", type=FILE)
@click.option(
    "-o",
    "target",
    type=NEW_FILE,
    help="Bundle to write; default NAME-VERSION.edge, in this folder.",
)
@spec_options
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
    type=FILE,
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
    check_folder(target, "-o")
    told = {key: value for key, value in flags.items() if value not in (None, ())}
    tables = (("scalar", scalar), ("state", state), ("session", session))
    told |= {key: dict(pairs) for key, pairs in tables if pairs}
    end(lambda: _pack(model, target, spec, told, samples=samples, seed=seed, as_json=as_json))


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

    with progress() as say:
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


main.add_command(compress)
main.add_command(explain)
main.add_command(verify)
