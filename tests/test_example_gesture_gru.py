from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from edge_runtime import config
from edge_runtime.delivery.ledger import Ledger
from edge_runtime.records import Queued
from edge_runtime.stream.decide import Decider, DecideSettings
from edge_runtime.stream.decode import make_decoder
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.window import WindowSettings
from edge_runtime.testing import ManualClock
from export import recipe as recipes

pytestmark = pytest.mark.torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "gesture_gru"
FILES = ("wrist", "recipe", "record", "evaluate")
STEPS_HZ = 200.0


class Example(NamedTuple):
    wrist: ModuleType
    recipe: ModuleType
    record: ModuleType
    evaluate: ModuleType


@pytest.fixture(scope="module")
def example() -> Example:
    """The example's files; none of them is left in sys.modules, other examples have a recipe.py too."""
    sys.path.insert(0, str(EXAMPLE))
    before = {name: sys.modules.pop(name) for name in FILES if name in sys.modules}
    try:
        return Example(*(importlib.import_module(name) for name in FILES))
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in FILES:
            sys.modules.pop(name, None)
        sys.modules.update(before)


@pytest.fixture
def wearer(example: Example):
    """Somebody with a forearm of 0.25 m whose sensor has no errors but noise, worn straight."""
    found = example.wrist.random_wearer(np.random.default_rng(1))
    exact = dict.fromkeys(("strap", "accel_offset", "gyro_offset"), (0.0, 0.0, 0.0))
    gains = dict.fromkeys(("accel_gain", "gyro_gain"), (1.0, 1.0, 1.0))
    return msgspec.structs.replace(found, forearm_m=0.25, left_handed=False, **exact, **gains)


def felt(example: Example, wearer, *, side=0.0, up=0.0, about=0.0, pitch=0.0) -> np.ndarray:
    """What is felt at every step but the first and last two, of an arm that moves as given (radians over time)."""
    columns = [np.broadcast_to(angle, (400,)) for angle in (side, up, about)]
    pose, none = np.zeros((400, 6)), np.zeros((400, 3))
    pose[:, 0] = pitch
    return example.wrist._felt(wearer, example.wrist._Motion(pose, np.stack(columns, axis=1), none, none))[2:-2]


def test_the_recipe_loads_and_its_model_takes_a_batch_of_its_windows() -> None:
    recipe = recipes.load(EXAMPLE / "recipe.py")
    model = recipe.build().eval()

    assert model(torch.zeros(3, *recipe.input.shape())).shape == (3, len(recipe.labels))
    assert recipe.summary.count("SIMULATED") == 1
    assert not list(model.front_end.parameters())


def test_the_device_config_scales_as_the_band_does(example: Example) -> None:
    (settings,) = config.load(EXAMPLE / "device.toml").pipelines.values()
    source = settings.source

    assert (source.format, source.dtype, source.channels) == ("raw", "int16", len(example.wrist.AXES))
    assert source.scale == example.wrist.SCALE


def test_the_same_seed_gives_the_same_stream(example: Example) -> None:
    somebody = example.wrist.random_wearer(np.random.default_rng(0))
    script = [("rest", 2.0), ("wave", 3.0), ("knock", 2.0)]
    first, labels = example.wrist.perform(somebody, script, seed=3)
    again, _ = example.wrist.perform(somebody, script, seed=3)
    other, _ = example.wrist.perform(somebody, script, seed=4)

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first.shape, first.dtype) == ((350, 6), np.float32)
    assert labels.tolist() == [0] * 100 + [1] * 150 + [5] * 100


def test_an_arm_that_rests_feels_one_g_and_no_turning(example: Example, wearer) -> None:
    ends = [example.wrist.perform(wearer, [("rest", 5.0)], seed=seed)[0][150:] for seed in range(40)]
    turning = np.array([np.linalg.norm(end[:, 3:], axis=1).max() for end in ends])
    still = [end for end, most in zip(ends, turning, strict=True) if most < 0.15]
    forces = np.linalg.norm(np.concatenate(still)[:, :3], axis=1)

    assert len(still) >= 12  # of 40; the others walk or reach for something
    assert forces.mean() == pytest.approx(9.81, abs=0.05)
    assert np.abs(forces - 9.81).max() < 0.5


def test_gravity_turns_with_the_arm(example: Example, wearer) -> None:
    for pitch_deg, wanted in ((0, (0, 0, 9.80665)), (90, (9.80665, 0, 0)), (-30, (-4.903325, 0, 8.492808))):
        assert felt(example, wearer, pitch=np.radians(pitch_deg))[10, :3] == pytest.approx(wanted, abs=1e-4)


def test_a_steady_swing_pulls_toward_the_elbow(example: Example, wearer) -> None:
    rad_s = 4.0
    found = felt(example, wearer, side=rad_s * np.arange(400) / STEPS_HZ)

    assert found == pytest.approx(np.tile([-0.25 * rad_s**2, 0, 9.80665, 0, 0, rad_s], (396, 1)), rel=2e-3, abs=2e-2)


def test_a_twist_turns_about_the_arm_and_moves_nothing(example: Example, wearer) -> None:
    phase = 2 * np.pi * 1.5 * np.arange(400) / STEPS_HZ
    found = felt(example, wearer, about=0.7 * np.sin(phase))
    wanted = 0.7 * 2 * np.pi * 1.5 * np.cos(phase)[2:-2]

    assert found[:, 3] == pytest.approx(wanted, abs=0.02)
    assert np.abs(found[:, 4:]).max() < 1e-9
    assert np.linalg.norm(found[:, :3], axis=1) == pytest.approx(np.full(396, 9.80665))


