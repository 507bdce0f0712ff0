"""Until it is enough: one snapshot, documents as they come, or a live view in the terminal."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import click
from rich.console import Console
from rich.live import Live

from edge_runtime.errors import TransportError
from edge_runtime.model.child import printable
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.stop import StopSignal
from edge_runtime.top.nodes import ALL_NODES, Feed, Heard, Node, listening
from edge_runtime.top.view import NO_METRICS, Moment, Screen, plain, title

QUIET_S = 0.3
POLL_S = 0.25
REDRAW_S = 0.5
HINT = "q quits, up/down: node, left/right: pipeline"
UP, DOWN, RIGHT, LEFT = "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D"
NEXT = {"\t": (1, 0), DOWN: (1, 0), UP: (-1, 0), RIGHT: (0, 1), LEFT: (0, -1)}
KEYS = re.compile(r"\x1b\[.|.", re.DOTALL)
KEYS_BYTES = 64


def watch(
    settings: MqttSettings, wanted: str, *, once: bool, as_json: bool, timeout_s: float, stop: StopSignal
) -> None:
    """Show what nodes say on stdout, until they have said it once, or somebody asks to stop.

    wanted: a node, or ALL_NODES. Raises TransportError when the broker cannot be reached or refuses, or a node does not
    answer within timeout_s; without `once` it is enough that one has.
    """
    with listening(settings, wanted) as feed:
        with nullcontext() if as_json or not sys.stderr.isatty() else Console(stderr=True).status("listening"):
            for heard in gather(feed, timeout_s=timeout_s, stop=stop):
                _tell(heard, as_json=as_json)
        nodes = list(feed.nodes)
        if once and nodes and not as_json:
            click.echo(plain(nodes, _now()))
        missing = unanswered(nodes, wanted, settings.root, timeout_s)
        if missing and (once or not nodes) and not stop.asked:
            raise TransportError(missing)
        if not once and as_json:
            while not stop.asked:
                for heard in feed.step(POLL_S):
                    _tell(heard, as_json=True)
        elif not once:
            live(feed, settings.url, Console(), stop)


def gather(feed: Feed, *, timeout_s: float, stop: StopSignal) -> Iterator[Heard]:
    """Documents until every node that runs has sent its metrics and the broker has told what it kept, or timeout_s."""
    now_s = time.monotonic()
    deadline_s, quiet_s = now_s + timeout_s, now_s + QUIET_S
    while not stop.asked and now_s < deadline_s:
        known = list(feed.nodes)
        if known and all(node.told for node in known) and now_s >= quiet_s:
            return
        heard = feed.step(min(POLL_S, deadline_s - now_s))
        yield from heard
        now_s = time.monotonic()
        if any(document.retained for document in heard):
            quiet_s = now_s + QUIET_S


def unanswered(nodes: Sequence[Node], wanted: str, root: str, timeout_s: float) -> str:
    """A sentence on who said too little, "" when nobody did."""
    if not nodes:
        who = "any node" if wanted == ALL_NODES else f"node {wanted}"
        return f"nothing was heard of {who} under {root} within {timeout_s:g} s"
    waited = [node for node in nodes if not node.told]
    unread = [
        f"metrics of {node.name} cannot be read: {node.why['metrics']}" for node in waited if "metrics" in node.why
    ]
    mute = [node for node in waited if "metrics" not in node.why]
    hint = f" ({NO_METRICS})" if any(node.runs for node in mute) else ""
    none = [f"no metrics within {timeout_s:g} s from {', '.join(node.name for node in mute)}{hint}"] if mute else []
    return printable("; ".join([*unread, *none]))


def live(feed: Feed, broker: str, console: Console, stop: StopSignal) -> None:
    """Draw until somebody asks to stop, or q."""
    node = pipeline = 0
    drawn_s = 0.0
    with keyboard() as keys, Live(console=console, screen=True, auto_refresh=False) as shown:
        feed.also(keys)
        while not stop.asked:
            now_s = time.monotonic()
            if now_s - drawn_s >= REDRAW_S:
                head = title(broker, away=feed.away, at=_now(), hint=HINT)
                shown.update(
                    Screen(list(feed.nodes), title=head, at=_now(), node=node, pipeline=pipeline), refresh=True
                )
                drawn_s = now_s
            feed.step(REDRAW_S)
            for key in pressed(keys):
                if key == "q":
                    return
                step = NEXT.get(key, (0, 0))
                node, pipeline, drawn_s = node + step[0], pipeline + step[1], 0.0


@contextmanager
def keyboard() -> Iterator[int]:
    """The descriptor on which keys come one by one, unechoed; -1 when stdin is no terminal."""
    if not sys.stdin.isatty():
        yield -1
        return
    fileno = sys.stdin.fileno()
    before = termios.tcgetattr(fileno)
    try:
        tty.setcbreak(fileno)
        yield fileno
    finally:
        termios.tcsetattr(fileno, termios.TCSADRAIN, before)


def pressed(fileno: int) -> list[str]:
    """The keys since the last call, an arrow as its escape sequence; q when the terminal is gone."""
    if fileno < 0 or not select.select([fileno], [], [], 0)[0]:
        return []
    typed = os.read(fileno, KEYS_BYTES)
    return KEYS.findall(typed.decode(errors="replace")) if typed else ["q"]


def _tell(heard: Heard, *, as_json: bool) -> None:
    if as_json:
        click.echo(heard.line())


def _now() -> Moment:
    return Moment(time.monotonic_ns(), time.time())
