from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from edge_runtime import config
from edge_runtime.delivery.ledger import Ledger
from edge_runtime.errors import ExportError
from edge_runtime.model.session import reconstruction_error
from edge_runtime.records import Queued, Turn
from edge_runtime.stream.decide import Decider
from edge_runtime.stream.decode import make_decoder
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.recording import Recording
from edge_runtime.stream.window import WindowSettings
from edge_runtime.testing import ManualClock
from export import recipe as recipes

pytestmark = pytest.mark.torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "machine_temperature"
FILES = ("recipe", "baseline", "record", "events")
THRESHOLD = 4.0
STEP_BACK = 6000


class Example(NamedTuple):
    recipe: ModuleType
    baseline: ModuleType
    record: ModuleType
    events: ModuleType


@contextmanager
def neighbours(folder: Path, names: tuple[str, ...]) -> Iterator[None]:
    """The folder first on sys.path, and none of its modules left behind: other examples have a recipe.py too."""
    sys.path.insert(0, str(folder))
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def load() -> Example:
    with neighbours(EXAMPLE, FILES):
        return Example(*(importlib.import_module(name) for name in FILES))


def synthetic(folder: Path) -> None:
    """An archive of five weeks that swing by the day, with one step back in time as in the real series."""
    unix_s = 1387238400 + 300 * np.arange(10_080)  # from 2013-12-17
    unix_s[STEP_BACK:] -= 3600
    hours = np.arange(len(unix_s)) / 12
    values = 90 + 8 * np.sin(2 * np.pi * hours / 24) + 0.5 * np.random.default_rng(0).standard_normal(len(unix_s))
    labels = np.zeros(len(unix_s), np.int8)
    values[100:200], labels[80:220] = 20, 1
    key = "machine_temperature_system_failure"
    arrays = {f"{key}_time": unix_s, f"{key}_value": values.astype(np.float32), f"{key}_label": labels}
    np.savez(folder / "nab_sensor.npz", **arrays)


@pytest.fixture(scope="module")
def example() -> Example:
    return load()


@pytest.fixture
def real(example: Example) -> Example:
    """With the series itself, which is not part of the project."""
    if not example.recipe.archive_path().is_file():
        pytest.skip("../shared/data not present")
    return example


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Example:
    synthetic(tmp_path)
    monkeypatch.setenv("EDGE_SHARED_DATA", str(tmp_path))
    return load()


class Untrained:
    """A predictor that rebuilds each window as its mean: its error is the window's variance."""

    model_id = "variance@1.0.0"

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return inputs.var(axis=1, keepdims=True)


def pipeline(example: Example) -> Pipeline:
    (settings,) = config.load(EXAMPLE / "device.toml").pipelines.values()
    spec = example.recipe.INPUT
    return Pipeline(
        "temperature",
        spec=spec,
        window=WindowSettings(spec.length, spec.hop, settings.window.max_gap_samples),
        decode=make_decoder(settings.source, 1),
        predictor=Untrained(),
        decider=Decider(settings.decide, labels=(), threshold=THRESHOLD),
        ledger=Ledger(),
        run_id="run",
        clock=ManualClock().clock(),
    )


def replayed(example: Example, folder: Path) -> list[Turn]:
    """The series as a recording, message by message through the device's pipeline."""
    example.record.write(folder / "series.rec")
    made = pipeline(example)
    return [made.process([Queued("machine-1", [message])]) for message in Recording(folder / "series.rec")]


def test_the_recipe_loads_and_rebuilds_a_batch_of_its_windows() -> None:
    recipe = recipes.load(EXAMPLE / "recipe.py")
    model = recipe.build().eval()

    assert (recipe.output, recipe.labels) == ("reconstruction", ())
    assert model(torch.zeros(3, *recipe.input.shape())).shape == (3, 32)
    assert not [parameter for parameter in model.front_end.parameters() if parameter.requires_grad]


def test_the_device_config_reads_what_the_recording_holds_and_alarms_as_the_baseline_does(example: Example) -> None:
    (settings,) = config.load(EXAMPLE / "device.toml").pipelines.values()

    assert (settings.source.fields, settings.source.time_field) == (("value",), "ts")
    assert settings.source.topic.replace("+machine", "machine-1") == example.record.TOPIC
    assert (settings.decide.k, settings.decide.n) == (example.baseline.K, example.baseline.N)
    assert settings.decide.score is None


def test_an_absent_series_is_an_export_error_that_says_what_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGE_SHARED_DATA", str(tmp_path))

    with pytest.raises(ExportError, match=r"nab_sensor.npz is missing: .*Numenta.*MIT.*README.md"):
        load().recipe.data()


def test_the_auc_counts_pairs_and_ties_half(example: Example) -> None:
    found = example.baseline.auc(np.array([1.0, 2.0, 2.0, 3.0]), np.array([0, 0, 1, 1]))

    assert found == 3.5 / 4


def test_an_anomaly_is_hit_when_the_alarm_is_on_within_it(example: Example) -> None:
    k = example.baseline.K
    labels = np.repeat([0, 1, 0, 1, 0], [20, 20, 20, 20, 20])
    scores = np.zeros(100)
    scores[25 : 25 + k + 1] = 9.0  # the alarm goes on with its kth window, and off once k of the last n are quiet
    scores[60:62] = 9.0
    found = example.baseline.judge(scores, 5.0, labels)

    assert found.hits == 1
    assert found.delays_s == ((5 + k - 1) * 300, None)
    assert found.false == 0
    assert found.inside == pytest.approx((k + 1) / 40)


