"""The edge-runtime command: thin. Results on stdout, diagnostics on stderr.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import click
import msgspec

from edge_runtime import __version__
from edge_runtime.errors import ConfigError, EdgeRuntimeError

FAILED, WRONG_USAGE = 1, 2
P = ParamSpec("P")

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


config_file = click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
bundle_file = click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path))


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


@main.command()
@click.option("--seconds", type=click.FloatRange(min=1), help="End by itself after this long; else Ctrl-C ends it.")
@click.option("--broker", help="A broker of your own, as mqtt://host:port; else one is started.")
@click.option("--state-dir", type=click.Path(file_okay=False, path_type=Path), help="Where the latency log goes.")
@one_line_errors
def demo(seconds: float | None, broker: str | None, state_dir: Path | None) -> int:
    """Three simulated pumps, a broker and the daemon; one bearing begins to fail."""
    from edge_runtime.demo.show import run as run_demo

    return run_demo(seconds=seconds, broker=broker, state_dir=state_dir)
