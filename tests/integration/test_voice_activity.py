"""A stranger's streaming model, packed by edge-export, answers over MQTT as onnxruntime driven by hand does."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from broker import Broker
from click.testing import CliRunner
from daemon import account, serving
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

from edge_runtime.config import load
from edge_runtime.delivery.ledger import Ledger
from edge_runtime.model.bundle import read
from edge_runtime.model.session import Session, SessionSettings, load_onnxruntime
from edge_runtime.pipelines import build_pipeline
from edge_runtime.records import Message, Properties, Queued, State
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.testing import ManualClock
from export.cli import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "voice_activity"
DATA = Path(os.environ.get("EDGE_SHARED_DATA", ROOT.parent / "shared" / "data")) / "fsdd_8k_int16.npz"
RATE_HZ, CONTEXT, HOP = 8000, 32, 256
SCALE = np.float32(2.0**-15)
LIMIT = 1e-5

Wave = npt.NDArray[np.int16]
Scores = npt.NDArray[np.float32]

found = importlib.util.find_spec("silero_vad")
pytestmark = pytest.mark.skipif(found is None, reason="silero-vad is not installed (pip install --no-deps silero-vad)")
MODEL = Path(found.submodule_search_locations[0]) / "data" / "silero_vad.onnx" if found else Path()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("voice") / "voice-activity.edge"
    done = CliRunner().invoke(main, ["pack", str(MODEL), "--spec", str(EXAMPLE / "pack.toml"), "-o", str(path)])
    assert done.exit_code == 0, done.stderr
    return path


def recordings() -> dict[str, Wave]:
    """Three recordings, zero to two, of each of the six speakers, half a second of faint noise before each."""
    rng = np.random.default_rng(5)
    with np.load(DATA) as file:
        ends = np.cumsum(file["length"])
        rows = zip(file["speaker"], file["label"], file["index"], ends - file["length"], ends, strict=True)
        clips: dict[str, list[Wave]] = {}
        for speaker, label, index, start, end in rows:
            if index == 0 and label < 3:
                pause = (rng.standard_normal(RATE_HZ // 2) * 32).astype(np.int16)
                clips.setdefault(str(speaker), []).extend([pause, file["wave"][start:end]])
    return {speaker: np.concatenate(waves) for speaker, waves in clips.items()}


def generated() -> dict[str, Wave]:
    """Three streams, each of its own length: tones, bursts of noise, and near silence in turn."""
    rng = np.random.default_rng(3)
    waves = {}
    for number, name in enumerate(("one", "two", "three")):
        t = np.arange(RATE_HZ + 301 * number) / RATE_HZ
        tone = np.sin(2 * np.pi * (120 + 60 * number) * t) * (np.sin(2 * np.pi * 3 * t) > 0)
        burst = rng.standard_normal(len(t)) * (np.sin(2 * np.pi * 5 * t) > 0.5)
        waves[name] = ((0.4 * tone + 0.1 * burst + 0.001 * rng.standard_normal(len(t))) * 2**14).astype(np.int16)
    return waves


def windows_of(wave: Wave) -> Scores:
    """(n, 288): 32 samples of context before 256 new ones; zeros before the first."""
    samples = np.concatenate([np.zeros(CONTEXT, np.float32), wave.astype(np.float32) * SCALE])
    return np.lib.stride_tricks.sliding_window_view(samples, CONTEXT + HOP)[::HOP].copy()


def by_hand(wave: Wave) -> Scores:
    """Plain onnxruntime."""
    return carried(windows_of(wave))


def carried(windows: Scores) -> Scores:
    """Scores of one stream's windows, one at a time, the state carried by hand."""
    session = load_onnxruntime().InferenceSession(str(MODEL))
    state, rate, scores = np.zeros((2, 1, 128), np.float32), np.array(RATE_HZ, np.int64), []
    for window in windows:
        score, state = session.run(["output", "stateN"], {"input": window[np.newaxis], "state": state, "sr": rate})
        scores.append(score[0, 0])
    return np.array(scores)


