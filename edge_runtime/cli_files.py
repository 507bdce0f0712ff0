"""Commands that write and read files: recordings of messages, and bundles."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from edge_runtime.cli_options import (
    as_json,
    broker_url,
    bundle_file,
    existing_file,
    named_broker,
    new_file,
    one_line_errors,
    optional_config,
)
from edge_runtime.cli_run import FAILED
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from edge_runtime.config import Config
    from edge_runtime.mqtt.settings import MqttSettings
    from edge_runtime.stream.recording import Recording

BYTES_PER_MB = 1e6
SLOWEST, FASTEST = 0.001, 1e6
T = TypeVar("T")


@click.command()
@optional_config
@broker_url
@click.option("-o", "--output", required=True, type=new_file, help="A file that does not exist yet.")
@click.option("--topic", "topics", multiple=True, help="A topic filter, may be repeated; else the sources of CONFIG.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after this long.")
@click.option("--messages", type=click.IntRange(min=1), help="Stop after so many messages.")
@click.option("--max-mb", type=click.FloatRange(min=0, min_open=True), help="Stop when the file is this large.")
@as_json
@one_line_errors
def record(
    *,
    config: Path | None,
    broker: str | None,
    output: Path,
    topics: tuple[str, ...],
    seconds: float | None,
    messages: int | None,
    max_mb: float | None,
    as_json: bool,
) -> int:
    """Write messages to a file until Ctrl-C, SIGTERM or a limit, beside a running daemon."""
    from edge_runtime.record import RecordLimits, plain_filter
    from edge_runtime.record import record as run_record

    settings, known = named_broker(config, broker)
    wanted = topics or [pipeline.source.topic for pipeline in (known.pipelines.values() if known else ())]
    if not wanted:
        raise click.UsageError("--broker needs a --topic")
    try:
        filters = [plain_filter(topic) for topic in wanted]
    except ValueError as error:
        raise click.UsageError(f"--topic: {error}") from error
    from edge_runtime import report
    from edge_runtime.logs import to_stderr
    from edge_runtime.stop import StopSignal

    to_stderr(logging.WARNING)
    limits = RecordLimits(seconds or math.inf, messages or math.inf, (max_mb or math.inf) * BYTES_PER_MB)
    with _status(report.recorded) as show:
        found = run_record(output, settings, filters, limits=limits, stop=StopSignal(), progress=show)
    click.echo(msgspec.json.encode(found) if as_json else report.recorded(found))
    return 0


def _speed(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    if text is None or text == "max":
        return None if text is None else math.inf
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not SLOWEST <= speed <= FASTEST:
        raise click.BadParameter(f"{text!r} is neither a number from {SLOWEST:g} to {FASTEST:,.0f} nor max")
    return speed


@click.command()
@click.argument("recording", type=existing_file)
@optional_config
@broker_url
@click.option("--speed", callback=_speed, help="Times the pace it had, 0.001 to 1000000, or max; by default 1.")
@click.option("--offline", is_flag=True, help="Straight through the pipelines of CONFIG, without a broker.")
@click.option("-o", "--output", type=new_file, help="Of --offline: where the results go, else stdout.")
@as_json
@one_line_errors
def replay(
    *,
    recording: Path,
    config: Path | None,
    broker: str | None,
    speed: float | None,
    offline: bool,
    output: Path | None,
    as_json: bool,
) -> int:
    """Publish the messages of RECORDING again, or run them through the pipelines of CONFIG."""
    from edge_runtime.replay import partial
    from edge_runtime.stream.recording import Recording

    if output is not None and not offline:
        raise click.UsageError("--output belongs to --offline")
    if speed is not None and offline:
        raise click.UsageError("--speed belongs to a replay to a broker: --offline has no pace")
    if output is not None and any(path.exists() and path.samefile(recording) for path in (output, partial(output))):
        raise click.UsageError("--output is the recording itself")
    settings, known = named_broker(config, broker)
    if not offline:
        return _publish(Recording(recording), settings, 1.0 if speed is None else speed, as_json)
    if known is None:
        raise click.UsageError("--offline needs a CONFIG")
    return _run_offline(Recording(recording), known, str(config), output, as_json)


def _publish(recording: Recording, settings: MqttSettings, speed: float, as_json: bool) -> int:
    from edge_runtime import report
    from edge_runtime.logs import to_stderr
    from edge_runtime.replay import to_broker
    from edge_runtime.stop import StopSignal

    to_stderr(logging.WARNING)
    with _status(report.published) as show:
        found = to_broker(recording, settings, speed=speed, stop=StopSignal(), progress=show)
    click.echo(msgspec.json.encode(found) if as_json else report.published(found))
    if found.problem:
        click.echo(f"warning: {report.unread(found)}", err=True)
    return FAILED if found.refused else 0


def _run_offline(recording: Recording, config: Config, path: str, output: Path | None, as_json: bool) -> int:
    """Results to the output; the summary to stdout, or to stderr when the results are there."""
    from edge_runtime import report
    from edge_runtime.logs import to_stderr
    from edge_runtime.replay import replacing, through_pipelines

    to_stderr(logging.WARNING)
    try:
        with nullcontext(sys.stdout.buffer) if output is None else replacing(output) as target:
            found = through_pipelines(recording, config, path, target.write)
            target.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise EdgeRuntimeError(f"{output or 'stdout'}: cannot be written: {error.strerror}") from error
    click.echo(msgspec.json.encode(found) if as_json else report.replayed(found), err=output is None)
    if found.problem:
        click.echo(f"warning: {report.unread(found)}", err=True)
    return 0 if found.balanced else FAILED


@contextmanager
def _status(render: Callable[[T], str]) -> Iterator[Callable[[T], None]]:
    """Shows what it is given as one changing line on a terminal's stderr; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _found: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("connecting") as status:
        yield lambda found: status.update(escape(render(found).partition("\n")[0]))


@click.group()
def bundle() -> None:
    """Look at bundle files."""


@bundle.command()
@bundle_file
@as_json
@one_line_errors
def show(bundle: Path, as_json: bool) -> int:
    """Verify BUNDLE and print its manifest and card."""
    from edge_runtime import report
    from edge_runtime.model.bundle import read

    found = read(bundle)
    click.echo(msgspec.json.encode(found.manifest) if as_json else report.bundle(found))
    return 0


@bundle.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--config", type=existing_file, help="Take [gate] from there, and how the model that has BUNDLE runs.")
@as_json
@one_line_errors
def verify(bundle: Path, config: Path | None, as_json: bool) -> int:
    """Prove BUNDLE on this machine, in a process of its own with limits, as the daemon does before it loads one."""
    from edge_runtime import report
    from edge_runtime.config import load
    from edge_runtime.model.gate import GateSettings, gate
    from edge_runtime.model.session import SessionSettings

    settings, sessions = GateSettings(), {SessionSettings()}
    if config is not None:
        known = load(config)
        users = [model for model in known.models.values() if Path(model.bundle).resolve() == bundle.resolve()]
        settings, sessions = known.gate, {model.session() for model in users} or sessions
    if len(sessions) > 1:
        raise click.UsageError(f"--config: several models have {str(bundle)!r}, and run it in different ways")
    found = gate(bundle, settings, session=sessions.pop())
    click.echo(msgspec.json.encode(found) if as_json else report.gate(found))
    return 0 if found.ok else FAILED
