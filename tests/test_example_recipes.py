from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from edge_runtime import config
from edge_runtime.demo.pump import LABELS, PUMPS, RATE_HZ, SCALE_G
from edge_runtime.errors import ExportError
from edge_runtime.model import bundle
from export import recipe as recipes

pytestmark = pytest.mark.torch

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["pump_vibration", "spoken_digits"]


def module(name: str) -> ModuleType:
    path = EXAMPLES / name / "recipe.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def pump() -> ModuleType:
    return module("pump_vibration")


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    return module("spoken_digits")


@pytest.fixture
def corpus(digits: ModuleType) -> ModuleType:
    """The digits recipe with its recordings, which are not part of the project."""
    if not digits.archive_path().is_file():
        pytest.skip("../shared/data not present")
    return digits


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_loads_and_its_model_takes_a_batch_of_its_windows(name: str) -> None:
    recipe = recipes.load(EXAMPLES / name / "recipe.py")
    model = recipe.build().eval()

    assert model(torch.zeros(3, *recipe.input.shape())).shape == (3, len(recipe.labels))


@pytest.mark.parametrize("name", NAMES)
def test_a_front_end_has_nothing_to_learn(name: str) -> None:
    front_end = recipes.load(EXAMPLES / name / "recipe.py").build().front_end

    assert not [key for key, parameter in front_end.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("name", NAMES)
def test_the_device_config_fits_the_recipe(name: str) -> None:
    settings = config.load(EXAMPLES / name / "device.toml")
    spec = recipes.load(EXAMPLES / name / "recipe.py").input
    (pipeline,) = settings.pipelines.values()

    assert pipeline.source.channels == len(spec.channels)
    assert (pipeline.window.samples or spec.length, pipeline.window.hop or spec.hop) == (spec.length, spec.hop)


def test_the_pump_config_scales_and_decides_as_the_simulation_does(pump: ModuleType) -> None:
    settings = config.load(EXAMPLES / "pump_vibration" / "device.toml")
    (pipeline,) = settings.pipelines.values()
    committed = bundle.read(Path(settings.models[pipeline.model].bundle)).manifest

    assert pipeline.source.scale == SCALE_G
    assert pipeline.decide.alarm_on == f"not {LABELS[0]}"
    assert (committed.name, committed.version) == (pump.NAME, pump.VERSION)
    assert (committed.input, committed.labels) == (pump.INPUT, LABELS)


def test_the_voice_config_scales_as_the_recipe_does(digits: ModuleType) -> None:
    settings = config.load(EXAMPLES / "spoken_digits" / "device.toml")

    assert settings.pipelines["digits"].source.scale == digits.SCALE


def test_a_tone_shows_in_its_own_band_with_its_power(pump: ModuleType) -> None:
    tone_g = 0.1 * np.sin(2 * np.pi * 950 * np.arange(1024) / RATE_HZ)
    x = torch.from_numpy(np.stack([tone_g, np.zeros(1024)])[None].astype(np.float32))
    features = pump.FrontEnd()(x)[0, :, 10:-10]
    low, (below, middle, above) = features[:2], features[2:]

    assert middle.numpy() == pytest.approx(np.log(0.05**2 / pump.FLOOR_G**2 + 1) - 1, abs=0.05)
    assert max(below.max(), above.max()) < middle.min() - 1
    assert low.abs().max() < 0.05


def test_no_machine_is_in_two_splits_or_in_the_demo(pump: ModuleType) -> None:
    specs = {}
    for index, split in enumerate(pump.MACHINES):
        random = np.random.default_rng((pump.SEED, index))
        specs[split] = {pump.random_spec(random) for _ in range(50)}

    assert not specs["train"] & specs["validation"]
    assert not specs["train"] & specs["test"]
    assert not specs["validation"] & specs["test"]
    assert not set().union(*specs.values()) & set(PUMPS.values())


def test_simulated_windows_are_what_the_sensor_would_send(pump: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pump.MACHINES, "test", 1)
    split, severities = pump.simulate("test")
    counts = split.inputs / np.float32(SCALE_G)
    runs = 6 + 4 * 2

    assert split.inputs.shape == (runs * pump.WINDOWS_PER_RUN, 2, 1024)
    assert np.abs(counts - np.rint(counts)).max() < 1e-2
    assert np.bincount(split.targets).tolist() == [24, 8, 8, 8, 8]
    assert np.array_equal(severities == 0, split.targets == LABELS.index("ok"))
    assert severities[severities > 0].min() >= pump.WEAKEST


def test_the_pump_model_learns_from_a_handful_of_machines(pump: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, machines in {"train": 12, "validation": 3, "test": 6}.items():
        monkeypatch.setitem(pump.MACHINES, split, machines)
    splits = pump.data()
    lines: list[str] = []
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    model = pump.build()
    pump.train(model, splits, seed=0, progress=lines.append)
    torch.set_num_threads(threads)
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(splits.test.inputs)).argmax(dim=1).numpy()

    assert len(lines) == pump.EPOCHS
    assert np.mean(found == splits.test.targets) > 0.6  # guessing "ok" would give 0.43


def log_mel(digits: ModuleType, x: np.ndarray) -> np.ndarray:
    """The same spectrogram by numpy's FFT in float64: (32, 49)."""
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(digits.FRAME) / digits.FRAME)
    starts = range(0, digits.LENGTH - digits.FRAME + 1, digits.HOP)
    spectra = np.stack([np.fft.rfft(x[i : i + digits.FRAME] * taper) for i in starts], axis=1) / (digits.FRAME / 2)
    level = np.log(np.maximum(digits.mel_filters() @ np.abs(spectra) ** 2, digits.QUIET))
    return np.maximum(level - level.max(), -digits.RANGE_NATS)