def test_the_threshold_keeps_the_share_of_false_alarms(example: Example) -> None:
    scores = np.random.default_rng(0).standard_normal(4000)
    labels = (np.arange(4000) // 500 == 3).astype(np.int64)
    limit = example.baseline.threshold_at(scores, labels, 0.02)

    assert example.baseline.judge(scores, limit, labels).false <= 0.02
    assert example.baseline.judge(scores, limit - 0.05, labels).false > 0.02


def test_the_metric_is_the_share_of_variance_explained(made_up: Example) -> None:
    variance = made_up.recipe.windows("train")[0].var()
    errors = np.array([[0.5 * variance], [1e9]], np.float32)

    assert made_up.recipe.metric(errors, np.array([0, 1])) == pytest.approx(0.5)
    with pytest.raises(ExportError, match="no window without a label"):
        made_up.recipe.metric(errors, np.array([1, 1]))


def test_the_windows_of_a_split_end_to_end_and_never_reach_into_another(made_up: Example) -> None:
    recipe = made_up.recipe
    seen: dict[str, set[int]] = {}
    for name in ("train", "validation", "test"):
        cut, ends = recipe.windows(name)
        rows = ends[:, None] + np.arange(1 - recipe.LENGTH, 1)
        assert np.array_equal(cut, recipe.series().values[rows])
        seen[name] = set(rows.ravel().tolist())

    assert not any(seen[a] & seen[b] for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")))
    assert set().union(*seen.values()) == set(range(len(recipe.series().values)))


def test_the_net_learns_to_rebuild_a_daily_swing(made_up: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_up.recipe, "EPOCHS", 3)
    splits = made_up.recipe.data()
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    model = made_up.recipe.build()
    made_up.recipe.train(model, splits, seed=0, progress=lambda _line: None)
    torch.set_num_threads(threads)
    with torch.no_grad():
        rebuilt = model.eval()(torch.from_numpy(splits.validation.inputs)).numpy()
    errors = reconstruction_error(splits.validation.inputs, rebuilt)

    assert made_up.recipe.metric(errors, splits.validation.targets) > 0.9  # the mean alone would explain nothing


def check_pipeline(example: Example, folder: Path) -> list[Turn]:
    """Errors and alarms of the pipeline are those of all windows cut offline."""
    turns = replayed(example, folder)
    results = [result for turn in turns for result in turn.results]
    values = example.recipe.series().values
    errors = np.lib.stride_tricks.sliding_window_view(values, 32).var(axis=1)

    assert len(results) == len(values) - 31
    assert [result.score for result in results] == pytest.approx(errors.tolist(), rel=1e-4, abs=1e-4)
    scores = np.array([result.score for result in results])
    assert [result.alarm for result in results] == example.baseline.alarms(scores, THRESHOLD).tolist()
    return turns


def test_the_pipeline_says_what_the_offline_windows_say(made_up: Example, tmp_path: Path) -> None:
    turns = check_pipeline(made_up, tmp_path)
    first, *_ = [event for turn in turns for event in turn.events]
    on_unix_s = made_up.events.on_unix_s(first)
    start_s, end_s = made_up.events.anomalies()[0]

    assert start_s < on_unix_s < end_s
    assert made_up.events.where(first).startswith("anomaly 1, ")


def test_time_stamps_that_step_back_are_no_gap(made_up: Example, tmp_path: Path) -> None:
    results = [result for turn in replayed(made_up, tmp_path) for result in turn.results]
    ends = np.array([result.t1 for result in results])
    spans = {result.t1 - result.t0 for result in results}

    assert [(a.seq, b.seq) for a, b in pairwise(results) if b.t1 < a.t1] == [
        ((STEP_BACK - 32, STEP_BACK - 1), (STEP_BACK - 31, STEP_BACK))
    ]
    assert set(np.diff(ends)) == {300.0, -3300.0}
    assert spans == {9300.0, 5700.0}
    assert {(result.missing, result.flags) for result in results} == {(0, ())}


def test_the_splits_of_the_series_are_those_the_readme_names(real: Example) -> None:
    splits = real.recipe.data()
    anomalies = real.baseline.anomalies(splits.test.targets)

    assert [len(getattr(splits, name).inputs) for name in ("train", "validation", "test")] == [7469, 1985, 13117]
    assert not splits.train.targets.any()
    assert not splits.validation.targets.any()
    assert [rows.stop - rows.start for rows in anomalies] == [567] * 4


def test_the_z_score_of_the_series_has_the_auc_the_readme_names(real: Example) -> None:
    splits = real.recipe.data()
    mean, deviation = splits.train.inputs.mean(), splits.train.inputs.std()
    scores = np.abs(splits.test.inputs[:, -1] - mean) / deviation

    assert real.baseline.auc(scores, splits.test.targets) == pytest.approx(0.803, abs=5e-4)


def test_the_series_goes_through_the_pipeline_as_offline(real: Example, tmp_path: Path) -> None:
    turns = check_pipeline(real, tmp_path)

    assert sum(len(turn.accepted) for turn in turns) == 22_695
