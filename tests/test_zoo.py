from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx
import torch

from benchmarks import zoo
from edge_runtime.errors import ExportError
from export import to_onnx
from export.artifact import Artifact, outputs_of
from export.recipe import Recipe, Splits
from export.train import deterministic

pytestmark = pytest.mark.torch

FEATURES = {"digits_gru": (49, 32), "digits_cnn2d": (1, 49, 32), "digits_wave_cnn1d": (1, 8000)}
IMAGES = {"fashion_cnn2d": (1, 28, 28), "pump_autoencoder": (256,)}


@pytest.fixture
def neighbour(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The autoencoder's recipe as a module, imported as a recipe imports its neighbours."""
    monkeypatch.syspath_prepend(str(zoo.FOLDER))
    return importlib.import_module("pump_autoencoder")


def splits_of(name: str, *, fold: int = 0) -> Splits:
    try:
        return zoo.load(name, fold=fold).data()
    except ExportError as error:
        pytest.skip(f"../shared/data not present: {error}")


def build(recipe: Recipe) -> torch.nn.Module:
    torch.manual_seed(recipe.seed)
    try:
        return recipe.build().eval()
    except ExportError as error:
        pytest.skip(f"../shared/data not present: {error}")


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_model_takes_a_batch_of_its_windows_and_gives_what_its_recipe_says(name: str) -> None:
    recipe = zoo.load(name)
    model = build(recipe)
    wanted = recipe.input.shape() if recipe.output == "reconstruction" else (len(recipe.labels),)

    assert model(torch.rand(3, *recipe.input.shape())).shape == (3, *wanted)


def test_every_recipe_of_the_folder_is_listed_and_nothing_else() -> None:
    recipes = {path.stem for path in zoo.FOLDER.glob("*.py") if "\nNAME = " in path.read_text(encoding="utf-8")}

    assert recipes == set(zoo.NAMES)


def test_a_fold_is_a_seed_of_its_own_and_must_exist() -> None:
    assert zoo.load("digits_gru", fold=3).seed == zoo.load("digits_gru").seed + 3
    with pytest.raises(ValueError, match="fold 5, wanted 0 to 4"):
        zoo.load("digits_gru", fold=5)


def log_mel_by_hand(wave: np.ndarray) -> np.ndarray:
    """(8000,) -> (49, 32), frame by frame with numpy's own transform: nats above 10 below the loudest."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(200) + 0.5) / 200)
    mel = np.linspace(*(2595 * np.log10(1 + np.array([80, 3800]) / 700)), 34)
    bins = 2595 * np.log10(1 + np.fft.rfftfreq(200, 1 / 8000) / 700)
    filters = np.stack([np.interp(bins, mel[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(32)])
    frames = np.stack([wave[160 * i - 100 : 160 * i + 100] for i in range(1, 50)])
    power = np.abs(np.fft.rfft(frames * window) * 2 / 200) ** 2 @ filters.T / 4
    return np.maximum(10 + np.log(power / power.max()), 0)


def test_the_front_end_is_a_log_mel_spectrogram() -> None:
    wave = 0.1 * np.random.default_rng(0).standard_normal(8000) * np.linspace(0, 1, 8000) ** 4
    front_end = zoo.load("digits_gru").build().front_end

    seen = front_end(torch.from_numpy(wave.astype(np.float32))[None])[0].numpy()

    assert 0.05 < np.mean(log_mel_by_hand(wave) == 0) < 0.95
    np.testing.assert_allclose(seen, log_mel_by_hand(wave), atol=2e-3)


def test_a_tone_is_loudest_in_its_own_band_at_every_time() -> None:
    tone = torch.sin(2 * torch.pi * 1000 / 8000 * torch.arange(8000))[None]
    image = zoo.load("digits_cnn2d").build().front_end(tone)[0, 0]
    centers_hz = 700 * (10 ** (np.linspace(*(2595 * np.log10(1 + np.array([80, 3800]) / 700)), 34) / 2595) - 1)[1:-1]

    assert set(image.argmax(dim=1).tolist()) == {int(np.abs(centers_hz - 1000).argmin())}


def test_silence_is_no_trouble_for_a_front_end() -> None:
    for name in ("digits_gru", "digits_wave_cnn1d"):
        features = zoo.load(name).build().front_end(torch.zeros(1, 8000))
        assert torch.equal(features, torch.zeros_like(features))


@pytest.fixture(scope="module")
def exported() -> Artifact:
    recipe = zoo.load("digits_cnn2d")
    windows = 0.1 * np.random.default_rng(0).standard_normal((7, 8000)).astype(np.float32)
    with deterministic(recipe.seed):
        return to_onnx.export(recipe.build(), windows, input_name="x", output_name="logits")


def test_an_exported_net_gives_what_torch_gives(exported: Artifact) -> None:
    wave = 0.3 * np.random.default_rng(1).standard_normal((3, 8000)).astype(np.float32)
    assert exported.module is not None

    with torch.no_grad():
        wanted = exported.module.eval()(torch.from_numpy(wave)).numpy()

    assert exported.front_end == "front_end"
    np.testing.assert_allclose(outputs_of(exported, wave), wanted, atol=1e-5)


def test_the_file_carries_neither_the_fourier_basis_nor_the_mel_filters(exported: Artifact) -> None:
    assert exported.module is not None
    weights_kb = sum(4 * parameter.numel() for parameter in exported.module.parameters()) / 1000
    constants = onnx.load_from_string(exported.model).graph.initializer
    bands = {3008, 9400}  # elements of the mel filters and of each half of the basis

    assert exported.size_kb < weights_kb + 15
    assert not bands & {int(np.prod(tensor.dims)) for tensor in constants}


@pytest.mark.parametrize(("name", "shape"), [*FEATURES.items(), *IMAGES.items()])
def test_augmentation_repeats_with_its_generator_and_leaves_its_argument_alone(name: str, shape: tuple[int]) -> None:
    augment = zoo.load(name).augment
    features = torch.randn((6, *shape), generator=torch.Generator().manual_seed(1))
    kept = features.clone()
    assert augment is not None

    once, again, other = (augment(features, torch.Generator().manual_seed(seed)) for seed in (2, 2, 3))

    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert once.shape == features.shape
    assert torch.equal(features, kept)


def test_augmentation_of_a_spectrogram_only_moves_and_masks_it() -> None:
    augment = zoo.load("digits_gru").augment
    features = torch.arange(1.0, 50.0)[None, :, None].expand(200, 49, 32)
    assert augment is not None

    varied = augment(features, torch.Generator().manual_seed(0))

    frames = varied.amax(dim=2)  # 0 where a whole frame is masked
    shift = (frames - features[:, :, 0])[frames > 0]
    assert set(shift[(frames[frames > 0] > 1) & (frames[frames > 0] < 49)].tolist()) == set(range(-4, 5))
    assert 0.02 < (varied == 0).float().mean() < 0.25


def test_five_folds_test_every_recording_once_and_never_train_on_it() -> None:
    folds = [splits_of("digits_cnn2d", fold=fold) for fold in range(zoo.FOLDS)]
    tested = [{clip.tobytes() for clip in splits.test.inputs} for splits in folds]

    assert len(set.union(*tested)) == sum(map(len, tested)) == 3000
    for splits, test in zip(folds, tested, strict=True):
        rest = [clip.tobytes() for split in (splits.train, splits.validation) for clip in split.inputs]
        assert len(set(rest)) == 2400
        assert test.isdisjoint(rest)
        assert np.bincount(splits.validation.targets).tolist() == [48] * 10
        assert np.bincount(splits.test.targets).tolist() == [60] * 10


def test_folds_of_the_images_share_the_test_split_and_draw_another_validation_split() -> None:
    first, second = (splits_of("fashion_cnn2d", fold=fold) for fold in (0, 1))

    assert np.array_equal(first.test.inputs, second.test.inputs)
    assert not np.array_equal(first.validation.inputs, second.validation.inputs)
    assert [len(split.inputs) for split in (first.train, first.validation, first.test)] == [16000, 4000, 10000]
    assert first.train.inputs.max() == 1.0


def test_keywords_are_noise_labelled_by_the_network_itself() -> None:
    recipe = zoo.load("kws_dscnn")
    net = build(recipe)
    splits = splits_of("kws_dscnn")

    assert sum(parameter.numel() for parameter in net.parameters()) == 23756
    decided = net(torch.from_numpy(splits.test.inputs)).argmax(dim=1).numpy()
    assert np.array_equal(decided, splits.test.targets)


def test_the_autoencoder_is_judged_by_how_often_a_fault_has_the_larger_error() -> None:
    metric = zoo.load("pump_autoencoder").metric
    assert metric is not None

    def judged(errors: list[float], faulty: list[int]) -> float:
        return metric(np.array(errors, np.float32)[:, None], np.array(faulty))

    assert judged([1, 2, 3, 4], [0, 1, 0, 1]) == 0.75
    assert judged([1, 1, 1], [0, 1, 1]) == 0.5
    with pytest.raises(ExportError, match="3 sound and 0 faulty"):
        judged([1, 2, 3], [0, 0, 0])


def test_a_spectrum_gives_the_level_of_a_sine_in_its_bin_and_the_floor_elsewhere(neighbour: ModuleType) -> None:
    seconds = np.arange(1024) / 3200
    values = np.stack([np.sin(2 * np.pi * 400 * seconds), 0.1 * np.sin(2 * np.pi * 800 * seconds)], axis=1)

    (spectrum,) = neighbour.spectra(values.astype(np.float32))

    assert spectrum[int(400 / 12.5 - 1)] == pytest.approx(0.0, abs=0.01)
    assert spectrum[int(128 + 800 / 12.5 - 1)] == pytest.approx(-20.0, abs=0.01)
    assert spectrum[100] == pytest.approx(-80.0, abs=0.5)


def test_a_fault_of_a_simulated_pump_changes_its_spectra(neighbour: ModuleType) -> None:
    machine = neighbour.random_machine(np.random.default_rng(0))

    sound, again, faulty = (
        neighbour.run(machine, fault, np.random.default_rng(seed)).mean(axis=0)
        for fault, seed in ((None, 1), (None, 2), ("imbalance", 3))
    )

    assert sound.shape == (256,)
    assert np.abs(faulty - sound).max() > 2 * np.abs(again - sound).max()
