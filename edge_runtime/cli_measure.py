"""Commands that measure, and show what was measured."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from edge_runtime.cli_options import (
    as_json,
    broker_url,
    bundle_file,
    named_broker,
    new_file,
    one_line_errors,
    optional_config,
)

if TYPE_CHECKING:
    from edge_runtime.latency_report import Moment


@click.command()
@bundle_file
@click.option("--threads", multiple=True, type=click.IntRange(min=1), help="By default 1. Repeat to compare.")
@click.option("--autotune", is_flag=True, help="Compare what this device offers, and print the settings to take.")
@click.option("--provider", default="CPUExecutionProvider", show_default=True)
@click.option("--seconds", default=0.5, show_default=True, type=click.FloatRange(min=0.01), help="Per row.")
@as_json
@one_line_errors
def bench(
    *, bundle: Path, threads: tuple[int, ...], autotune: bool, provider: str, seconds: float, as_json: bool
) -> int:
    """Measure BUNDLE here: latency percentiles, throughput by batch size and threads, load time, memory."""
    from edge_runtime import report
    from edge_runtime.device.memory import rss_mb
    from edge_runtime.model import bench as room

    if autotune and threads:
        raise click.UsageError("--autotune chooses the threads to compare; leave out --threads")
    if autotune:
        found = room.autotune(bundle, provider=provider, rss_mb=rss_mb, seconds_per_row=seconds)
    else:
        found = room.bench(bundle, threads=threads or (1,), provider=provider, rss_mb=rss_mb, seconds_per_row=seconds)
    click.echo(msgspec.json.encode(found) if as_json else report.bench(found))
    return 0


def _moment(_context: click.Context, _option: click.Parameter, text: str | None) -> Moment | None:
    from edge_runtime.latency_report import moment

    try:
        return None if text is None else moment(text)
    except ValueError as error:
        wanted = "a time as 2026-10-05T12:00, seconds since 1970 (9 digits or more), or as -10m"
        raise click.BadParameter(f"{text!r}, wanted {wanted}") from error


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="FILE...", type=click.Path(exists=True, path_type=Path))
@click.option("--from", "start", callback=_moment, metavar="TIME", help="Only intervals that end after it.")
@click.option("--to", "end", callback=_moment, metavar="TIME", help="Only intervals that begin before it.")
@click.option("--pipeline", "pipelines", multiple=True, help="Only this one; may be repeated.")
@click.option("--stage", "stages", multiple=True, help="Only this one; may be repeated.")
@click.option("--plot", type=new_file, help="Draw percentiles, and end to end over time, into this file.")
@as_json
@one_line_errors
def latency(
    *,
    paths: tuple[Path, ...],
    start: Moment | None,
    end: Moment | None,
    pipelines: tuple[str, ...],
    stages: tuple[str, ...],
    plot: Path | None,
    as_json: bool,
) -> int:
    """Percentiles of each stage from latency logs, added up, and the slowest windows.

    FILE is a latency.hlog, or the folder it lies in; the rotated one beside it is read too. TIME is 2026-10-05T12:00
    (UTC unless it has an offset), seconds since 1970, or -90s, -10m, -2h, -1d before the end of the logs.
    """
    from edge_runtime import report
    from edge_runtime.latency_plot import draw, load_matplotlib
    from edge_runtime.latency_report import Latencies, Selection

    if plot is not None:
        load_matplotlib()  # before the long reading
    latencies = Latencies(paths, Selection(start, end, pipelines, stages), timelines=plot is not None)
    if plot is not None:
        draw(latencies, plot)
    found = latencies.report()
    click.echo(msgspec.json.encode(found) if as_json else report.latency(found))
    return 0


@click.command()
@optional_config
@broker_url
@click.option("--node", help="Its name; by default the node of CONFIG, or with --broker all of them.")
@click.option("--all", "all_nodes", is_flag=True, help="All nodes under the root of CONFIG.")
@click.option("--once", is_flag=True, help="Print what they say now, and end; without a terminal too.")
@click.option(
    "--timeout", "timeout_s", default=15.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds."
)
@click.option("--json", "as_json", is_flag=True, help="Print documents as they come, each as a line of JSON.")
@one_line_errors
def top(
    *,
    config: Path | None,
    broker: str | None,
    node: str | None,
    all_nodes: bool,
    once: bool,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Show running daemons live: stage percentiles, rates, ledger, queues, as their metrics say.

    Ends with code 1 when a node does not answer in time.
    """
    from edge_runtime.logs import to_stderr
    from edge_runtime.mqtt.topics import check_name
    from edge_runtime.stop import StopSignal
    from edge_runtime.top.nodes import ALL_NODES
    from edge_runtime.top.watch import watch

    if node is not None and all_nodes:
        raise click.UsageError("--node or --all, not both")
    settings, known = named_broker(config, broker)
    name = node or (known.node.id if known and not all_nodes else "")
    try:
        wanted = check_name("node", name) if name else ALL_NODES
    except ValueError as error:
        raise click.UsageError(f"--node: {error}") from error
    to_stderr(logging.ERROR)  # the view says when the broker is away
    once = once or not (as_json or sys.stdout.isatty())
    watch(settings, wanted, once=once, as_json=as_json, timeout_s=timeout_s, stop=StopSignal())
    return 0
