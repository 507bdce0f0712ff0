"""The edge-runtime command: thin. Results on stdout, diagnostics on stderr. Each command imports only what it needs."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import click
import msgspec

from edge_runtime import __version__
from edge_runtime.cli_files import bundle, record, replay
from edge_runtime.cli_measure import bench, latency, top
from edge_runtime.cli_options import as_json, bundle_file, config_file, new_file, one_line_errors
from edge_runtime.cli_run import FAILED
from edge_runtime.cli_run import run as run_daemon


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Sensor messages in over MQTT, ONNX inference, results out over MQTT."""


for command in (bench, bundle, latency, record, replay, top):
    main.add_command(command)


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
    return run_daemon(config, as_json=as_json)


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
@click.option("--seconds", type=click.FloatRange(min=1), help="End by itself after this long; else Ctrl-C ends it.")
@click.option("--broker", help="A broker of your own, as mqtt://host:port; else one is started.")
@click.option("--state-dir", type=click.Path(file_okay=False, path_type=Path), help="Where the latency log goes.")
@one_line_errors
def demo(seconds: float | None, broker: str | None, state_dir: Path | None) -> int:
    """Three simulated pumps, a broker and the daemon; one bearing begins to fail."""
    from edge_runtime.demo.show import run as run_demo

    return run_demo(seconds=seconds, broker=broker, state_dir=state_dir)
