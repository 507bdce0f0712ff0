"""What the commands of edge-export share: options, progress, how they end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from export.compress import Compressed

DONE, FAILED, BUDGET_MISSED = 0, 1, 3
LAYOUTS = ("NTC", "NCT", "NT", "NF", "N1TC", "N1CT", "NTC1")
OUTPUT_KINDS = ("scores", "logits", "probability", "reconstruction", "error")
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
F = TypeVar("F", bound=Callable[..., Any])


def words(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(word.strip() for word in text.split(","))


SPEC_OPTIONS = (
    click.option("--spec", type=FILE, help="TOML file of what follows."),
    click.option("--name", help="Default: the file's name."),
    click.option("--version", help="Default: 0.1.0."),
    click.option("--input", help="The graph's input that takes a window."),
    click.option("--output", help="The graph's output to read."),
    click.option("--channels", type=words, metavar="A,B", help="Names, with commas."),
    click.option("--units", type=words, metavar="A,B", help="One for each channel, or one for all."),
    click.option("--length", type=int, help="Samples in a window."),
    click.option("--hop", type=int, help="Samples between window starts."),
    click.option("--rate-hz", type=float, help="Samples a second."),
    click.option("--layout", type=click.Choice(LAYOUTS), help="The axes behind the batch."),
    click.option("--lead-in", type=int, help="Zeros before the first sample of a stream."),
    click.option("--labels", type=words, metavar="A,B", help="Names, with commas, in the order of the output."),
    click.option("--output-kind", type=click.Choice(OUTPUT_KINDS), help="What the output is."),
    click.option("--threshold", type=float, help="Error above which a window is an anomaly."),
)
"""What the user of an ONNX file says of it, where the graph does not."""


def spec_options(command: F) -> F:
    for option in reversed(SPEC_OPTIONS):
        command = option(command)
    return command


def conclude(found: Compressed, target: Path | None, *, as_json: bool) -> int:
    """Print what was measured and write the chosen one; the command's exit code. target: None to write nothing."""
    from export import report

    click.echo(report.as_json(found.outcome) if as_json else found.table())
    chosen = found.outcome.chosen
    if chosen is None:
        click.echo(f"edge-export: {report.missed(found.outcome)}", err=True)
        return BUDGET_MISSED
    if target is not None:
        found.best.save(target)
        click.echo(f"{target}: {chosen.name}, {target.stat().st_size / 1000:.1f} KB", err=True)
    return DONE


def check_folder(file: Path | None, option: str) -> None:
    if file is not None and not file.parent.is_dir():
        raise click.BadParameter(f"{file.parent} is not a folder", param_hint=option)


def check_suffix(file: Path | None, option: str, suffixes: tuple[str, ...]) -> None:
    if file is not None and file.suffix not in suffixes:
        raise click.BadParameter(f"{file.name}, wanted a name ending in {' or '.join(suffixes)}", param_hint=option)


def end(command: Callable[[], int]) -> NoReturn:
    """End with the command's exit code; an error raised on purpose is one line on stderr."""
    try:
        code = command()
    except EdgeRuntimeError as error:
        click.echo(f"edge-export: {error}", err=True)
        code = FAILED
    raise SystemExit(code)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """One changing line on a terminal's stderr; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _text: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(escape(text))
