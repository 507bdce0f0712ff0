"""edge-export compress, explain and verify. Thin; nothing heavy is imported before a command runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_runtime.errors import ExportError
from export.amounts import amount
from export.cli_options import (
    BUDGET_MISSED,
    DONE,
    FILE,
    NEW_FILE,
    check_folder,
    check_suffix,
    conclude,
    end,
    progress,
    spec_options,
)

if TYPE_CHECKING:
    from export.explain import Explanation
    from export.recipe import Budget
    from export.task import Task

EFFORTS = ("quick", "default", "thorough", "post-training")
CACHE = Path("~/.cache/edge-export")
PAGES = (".html", ".txt")
TARGET_HELP = "local, local:cuda, emulated:a72 (a53, a76), or mqtts://user@host/node?password_file=FILE."
TIME_LIMIT_HELP = "No training is begun that would end past it. Default: 18min; 6min for quick; else none."
DATA_HELP = "Windows of an ONNX file, .npz: calibrate, validation, validation_targets, test, test_targets."


def _amount(kind: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            return amount(text, kind)
        except ExportError as error:
            raise click.BadParameter(str(error)) from None

    return read


@click.command()
@click.argument("model", type=FILE)
@click.option("-o", "bundle", type=NEW_FILE, help="Bundle to write; default NAME-VERSION.edge, in this folder.")
@click.option("--max-drop", type=_amount("share"), metavar="0.5%", help="Of the metric, absolute.")
@click.option("--p95", type=_amount("milliseconds"), metavar="5ms", help="Of one window, on the target.")
@click.option("--size", type=_amount("kilobytes"), metavar="40kB", help="Of the ONNX file.")
@click.option("--target", default="local", show_default=True, help=TARGET_HELP)
@click.option("--effort", type=click.Choice(EFFORTS), default="default", show_default=True, help="How long to look.")
@click.option("--time-limit", type=_amount("seconds"), metavar="20min", help=TIME_LIMIT_HELP)
@click.option("--seed", type=click.IntRange(min=0), help="Default: the recipe's, else 0.")
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=CACHE,
    show_default=True,
    help="Folder in which candidates are kept: a search goes on where it was broken off.",
)
@click.option("--data", type=FILE, help=DATA_HELP)
@click.option("--plot", type=NEW_FILE, help="Pareto plot to write, .html or .png.")
@click.option("--report", type=NEW_FILE, help="Page to write that explains the chosen one, .html or .txt.")
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON instead of a table.")
@spec_options
def compress(
    *,
    model: Path,
    bundle: Path | None,
    max_drop: float | None,
    p95: float | None,
    size: float | None,
    target: str,
    effort: str,
    time_limit: float | None,
    seed: int | None,
    cache: Path,
    data: Path | None,
    plot: Path | None,
    report: Path | None,
    as_json: bool,
    **told: object,
) -> None:
    """Find the smallest and fastest form of MODEL, a recipe or an ONNX file, that keeps a budget on a target.

    A recipe is trained first, once; what it says of a budget holds where no option says otherwise. An ONNX file needs
    --data, and where the graph does not say it, what `pack` asks for too.
    """
    for file, option in ((bundle, "-o"), (plot, "--plot"), (report, "--report")):
        check_folder(file, option)
    check_suffix(plot, "--plot", (".html", ".png"))
    check_suffix(report, "--report", PAGES)

    def run() -> int:
        from export.recipe import Budget
        from export.targets import parse

        parse(target)
        if target.startswith("mqtt://"):
            from export.remote import exposed

            if risk := exposed(target):
                click.echo(f"edge-export: warning: {risk}", err=True)
        asked = Budget(max_drop, p95, size)
        with progress() as say:
            task = _task(model, data, told, asked, seed=seed, folder=cache.expanduser(), say=say)
            from export import compress as api

            found = api.run(
                task, target=target, effort=effort, time_limit_s=time_limit, folder=cache.expanduser(), progress=say
            )
        code = conclude(found, bundle or Path(f"{task.name}-{task.version}.edge"), as_json=as_json)
        with progress() as say:
            say("plotting, explaining")
            if plot:
                found.plot(plot)
            if report and found.outcome.chosen:
                _write_page(report, found.explain())
        if report and not found.outcome.chosen:
            click.echo(f"edge-export: {report} is not written: it explains the chosen one", err=True)
        return code

    end(run)


def _task(
    model: Path,
    data: Path | None,
    told: dict[str, object],
    asked: Budget,
    *,
    seed: int | None,
    folder: Path | None,
    say: Callable[[str], None],
) -> Task:
    """A recipe trained, or an ONNX file with its data; the budget with what was asked on top."""
    import msgspec

    from export import originals
    from export.recipe import load, require_tools

    given = {key: value for key, value in told.items() if value not in (None, ())}
    if model.suffix == ".onnx":
        require_tools(("onnx",))
        from export.onnx_task import onnx_task

        return onnx_task(model, data, given, asked, seed=seed or 0)
    if given or data:
        named = ", ".join([*(f"--{key.replace('_', '-')}" for key in given), *(["--data"] if data else [])])
        raise ExportError(f"{model}: a recipe says itself what {named} would say; wanted for an ONNX file only")
    require_tools()
    say("loading the recipe")
    recipe = load(model)
    limits = {name: limit for name, limit in msgspec.structs.asdict(asked).items() if limit is not None}
    budget = msgspec.structs.replace(recipe.budget, **limits)
    recipe = msgspec.structs.replace(recipe, budget=budget, seed=recipe.seed if seed is None else seed)
    return originals.of_recipe(recipe, folder=folder, progress=say)


def _write_page(path: Path, explanation: Explanation) -> None:
    """A page of HTML or of text, by the file's suffix."""
    from export import explain_html

    path.write_text(explain_html.page(explanation) if path.suffix == ".html" else f"{explanation}\n")


