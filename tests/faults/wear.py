"""What a node writes to its disk at 10 messages a second: two workloads, two profiles, side by side."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from broker import Broker
from bundles import means_manifest, write_means_bundle
from node import Node
from outcome import Wear
from scene import BEGAN_S, Input
from sender import Sender
from sink import Sink

RATE = 10.0
SETTLE_S = 15.0
CHANNELS = tuple(f"c{i}" for i in range(6))
CHUNK_ROWS = 256
WORKLOADS = {
    "row of six, windows of 100 with hop 50": 'path = "v", seq_field = "n", time_field = "at"',
    f"chunk of {CHUNK_ROWS * len(CHANNELS) * 2:,} bytes, a window each": 'format = "raw", dtype = "int16"',
}
PROFILES = ("default", "sd-card")

CONFIG = """
[node]
id = "{node}"
state_dir = "{folder}/state"

[mqtt]
url = "{url}"

[store]
profile = "{profile}"

[models.means]
bundle = "means.edge"

[pipelines.p]
source = {{ topic = "{node}/+machine", {source} }}
model = "means"
delivery = "normal"
"""


def messages(workload: str, node: str, count: int, seed: int) -> list[Input]:
    noise = random.Random(seed)
    if workload.startswith("chunk"):
        rows = np.random.default_rng(seed).integers(0, 100, (CHUNK_ROWS, len(CHANNELS)), np.int16)
        return [Input(f"{node}/a", np.roll(rows, i, axis=0).tobytes()) for i in range(count)]
    rows = [[round(noise.random(), 3) for _ in CHANNELS] for _ in range(count)]
    documents = [{"n": n, "at": BEGAN_S + n / RATE, "v": row} for n, row in enumerate(rows)]
    return [Input(f"{node}/a", json.dumps(document).encode()) for document in documents]


def write_config(folder: Path, url: str, *, node: str, workload: str, profile: str) -> Path:
    folder.mkdir()
    length, hop = (CHUNK_ROWS, CHUNK_ROWS) if workload.startswith("chunk") else (100, 50)
    write_means_bundle(folder / "means.edge", means_manifest(length=length, hop=hop, labels=CHANNELS))
    path = folder / "device.toml"
    source = WORKLOADS[workload]
    path.write_text(CONFIG.format(node=node, folder=folder, url=url, profile=profile, source=source))
    return path


def written_bytes(pid: int) -> int:
    """proc(5), io: what the process made the kernel write to storage, less what was cut off before."""
    found = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(found["write_bytes"]) - int(found["cancelled_write_bytes"])


def measure_wear(broker: Broker, folder: Path, *, seconds: float, seed: int) -> Iterator[Wear]:
    """All four side by side; the first SETTLE_S are not counted."""
    found = []
    count = int(RATE * (seconds + SETTLE_S + 30))
    for number, (workload, profile) in enumerate((w, p) for w in WORKLOADS for p in PROFILES):
        name = f"wear{seed}-{number}"
        node = Node(write_config(folder / name, broker.url, node=name, workload=workload, profile=profile))
        sender = Sender(broker.port, messages(workload, name, count, seed), client_id=f"sender-{name}", rate=RATE)
        found.append((workload, profile, node, sender, Sink(broker.port, node=name)))
        node.start()
        node.wait_connected()
        sender.start()
    try:
        time.sleep(SETTLE_S)
        before = [(written_bytes(node.pid), sender.sent, time.monotonic()) for _, _, node, sender, _ in found]
        time.sleep(seconds)
        for (workload, profile, node, sender, _), (bytes_before, sent, at_s) in zip(found, before, strict=True):
            yield Wear(
                workload=workload,
                profile=profile,
                seconds=round(time.monotonic() - at_s, 2),
                messages=sender.sent - sent,
                written_bytes=written_bytes(node.pid) - bytes_before,
            )
    finally:
        for _, _, node, sender, sink in found:
            node.close()
            sender.close()
            sink.close()