def by_its_authors(wave: Wave) -> Scores:
    """The class that silero-vad comes with."""
    torch = pytest.importorskip("torch", reason="silero-vad's own wrapper needs torch")
    load_onnxruntime()
    from silero_vad.utils_vad import OnnxWrapper

    wrapper = OnnxWrapper(str(MODEL), force_onnx_cpu=True)
    new = torch.from_numpy(wave[: len(wave) // HOP * HOP].astype(np.float32) * SCALE).reshape(-1, HOP)
    return np.array([wrapper(samples, RATE_HZ).item() for samples in new], np.float32)


def odd_messages(waves: dict[str, Wave]) -> Iterator[tuple[str, int, bytes]]:
    """Every stream cut into messages of 1 to 900 samples, the streams mixed: (stream, message number, payload)."""
    rng = np.random.default_rng(11)
    sent, numbers = dict.fromkeys(waves, 0), dict.fromkeys(waves, 0)
    while open_ := [stream for stream, wave in waves.items() if sent[stream] < len(wave)]:
        stream = open_[rng.integers(len(open_))]
        chunk = waves[stream][sent[stream] : sent[stream] + int(rng.integers(1, 901))]
        yield stream, numbers[stream], chunk.astype("<i2").tobytes()
        sent[stream] += len(chunk)
        numbers[stream] += 1


def over_mqtt(
    waves: dict[str, Wave], bundle: Path, broker: Broker, folder: Path
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """The results of each stream, in order, and the daemon's summary."""
    expected = sum(len(wave) // HOP for wave in waves.values())
    with serving(EXAMPLE / "device.toml", bundle, broker, folder) as daemon:
        probe = broker.probe("edge/v1/n1/p/+/out/#")
        for stream, number, payload in odd_messages(waves):
            properties = PahoProperties(PacketTypes.PUBLISH)
            properties.UserProperty = [("seq", str(number))]
            probe.publish(f"voice/{stream}/pcm", payload, properties=properties)
        messages = probe.wait_for(expected, timeout_s=60)
        summary = daemon.stop()
        assert not probe.seen()
    heard: dict[str, list[dict[str, Any]]] = {stream: [] for stream in waves}
    for message in messages:
        result = json.loads(message.payload)
        heard[result["stream"]].append(result)
    return heard, summary


def check_equal(waves: dict[str, Wave], bundle: Path, broker: Broker, folder: Path) -> dict[str, list[dict[str, Any]]]:
    heard, summary = over_mqtt(waves, bundle, broker, folder)
    for stream, wave in waves.items():
        speech = np.array([result["scores"]["speech"] for result in heard[stream]])
        for oracle in (by_hand, by_its_authors):
            wanted = oracle(wave)
            assert len(speech) == len(wanted) == len(wave) // HOP
            np.testing.assert_allclose(speech, wanted, atol=LIMIT, rtol=0, err_msg=f"{stream}, {oracle.__name__}")
    total = sum(len(results) for results in heard.values())
    counted = account(summary, "voice")
    assert summary["balanced"]
    assert (counted["windows"], counted["confirmed"], counted["dropped"]) == (total, total, {})
    return heard


@pytest.mark.broker
@pytest.mark.skipif(not DATA.is_file(), reason=f"{DATA.name} not present beside the checkout (../shared/data)")
def test_six_speakers_over_mqtt_are_scored_as_by_hand_and_as_by_the_detectors_authors(
    packed: Path, broker: Broker, tmp_path: Path
) -> None:
    heard = check_equal(recordings(), packed, broker, tmp_path)

    results = [result for stream in heard.values() for result in stream]
    assert len(heard) == 6
    assert 0.1 < np.mean([result["scores"]["speech"] > 0.5 for result in results]) < 0.9
    assert {result["alarm"] for result in results} == {True, False}


@pytest.mark.broker
def test_generated_sounds_over_mqtt_are_scored_as_by_hand_and_as_by_the_detectors_authors(
    packed: Path, broker: Broker, tmp_path: Path
) -> None:
    heard = check_equal(generated(), packed, broker, tmp_path)

    scores = np.array([result["scores"]["speech"] for results in heard.values() for result in results])
    assert np.ptp(scores) > 0.01


def test_streams_batched_together_are_scored_as_one_by_one(packed: Path) -> None:
    session = Session(read(packed), SessionSettings())
    streams = [windows_of(wave) for wave in generated().values()]
    together, alone = [session.initial()] * len(streams), [session.initial()] * len(streams)

    assert session.dynamic_batch
    for step in range(min(map(len, streams))):
        inputs = np.stack([windows[step] for windows in streams])
        scores, together = session.step(inputs, together)
        single = [session.step(inputs[i : i + 1], [alone[i]]) for i in range(len(streams))]
        alone = [states[0] for _, states in single]
        np.testing.assert_allclose(scores, np.concatenate([one for one, _ in single]), atol=LIMIT, rtol=0)
        for batched, lone in zip(together, alone, strict=True):
            np.testing.assert_allclose(batched[0], lone[0], atol=LIMIT, rtol=0)


def pipeline(bundle: Path) -> tuple[Pipeline, list[int]]:
    """The example's pipeline, and how many streams shared each run of the model."""
    session, batches = Session(read(bundle), SessionSettings()), []
    step = session.step

    def counted(inputs: Scores, states: Sequence[State]) -> tuple[Scores, list[State]]:
        batches.append(len(inputs))
        return step(inputs, states)

    session.step = counted
    made = build_pipeline(
        load(EXAMPLE / "device.toml"),
        "voice",
        session,
        path="device.toml",
        ledger=Ledger(),
        run_id="run",
        clock=ManualClock().clock(),
    )
    return made, batches


def test_a_turn_of_many_streams_gives_the_results_of_a_turn_for_each_message(packed: Path) -> None:
    queued = [
        Queued(stream, [Message("t", payload, 0, properties=Properties(user=(("seq", str(number)),)))])
        for stream, number, payload in odd_messages(generated())
    ]
    together, shared = pipeline(packed)
    apart, single = pipeline(packed)

    one = together.process(queued).results
    many = [result for message in queued for result in apart.process([message]).results]

    assert [(result.stream, result.id) for result in one] == [(result.stream, result.id) for result in many]
    speech = [[result.scores["speech"] for result in results] for results in (one, many)]
    np.testing.assert_allclose(*speech, atol=LIMIT, rtol=0)
    assert sum(shared) == sum(single) == len(one) == sum(len(wave) // HOP for wave in generated().values())
    assert max(shared) == 3
    assert set(single) == {1}


def test_the_bundle_goes_on_with_the_licence_of_the_detector(packed: Path) -> None:
    card = read(packed).card
    texts = [file for file in metadata.files("silero-vad") or () if file.name == "LICENSE"]

    assert "## Licence" in card
    assert texts[0].read_text().strip() in card


def test_the_golden_vectors_are_one_stream_from_zero(packed: Path) -> None:
    golden = read(packed).golden

    np.testing.assert_allclose(golden.outputs[:, 0], carried(golden.inputs), atol=LIMIT, rtol=0)
    np.testing.assert_array_equal(golden.inputs[1:, :CONTEXT], golden.inputs[:-1, -CONTEXT:])
    assert not golden.inputs[0, :CONTEXT].any()
