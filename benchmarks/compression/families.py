"""The families of models, and what is promised of each."""

from __future__ import annotations

import hashlib

import msgspec

from benchmarks import zoo
from export.contents import tools
from export.recipe import Recipe, files_of

WANTED_S = 20 * 60.0
"""Of a search at default effort at most, training of the original excluded."""


PRUNED_INT8 = "pruned+int8"


class Wanted(msgspec.Struct, frozen=True):
    """size, speed: times smaller and faster than float32, at least. drop: of the metric, absolute, at most."""

    size: float
    drop: float
    speed: float


class Family(msgspec.Struct, frozen=True):
    """name: of the recipe in the zoo. folds: that are judged. wanted: None where nothing was promised.

    metric: in words. is_judged: whether there is data to judge it by. data: in words, with what a fold is. together:
    test windows in a row that are of one machine. form: what was asked for, in the words of it.
    """

    name: str
    title: str
    data: str
    folds: int
    wanted: Wanted | None = None
    metric: str = "accuracy"
    is_judged: bool = True
    together: int = 1
    form: str = "best found"

    def recipe(self, fold: int) -> Recipe:
        return zoo.load(self.name, fold=fold)

    def source(self) -> str:
        """Digest of all that training follows from: the recipe, the files of the zoo that it imports, the tools."""
        found = hashlib.sha256(repr(sorted(tools("torch").items())).encode())
        for path in files_of(zoo.FOLDER / f"{self.name}.py"):
            found.update(path.read_bytes())
        return found.hexdigest()


DIGITS = "Free Spoken Digit Dataset, 3,000 recordings of six speakers; cross-validated, each recording tested once"
FASHION = "Fashion-MNIST, the official 10,000 test images; trained on 16,000 of the first 20,000"
PUMPS = (
    "simulated, as no recordings of pumps are at hand: 30 pumps a fold, the same ones in training, validation and "
    "test, each with runs of its own"
)
NOISE = (
    "noise; weights of MLPerf Tiny, whose test data is not here: nothing is said about accuracy, and nothing is "
    "pruned, as nobody could say what that costs"
)

FAMILIES = (
    Family("digits_wave_cnn1d", "1-D CNN, raw wave", DIGITS, 5, Wanted(size=8, drop=0.01, speed=3), form=PRUNED_INT8),
    Family("digits_cnn2d", "2-D CNN, log-mel", DIGITS, 5, Wanted(size=8, drop=0.01, speed=2.5), form=PRUNED_INT8),
    Family("digits_dscnn", "depthwise CNN, log-mel", DIGITS, 5, Wanted(size=3, drop=0.008, speed=1.5)),
    Family("digits_lstm", "LSTM, log-mel", DIGITS, 5, Wanted(size=6, drop=0.01, speed=1.5)),
    Family("digits_gru", "GRU, log-mel", DIGITS, 5, Wanted(size=6, drop=0.01, speed=1.3)),
    Family("digits_transformer", "transformer, log-mel", DIGITS, 5, Wanted(size=3, drop=0.01, speed=1.4)),
    Family(
        "pump_autoencoder",
        "autoencoder, pump spectra",
        PUMPS,
        5,
        Wanted(size=4, drop=0.01, speed=1),
        "AUC",
        together=160,
    ),
    Family("fashion_cnn2d", "2-D CNN, images", FASHION, 1),
    Family("fashion_mobilenet", "MobileNet-like CNN, images", FASHION, 1),
    Family("kws_dscnn", "keyword spotting DS-CNN", NOISE, 1, is_judged=False),
)
