"""What the demo shows: the newest result of every stream and the daemon's own percentiles, as they come over MQTT."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from threading import Lock
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edge_runtime.mqtt.topics import Tree
from edge_runtime.records import Result

STAGES = ("queue", "decode", "window", "infer", "decide", "publish", "e2e")
RATE_OVER_S = 5.0


class StreamView(msgspec.Struct):
    """One line of the table. alarm_since_s: seconds after the start when the alarm last went on."""

    label: str = "-"
    score: float = 0.0
    windows: int = 0
    alarm: bool = False
    alarm_since_s: float | None = None


class Board:
    """Fed by an MQTT subscriber's thread, drawn by the demo's."""

    def __init__(self, tree: Tree, streams: list[str], *, now_s: Callable[[], float] = time.monotonic) -> None:
        self.streams = {stream: StreamView() for stream in streams}
        self.alarms: list[tuple[str, float, str]] = []
        self.problems: list[str] = []
        self.online = False
        self.received = 0
        self._tree, self._now_s, self._started_s = tree, now_s, now_s()
        self._stages: dict[str, dict[str, Any]] = {}
        self._arrivals: list[float] = []
        self._lock = Lock()

    def take(self, topic: str, payload: bytes) -> None:
        """One message from the node's tree."""
        with self._lock:
            if topic == self._tree.status:
                self.online = json.loads(payload)["state"] in ("online", "degraded")
            elif topic == self._tree.metrics:
                metrics = json.loads(payload)
                self._stages = next(iter(metrics["latency"].values()), {})
                self.problems = metrics["problems"]
                self.received = metrics["ledger"]["overall"]["received"]
            elif "/out/" in topic:
                self._take_result(msgspec.json.decode(payload, type=Result))

    def elapsed_s(self) -> float:
        return self._now_s() - self._started_s

    def _take_result(self, result: Result) -> None:
        view = self.streams.setdefault(result.stream, StreamView())
        view.label, view.score = result.label, result.score
        view.windows += 1
        self._arrivals.append(self._now_s())
        if result.alarm and not view.alarm:
            view.alarm_since_s = self.elapsed_s()
            self.alarms.append((result.stream, view.alarm_since_s, result.label))
        view.alarm = bool(result.alarm)

    def windows_per_s(self) -> float:
        now_s = self._now_s()
        self._arrivals = [at for at in self._arrivals if now_s - at < RATE_OVER_S]
        return len(self._arrivals) / min(RATE_OVER_S, max(self.elapsed_s(), 1.0))

    def render(self, happening: str) -> RenderableType:
        """Tables for a terminal. happening: one sentence on what the simulated plant is doing."""
        with self._lock:
            head = Text(f"{self.elapsed_s():5.1f} s   {self.windows_per_s():.1f} windows/s   {happening}")
            streams = Table()
            for column in ("stream", "label", "score", "windows", "alarm"):
                streams.add_column(column, justify="right" if column in ("score", "windows") else "left")
            for name, view in self.streams.items():
                alarm = Text("ALARM", style="bold white on red") if view.alarm else Text("-", style="dim")
                streams.add_row(name, view.label, f"{view.score:.2f}", str(view.windows), alarm)
            stages = Table(title="latency on the device, ms")
            for column in ("stage", "p50", "p99"):
                stages.add_column(column, justify="left" if column == "stage" else "right")
            for stage in STAGES:
                if found := self._stages.get(stage):
                    stages.add_row(stage, f"{found['p50_ms']:.3f}", f"{found['p99_ms']:.3f}")
            problems = [Text(problem, style="yellow") for problem in self.problems]
            return Group(head, streams, stages, *problems)

    def line(self, happening: str) -> str:
        """The same on one line, for a pipe."""
        with self._lock:
            streams = "  ".join(
                f"{name}: {view.label} {view.score:.2f}{' ALARM' if view.alarm else ''}"
                for name, view in self.streams.items()
            )
            e2e = self._stages.get("e2e")
            latency = f"  e2e p50 {e2e['p50_ms']:.2f} p99 {e2e['p99_ms']:.2f} ms" if e2e else ""
            return f"{self.elapsed_s():5.1f} s  {streams}  {self.windows_per_s():.1f} windows/s{latency}  ({happening})"
