"""What the fault suite runs: streams, pipelines and models in which a kill always lands in the middle of something.

rows     numbered rows, windows of 8 with hop 3: each spans several messages (`hop`, and `changes` on the same stream)
chunk    numbered chunks of 8 rows: two windows a message (`halves`), one with a carried state (`running`)
plain    rows without number or time, many of them equal: windows of 4 with hop 2 (`plain`)
burst    numbered windows for a model that takes its time (`storm`); only where a test asks for it

All but `changes` publish every window; `hop`, `changes` and `running` have an alarm with k of n and hysteresis.
"""

from __future__ import annotations

import atexit
import json
import math
import random
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from bundles import means_manifest, slow_model, write_means_bundle, write_running_bundle

from edge_runtime import config
from edge_runtime.model.gate import GateSettings, proven
from edge_runtime.model.manifest import ScalarInput, StateSpec
from edge_runtime.model.session import SessionSettings
from edge_runtime.records import Message
from edge_runtime.replay import through_pipelines
from edge_runtime.stream.recording import Recording, RecordingHeader, RecordingWriter

ROOT = "edge/v1"
BUNDLES = ("means8", "means4", "running", "slow")
RATE_HZ = 100.0
CHUNK_ROWS = 8
BEGAN_S = 1_700_000_000
MS = 1_000_000
STEPS = 64
SLOW_ROUNDS = 8192
"""Of the slow model's loop: some milliseconds a window."""

HEAD = """
[node]
id = "{node}"
state_dir = "{folder}/state"
metrics_interval_s = {metrics_s:g}

[mqtt]
url = "{url}"
reconnect_min_s = 0.05
reconnect_max_s = {reconnect_max_s:g}
{mqtt}

{more}
"""

NUMBERED = 'path = "v", seq_field = "n", time_field = "at"'
ALARM = 'decide = {{ alarm_on = "moving", score = {score}, release = 0.45, k = 2, n = 3 }}'
PIPELINES = {
    "hop": ("rows", NUMBERED, "means8", ALARM.format(score=0.6)),
    "changes": ("rows", NUMBERED, "means8", 'publish = "change"\n' + ALARM.format(score=0.55)),
    "halves": ("chunk", NUMBERED, "means4", ""),
    "running": ("chunk", NUMBERED, "running", ALARM.format(score=0.55)),
    "plain": ("plain", 'path = "v"', "means4", "window = { hop = 2 }"),
    "storm": ("burst", NUMBERED, "slow", 'execution = "worker"'),
}
KINDS = ("rows", "chunk", "plain")
NUMBERED_KINDS = ("rows", "chunk")
UNNUMBERED_PIPELINES = frozenset(name for name, found in PIPELINES.items() if found[0] == "plain")
MACHINES = ("a", "b")


class Input(NamedTuple):
    """One message the producers send."""

    topic: str
    payload: bytes


class Document(NamedTuple):
    """One message the node publishes."""

    topic: str
    payload: dict[str, Any]


class Expected(NamedTuple):
    """What an undisturbed run of the same input publishes, in order, and its accounts by pipeline."""

    documents: list[Document]
    accounts: dict[str, dict[str, Any]]