@click.command()
@click.argument("model", type=FILE)
@click.option("--page", type=NEW_FILE, help="Page to write, .html or .txt, instead of text on stdout.")
def explain(model: Path, page: Path | None) -> None:
    """Say what became of each node of MODEL, a bundle or an ONNX file, and where its time and size go."""
    check_folder(page, "--page")
    check_suffix(page, "--page", PAGES)

    def run() -> int:
        from export.recipe import require_tools

        require_tools(("onnx",))
        from export import explain as facts

        with progress() as say:
            say("optimizing, profiling")
            found = facts.explain_file(model)
        if page:
            _write_page(page, found)
        else:
            click.echo(str(found))
        return DONE

    end(run)


@click.command()
@click.argument("bundle", type=FILE)
@click.option("--source", type=FILE, required=True, help="The recipe or ONNX file that it was made from.")
@click.option(
    "--max-drop",
    type=_amount("share"),
    metavar="0.5%",
    help="Of the metric, absolute; default the recipe's, else 1 %. The bundle's own budget can only make it stricter.",
)
@click.option("--data", type=FILE, help=DATA_HELP)
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), default=CACHE, show_default=True)
@spec_options
def verify(
    *, bundle: Path, source: Path, max_drop: float | None, data: Path | None, cache: Path, **told: object
) -> None:
    """Prove BUNDLE against the model that it was made from. Exit code 3 when it is not proven."""

    def run() -> int:
        from export.recipe import Budget

        with progress() as say:
            from edge_runtime.model.bundle import read
            from export import verify as proof

            seed = read(bundle).manifest.provenance.seed
            task = _task(source, data, told, Budget(max_drop), seed=seed, folder=cache.expanduser(), say=say)

            say("verifying")
            found = proof.verify(bundle, task)
        click.echo(str(found))
        return DONE if found.proven else BUDGET_MISSED

    end(run)
