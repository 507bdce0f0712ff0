"""A model trained, exported and packed by edge-export hears recordings over MQTT exactly as it does offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from broker import Broker
from daemon import account, serving
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_runtime.model.bundle import read
from edge_runtime.model.session import Session, SessionSettings

pytest.importorskip("torch", reason="needs the export extra")
pytestmark = [pytest.mark.broker, pytest.mark.torch, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "examples" / "spoken_digits" / "recipe.py"
DATA = Path(os.environ.get("EDGE_SHARED_DATA", ROOT.parent / "shared" / "data")) / "fsdd_8k_int16.npz"
CHUNK = 800  # samples: 100 ms

Clip = npt.NDArray[np.int16]
Clips = dict[str, list[Clip]]


def export(recipe: Path, target: Path) -> list[dict[str, Any]]:
    """Run edge-export as a user does; its table."""
    found = subprocess.run(
        [sys.executable, "-c", "from export.cli import main; main()", "run", str(recipe), "-o", str(target), "--json"],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)["variants"]


def load(recipe: Path) -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"loaded_{recipe.stem}", recipe)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def labels_over_mqtt(clips: Clips, bundle: Path, broker: Broker, folder: Path) -> tuple[dict[str, list[str]], dict]:
    """Publish every clip in chunks, a stream for each voice; the labels that come back, in order, and the summary."""
    heard: dict[str, list[str]] = {voice: [] for voice in clips}
    with serving(RECIPE.parent / "device.toml", bundle, broker, folder) as daemon:
        probe = broker.probe("edge/v1/n1/p/+/out/#")
        for round_ in range(max(len(waves) for waves in clips.values())):
            speaking = {voice: waves[round_] for voice, waves in clips.items() if round_ < len(waves)}
            for at in range(0, 8000, CHUNK):
                for voice, wave in speaking.items():
                    properties = Properties(PacketTypes.PUBLISH)
                    properties.UserProperty = [("seq", str(round_ * 10 + at // CHUNK))]
                    chunk = wave[at : at + CHUNK].astype("<i2").tobytes()
                    probe.publish(f"voice/{voice}/pcm", chunk, properties=properties)
            for message in probe.wait_for(len(speaking)):
                result = json.loads(message.payload)
                heard[result["stream"]].append(result["label"])
                assert result["missing"] == 0
                assert not result["flags"] or result["flags"] == ["receipt_time"]
        return heard, daemon.stop()


def labels_offline(clips: Clips, bundle: Path, scale: float) -> dict[str, list[str]]:
    session = Session(read(bundle), SessionSettings())
    names = session.manifest.labels
    return {
        voice: [names[i] for i in session.predict(np.stack(waves) * np.float32(scale)).argmax(axis=1)]
        for voice, waves in clips.items()
    }


def check_equal(clips: Clips, bundle: Path, broker: Broker, folder: Path, scale: float) -> dict[str, list[str]]:
    heard, summary = labels_over_mqtt(clips, bundle, broker, folder)
    n = sum(len(waves) for waves in clips.values())

    assert heard == labels_offline(clips, bundle, scale)
    assert summary["balanced"]
    found = next(a for a in summary["ledger"]["pipelines"])
    assert (found["received"], found["accepted"], found["windows"], found["confirmed"]) == (10 * n, 10 * n, n, n)
    assert account(summary, found["pipeline"])["dropped"] == {}
    return heard


def by_voice(rows: list[tuple[str, int, Clip]]) -> tuple[Clips, dict[str, list[int]]]:
    clips: Clips = {}
    labels: dict[str, list[int]] = {}
    for voice, label, wave in rows:
        clips.setdefault(voice, []).append(wave)
        labels.setdefault(voice, []).append(label)
    return clips, labels


def accuracy(heard: dict[str, list[str]], labels: dict[str, list[int]]) -> float:
    pairs = [(h, str(w)) for voice in heard for h, w in zip(heard[voice], labels[voice], strict=True)]
    return sum(h == w for h, w in pairs) / len(pairs)


@pytest.mark.skipif(not DATA.is_file(), reason=f"{DATA.name} not present beside the checkout (../shared/data)")
def test_every_test_recording_is_heard_over_mqtt_as_offline(tmp_path: Path, broker: Broker) -> None:
    bundle = tmp_path / "digits.edge"
    variants = {variant["variant"]: variant for variant in export(RECIPE, bundle)}
    recipe = load(RECIPE)
    rows = [(r.speaker, r.label, recipe.clip_int16(r.clip)) for r in recipe.recordings() if r.split == "test"]
    clips, labels = by_voice(rows)

    assert (len(rows), len(clips)) == (300, 6)
    assert variants["float32"]["test"]["metric"] >= 0.97
    judged = {name: v["validation"]["metric"] for name, v in variants.items()}
    assert max(metric for name, metric in judged.items() if name.startswith("int8")) >= judged["float32"] - 0.01
    heard = check_equal(clips, bundle, broker, tmp_path, recipe.SCALE)
    chosen = next(v for v in variants.values() if v["status"] == "chosen")
    assert accuracy(heard, labels) == pytest.approx(chosen["test"]["metric"])


def test_generated_tones_are_heard_over_mqtt_as_offline(tmp_path: Path, broker: Broker) -> None:
    recipe_path = Path(__file__).parent / "tones_recipe.py"
    bundle = tmp_path / "tones.edge"
    export(recipe_path, bundle)
    recipe = load(recipe_path)
    clips, labels = by_voice(recipe.clips("test"))

    heard = check_equal(clips, bundle, broker, tmp_path, recipe.digits.SCALE)
    assert accuracy(heard, labels) >= 0.9