def test_a_left_hand_is_the_mirror_image(example: Example, wearer) -> None:
    moves = {"side": 0.5 * np.sin(np.arange(400) / 40), "about": 0.3 * np.cos(np.arange(400) / 30), "pitch": 0.4}
    left = msgspec.structs.replace(wearer, left_handed=True)

    assert felt(example, left, **moves) == pytest.approx(felt(example, wearer, **moves) * [1, -1, 1, -1, 1, -1])


def test_the_sensor_adds_its_noise_and_ends_at_its_range(example: Example, wearer) -> None:
    level = np.array([0.0, 0.0, 200.0, 0.0, 0.0, 99.0])
    found = example.wrist._sensed(wearer, np.tile(level, (40_000, 1)), np.random.default_rng(0))
    noise = found[:, [0, 1, 3, 4]].std(axis=0)

    assert noise == pytest.approx([0.0070, 0.0070, 5.46e-4, 5.46e-4], rel=0.05)  # density x square root of 20 Hz
    assert found[:, 2] == pytest.approx(np.full(10_000, 78.4532))  # 8 g
    assert found[:, 5] == pytest.approx(np.full(10_000, 34.9066))  # 2,000 degrees/s


def test_every_gesture_moves_more_than_rest_and_stays_within_an_arms_strength(example: Example) -> None:
    random = np.random.default_rng(5)
    people = [example.wrist.random_wearer(random) for _ in range(6)]
    for label in example.wrist.LABELS[1:]:
        found = np.concatenate([example.wrist.perform(p, [(label, 4.0)], seed=1)[0][100:150] for p in people])
        assert np.linalg.norm(found[:, 3:], axis=1).mean() > 0.4
        assert 9 < np.linalg.norm(found[:, :3], axis=1).mean() < 30


def test_nobody_is_in_two_splits_or_in_the_recording(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    original, straps = example.wrist.random_wearer, []

    def watched(random: np.random.Generator):
        somebody = original(random)
        straps.append(somebody.strap)
        return somebody

    monkeypatch.setattr(example.recipe, "random_wearer", watched)
    monkeypatch.setattr(example.wrist, "random_wearer", watched)
    monkeypatch.setattr(example.recipe, "SESSION_S", 2.0)
    example.recipe.data()
    example.record.strangers()

    assert len(straps) == 60 + 12 + 40 + 2
    assert len(set(straps)) == len(straps)


def test_windows_are_what_the_band_would_send(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example.recipe, "SESSION_S", 20.0)
    found = example.recipe.session(np.random.default_rng(0))
    counts = found.inputs / np.float32(example.wrist.SCALE)

    assert found.inputs.shape[1:] == example.recipe.INPUT.shape()
    assert np.abs(counts - np.rint(counts)).max() < 5e-3
    assert found.purity.min() > 1 / 6
    assert found.purity.max() == 1
    assert np.array_equal(found.inputs[0, 25:], found.inputs[1, :-25])


def test_the_pipeline_sees_the_windows_that_were_simulated(example: Example) -> None:
    people = example.record.strangers()
    (settings,) = config.load(EXAMPLE / "device.toml").pipelines.values()
    spec, labels = example.recipe.INPUT, example.wrist.LABELS
    seen: list[np.ndarray] = []

    class Watching:
        model_id = "watching@1.0.0"

        def predict(self, inputs: np.ndarray) -> np.ndarray:
            seen.extend(inputs.copy())
            return np.eye(len(labels), dtype=np.float32)[np.zeros(len(inputs), int)]

    made = Pipeline(
        "gestures",
        spec=spec,
        window=WindowSettings(spec.length, spec.hop),
        decode=make_decoder(settings.source, 6),
        predictor=Watching(),
        decider=Decider(DecideSettings(), labels=labels),
        ledger=Ledger(),
        run_id="run",
        clock=ManualClock().clock(),
    )
    turn = made.process([Queued(m.topic.split("/")[1], [m]) for m in example.record.messages(people)])

    for person in people:
        counts = example.wrist.to_int16(person.values)
        sent = counts[: len(counts) // example.record.ROWS * example.record.ROWS] * np.float32(example.wrist.SCALE)
        wanted = np.lib.stride_tricks.sliding_window_view(sent, 100, axis=0)[::25].transpose(0, 2, 1)
        found = [w for w, window in zip(seen, turn.windows, strict=True) if window.stream == person.name]
        assert np.array_equal(np.stack(found), wanted)


def test_the_interval_is_over_people_not_windows(example: Example) -> None:
    half_wrong = [np.ones(100, bool)] * 4 + [np.zeros(100, bool)] * 4
    low, high = example.evaluate.interval(half_wrong)

    assert (low, high) == (0.125, 0.875)  # of eight people; of 800 windows it would be 0.47 to 0.53


def test_the_net_learns_from_a_handful_of_people(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, people in {"train": 6, "validation": 1, "test": 5}.items():
        monkeypatch.setitem(example.recipe.WEARERS, split, people)
    monkeypatch.setattr(example.recipe, "SESSION_S", 45.0)
    monkeypatch.setattr(example.recipe, "EPOCHS", 6)
    splits = example.recipe.data()
    lines: list[str] = []
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    model = example.recipe.build()
    example.recipe.train(model, splits, seed=0, progress=lines.append)
    torch.set_num_threads(threads)
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(splits.test.inputs)).argmax(dim=1).numpy()

    assert len(lines) == 6
    guessing = np.bincount(splits.test.targets).max() / len(splits.test.targets)
    assert np.mean(found == splits.test.targets) > guessing + 0.2