def test_the_spectrogram_in_the_graph_is_the_one_numpy_computes(digits: ModuleType) -> None:
    x = 0.1 * np.random.default_rng(0).standard_normal(digits.LENGTH)
    x[4000:] = 0
    found = digits.build().front_end.log_mel(torch.from_numpy(x[None].astype(np.float32)))[0, 0].numpy()

    assert found.shape == (32, 49)
    assert found == pytest.approx(log_mel(digits, x), abs=1e-3)


def test_a_quiet_speaker_gives_the_same_spectrogram_as_a_loud_one(digits: ModuleType) -> None:
    x = torch.from_numpy(0.5 * np.random.default_rng(1).standard_normal((1, digits.LENGTH)).astype(np.float32))
    front_end = digits.build().front_end

    assert torch.allclose(front_end(x), front_end(0.02 * x), atol=1e-3)


def test_mel_bands_overlap_without_a_gap(digits: ModuleType) -> None:
    filters = digits.mel_filters()
    heard = np.fft.rfftfreq(digits.FRAME, 1 / digits.RATE_HZ)
    inside = (heard > 150) & (heard < 3500)

    assert filters.shape == (32, 129)
    assert (filters.sum(axis=1) > 0).all()
    assert (filters.sum(axis=0)[inside] > 0.9).all()


def test_absent_recordings_are_an_export_error_that_says_what_they_are(
    digits: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGE_SHARED_DATA", str(tmp_path))
    fresh = module("spoken_digits")

    with pytest.raises(ExportError, match=r"fsdd_8k_int16.npz is missing: .*CC BY-SA 4.0.*README.md"):
        fresh.data()


def test_the_split_is_the_official_one(corpus: ModuleType) -> None:
    rows = corpus.recordings()
    counts = {split: sum(row.split == split for row in rows) for split in ("train", "validation", "test")}
    test = [(row.speaker, row.label) for row in rows if row.split == "test"]

    assert counts == {"train": 2430, "validation": 270, "test": 300}
    assert {test.count(pair) for pair in test} == {5}


def test_a_clip_is_the_recording_and_then_silence(corpus: ModuleType) -> None:
    with np.load(corpus.archive_path()) as arrays:
        wave, lengths = arrays["wave"], arrays["length"]
    ends = np.cumsum(lengths)
    short, long = int(np.argmin(lengths)), int(np.argmax(lengths))
    clip, cut = corpus.clip_int16(short), corpus.clip_int16(long)

    assert (clip.shape, clip.dtype) == ((8000,), np.dtype(np.int16))
    assert np.array_equal(clip[: lengths[short]], wave[ends[short] - lengths[short] : ends[short]])
    assert not clip[lengths[short] :].any()
    assert np.array_equal(cut, wave[ends[long] - lengths[long] :][:8000])


def test_windows_are_the_clips_at_full_scale_one(corpus: ModuleType) -> None:
    first = next(row for row in corpus.recordings() if row.split == "test")
    window = corpus.data().test.inputs[0]

    assert np.array_equal(window * 32768, corpus.clip_int16(first.clip))
    assert np.abs(window).max() <= 1