def inputs(
    seed: int, count: int, *, node: str, kinds: Sequence[str] = KINDS, machines: Sequence[str] = MACHINES
) -> list[Input]:
    """That many messages, of all streams in turn."""
    streams = [(kind, machine) for kind in kinds for machine in machines]
    found = []
    for i in range(count):
        kind, machine = streams[i % len(streams)]
        found.append(Input(f"{node}/{machine}/{kind}", _payload(seed, kind, machine, i // len(streams))))
    return found


def _payload(seed: int, kind: str, machine: str, n: int) -> bytes:
    if kind == "rows":
        return json.dumps({"n": n, "at": BEGAN_S + n / RATE_HZ, "v": _row(seed, machine, n)}).encode()
    if kind == "burst":
        return json.dumps({"n": n, "at": BEGAN_S + n / RATE_HZ, "v": [[SLOW_ROUNDS, 0]] * 4}).encode()
    if kind == "plain":
        return json.dumps({"v": [round(x * 8) / 8 for x in _row(seed, machine, n)]}).encode()
    rows = [_row(seed, machine, n * CHUNK_ROWS + i) for i in range(CHUNK_ROWS)]
    return json.dumps({"n": n, "at": BEGAN_S + n * CHUNK_ROWS / RATE_HZ, "v": rows}).encode()


def _row(seed: int, machine: str, n: int) -> list[float]:
    """Two channels that swing, so that alarms come and go, with noise from the seed.

    In steps of 1/64: their sums are exact in float32, in whatever order a batch of that size adds them up.
    """
    noise = random.Random(f"{seed}/{machine}/{n}").uniform(-0.2, 0.2)
    moving = min(1.0, max(0.0, 0.5 + 0.4 * math.sin(n / 20 + ord(machine[0])) + noise))
    steps = round(moving * STEPS)
    return [(STEPS - steps) / STEPS, steps / STEPS]


def write_scene(
    folder: Path,
    url: str,
    *,
    node: str,
    delivery: str,
    kinds: Sequence[str] = KINDS,
    mqtt: str = "",
    pipeline: str = "",
    more: str = "",
    metrics_s: float = 0.5,
    reconnect_max_s: float = 0.5,
) -> Path:
    """The bundles, and the configuration with all pipelines of these kinds. pipeline: lines for each of them."""
    shutil.copytree(_proven_bundles(), folder, dirs_exist_ok=True)
    made = {name: found for name, found in PIPELINES.items() if found[0] in kinds}
    text = HEAD.format(
        node=node, folder=folder, url=url, mqtt=mqtt, more=more, metrics_s=metrics_s, reconnect_max_s=reconnect_max_s
    )
    for model in dict.fromkeys(model for _, _, model, _ in made.values()):
        text += model_table(model)
    for name, (kind, source, model, lines) in made.items():
        text += pipeline_table(name, f'topic = "{node}/+machine/{kind}", {source}', model, delivery, lines, pipeline)
    path = folder / "device.toml"
    path.write_text(text)
    return path


def model_table(name: str) -> str:
    """max_batch: windows of the slow model that run together would take no longer than one."""
    return f'\n[models.{name}]\nbundle = "{name}.edge"\n' + ("max_batch = 1\n" if name == "slow" else "")


def pipeline_table(name: str, source: str, model: str, delivery: str, *lines: str) -> str:
    head = f'\n[pipelines.{name}]\nsource = {{ {source} }}\nmodel = "{model}"\ndelivery = "{delivery}"\n'
    return head + "".join(f"{line}\n" for line in lines)


@cache
def _proven_bundles() -> str:
    """A folder with all bundles, and the gate's reports on them in its `state`: proven once for all trials."""
    folder = Path(tempfile.mkdtemp(prefix="edge-faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_bundles(folder)
    for name in BUNDLES:
        settings = SessionSettings(max_batch=1) if name == "slow" else SessionSettings()
        proven(folder / f"{name}.edge", GateSettings(), session=settings, state_dir=folder / "state")
    return str(folder)


def write_bundles(folder: Path) -> None:
    for length, hop in ((8, 3), (4, 4)):
        manifest = means_manifest(length=length, hop=hop, rate_hz=_rate(length))
        write_means_bundle(folder / f"means{length}.edge", manifest)
    slow = slow_model(length=4, channels=2)
    write_means_bundle(folder / "slow.edge", means_manifest(length=4, hop=4), model=slow)
    manifest = msgspec.structs.replace(
        means_manifest(length=8, hop=8, rate_hz=RATE_HZ),
        name="running",
        states=(StateSpec("state", "stateN", (2, 1, 2), batch_axis=1),),
        scalars=(ScalarInput("gain", 0.5),),
    )
    write_running_bundle(folder / "running.edge", manifest, gain=0.5)


def _rate(length: int) -> float | None:
    """None for the windows of `plain`, which then has no gaps by time of receipt."""
    return RATE_HZ if length == 8 else None


def expected(path: Path, messages: Sequence[Input]) -> Expected:
    """What the configuration makes of these messages when nothing disturbs it."""
    recording = path.with_name(f"input-{secrets.token_hex(4)}.rec")
    writer = RecordingWriter(recording, RecordingHeader("undisturbed", BEGAN_S * 10**9), start_ns=0)
    for i, (topic, payload) in enumerate(messages):
        writer.write(Message(topic, payload, i * MS, qos=1, mid=1 + i % 65_000, epoch=1))
    writer.close()
    lines: list[bytes] = []
    summary = through_pipelines(Recording(recording), config.load(path), str(path), lines.append)
    recording.unlink()
    assert summary.balanced
    assert summary.messages == len(messages)
    documents = [Document(**json.loads(line)) for line in lines]
    accounts = {account.pipeline: msgspec.to_builtins(account) for account in summary.ledger.pipelines}
    return Expected(documents, accounts)
