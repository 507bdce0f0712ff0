"""What the commands share: options, kinds of arguments, and how a command ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click

from edge_runtime.cli_run import exit_code

if TYPE_CHECKING:
    from edge_runtime.config import Config
    from edge_runtime.mqtt.settings import MqttSettings

P = ParamSpec("P")

existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)
new_file = click.Path(dir_okay=False, path_type=Path)
config_file = click.argument("config", type=existing_file)
bundle_file = click.argument("bundle", type=existing_file)
optional_config = click.argument("config", required=False, type=existing_file)
broker_url = click.option("--broker", help="The broker, as mqtt://host:port, instead of a CONFIG.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")


def one_line_errors(command: Callable[P, int]) -> Callable[P, None]:
    """End with the command's exit code; an error raised on purpose is one line on stderr."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        sys.exit(exit_code(partial(command, *args, **kwargs)))

    return run


def named_broker(config: Path | None, url: str | None) -> tuple[MqttSettings, Config | None]:
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
