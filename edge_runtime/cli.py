"""The edge-runtime command: thin. Results on stdout, diagnostics on stderr.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click
import msgspec

from edge_runtime import __version__
from edge_runtime.errors import ConfigError, EdgeRuntimeError

if TYPE_CHECKING:
    from edge_runtime.config import Config
    from edge_runtime.mqtt.settings import MqttSettings
    from edge_runtime.stream.recording import Recording

FAILED, WRONG_USAGE = 1, 2
BYTES_PER_MB = 1e6
SLOWEST, FASTEST = 0.001, 1e6
P = ParamSpec("P")
T = TypeVar("T")

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")


def one_line_errors(command: Callable[P, int]) -> Callable[P, None]:
    """End with the command's exit code; an error raised on purpose is one line on stderr."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
        except EdgeRuntimeError as error:
            click.echo(f"error: {error}", err=True)
            code = WRONG_USAGE if isinstance(error, ConfigError) else FAILED
        sys.exit(code)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Sensor messages in over MQTT, ONNX inference, results out over MQTT."""


existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)
config_file = click.argument("config", type=existing_file)
new_file = click.Path(dir_okay=False, path_type=Path)
bundle_file = click.argument("bundle", type=existing_file)


@main.command()
@bundle_file
@click.option("-o", "--output", default="device.toml", show_default=True, type=new_file)
@click.option("--node", help="Its name in topics; by default the host's name.")
@click.option("--broker", default="mqtt://localhost:1883", show_default=True)
@click.option("--topic", default="", help="Where sensors publish, as plant/+machine/vib; +machine names the stream.")
@click.option("--pipeline", default="", help="By default the name of the bundle.")
@one_line_errors
def init(bundle: Path, output: Path, node: str | None, **chosen: str) -> int:
    """Write a commented configuration for BUNDLE, and say how to go on."""
    from edge_runtime import report
    from edge_runtime.init import Choices, node_name
    from edge_runtime.init import init as write

    choices = Choices(node=node_name(socket.gethostname()) if node is None else node, **chosen)
    click.echo(report.written(write(bundle, output, choices)))
    return 0


@main.command()
@config_file
@as_json
@one_line_errors
def run(config: Path, as_json: bool) -> int:
    """Run the daemon described by CONFIG until SIGTERM or Ctrl-C, then print what became of every message."""
    from edge_runtime.stop import StopSignal

    stop = StopSignal()  # before the slow imports
    from edge_runtime.config import load
    from edge_runtime.daemon import Daemon
    from edge_runtime.logs import to_stderr

    to_stderr()
    summary = Daemon(load(config), str(config)).run(stop)
    from edge_runtime import report

    click.echo(msgspec.json.encode(summary) if as_json else report.summary(summary))
    code = 0 if summary.balanced else FAILED
    if not summary.drained:
        sys.stdout.flush()
        os._exit(code)  # a model may still be running on the worker, which ONNX Runtime does not survive at exit
    return code


@main.command()
@config_file
@as_json
@one_line_errors
def check(config: Path, as_json: bool) -> int:
    """Validate CONFIG, load and prove its models, reach the broker, and show what would run."""
    from edge_runtime import report
    from edge_runtime.check import check as run_check
    from edge_runtime.config import load
    from edge_runtime.logs import to_stderr

    to_stderr(logging.ERROR)  # what is wrong with the broker stands in the report
    found = run_check(load(config), str(config))
    click.echo(msgspec.json.encode(found) if as_json else report.check(found))
    return 0 if found.ok else FAILED


@main.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@as_json
@one_line_errors
def doctor(config: Path | None, as_json: bool) -> int:
    """Look for what is wrong here, and say what to do: machine, ONNX Runtime, clock, and all that CONFIG needs."""
    from edge_runtime import report
    from edge_runtime.doctor import Report, examine
    from edge_runtime.findings import Finding
    from edge_runtime.logs import to_stderr

    to_stderr(logging.ERROR)  # what is wrong with the broker is a finding
    findings: list[Finding] = []
    for finding in examine(config):
        findings.append(finding)
        if not as_json:
            click.echo(report.finding(finding))
    found = Report(all(finding.status != "fail" for finding in findings), findings)
    click.echo(msgspec.json.encode(found) if as_json else report.verdict(findings))
    return 0 if found.ok else FAILED


@main.command()
@bundle_file
@click.option("--threads", multiple=True, type=click.IntRange(min=1), default=(1,), help="Repeat to compare.")
@click.option("--provider", default="CPUExecutionProvider", show_default=True)
@click.option("--seconds", default=0.5, show_default=True, type=click.FloatRange(min=0.01), help="Per row.")
@as_json
@one_line_errors
def bench(bundle: Path, threads: tuple[int, ...], provider: str, seconds: float, as_json: bool) -> int:
    """Measure BUNDLE here: latency percentiles, throughput by batch size and threads, load time, memory."""
    from edge_runtime import report
    from edge_runtime.device.memory import rss_mb
    from edge_runtime.model.bench import bench as run_bench

    found = run_bench(bundle, threads=threads, provider=provider, rss_mb=rss_mb, seconds_per_row=seconds)
    click.echo(msgspec.json.encode(found) if as_json else report.bench(found))
    return 0


optional_config = click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
output_file = click.Path(dir_okay=False, path_type=Path)
broker_url = click.option("--broker", help="The broker, as mqtt://host:port, instead of a CONFIG.")


@main.command()
@optional_config
@broker_url
@click.option("-o", "--output", required=True, type=output_file, help="A file that does not exist yet.")
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

    settings, known = _broker(config, broker)
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


@main.command()
@click.argument("recording", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@optional_config
@broker_url
@click.option("--speed", callback=_speed, help="Times the pace it had, 0.001 to 1000000, or max; by default 1.")
@click.option("--offline", is_flag=True, help="Straight through the pipelines of CONFIG, without a broker.")
@click.option("-o", "--output", type=output_file, help="Of --offline: where the results go, else stdout.")
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
    settings, known = _broker(config, broker)
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


def _broker(config: Path | None, url: str | None) -> tuple[MqttSettings, Config | None]:
    """The broker that was named, one way or the other."""
    from edge_runtime.config import load
    from edge_runtime.mqtt.settings import MqttSettings

    if config is not None and url is None:
        known = load(config)
        return known.mqtt, known
    if url is None or config is not None:
        raise click.UsageError("name the broker by CONFIG or by --broker, one of them")
    try:
        return MqttSettings(url=url), None
    except ValueError as error:
        raise click.UsageError(f"--broker: {error}") from error


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


@main.group()
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


@main.command()
@click.option("--seconds", type=click.FloatRange(min=1), help="End by itself after this long; else Ctrl-C ends it.")
@click.option("--broker", help="A broker of your own, as mqtt://host:port; else one is started.")
@click.option("--state-dir", type=click.Path(file_okay=False, path_type=Path), help="Where the latency log goes.")
@one_line_errors
def demo(seconds: float | None, broker: str | None, state_dir: Path | None) -> int:
    """Three simulated pumps, a broker and the daemon; one bearing begins to fail."""
    from edge_runtime.demo.show import run as run_demo

    return run_demo(seconds=seconds, broker=broker, state_dir=state_dir)
