"""The models that compression is measured on, each a recipe: `edge-export compress benchmarks/zoo/digits_gru.py`.

`load(name, fold=k)` gives the recipe with the data and the seed of one fold; a recipe on its own is fold 0.

* Digits: 5-fold cross-validation over all 3,000 recordings. Test of fold k are the 600 whose place in the archive is
  k modulo 5 (60 of each digit, 100 of each speaker), so that the five test splits are disjoint and make up the whole.
  Validation is a seeded 20 % of the rest, the same number of each digit and speaker (480); training the other 1,920.
* Fashion: the test split is the official 10,000 images in every fold. A fold is another seed, hence another network,
  and another validation split (4,000) of the 20,000 training images that are here.
* Pumps: a fold is another draw of simulated machines, for training, validation and test alike.

The data is not part of the project: ../shared/data beside the checkout, or where EDGE_SHARED_DATA points.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from export.recipe import Recipe

FOLDS = 5
FOLDER = Path(__file__).parent
NAMES = (
    "digits_wave_cnn1d",
    "digits_cnn2d",
    "fashion_cnn2d",
    "digits_dscnn",
    "kws_dscnn",
    "fashion_mobilenet",
    "digits_lstm",
    "digits_gru",
    "digits_transformer",
    "pump_autoencoder",
)


def load(name: str, *, fold: int = 0) -> Recipe:
    """The recipe of a model, its data() that of a fold, its seed the recipe's plus the fold.

    Raises ValueError for a fold outside 0 to FOLDS - 1, ExportError for a name that is no recipe.
    """
    from export import recipe  # noqa: PLC0415  (torch takes seconds; the names alone must not)

    if not 0 <= fold < FOLDS:
        raise ValueError(f"fold {fold}, wanted 0 to {FOLDS - 1}")
    found = recipe.load(FOLDER / f"{name}.py")
    return msgspec.structs.replace(found, seed=found.seed + fold, data=partial(found.data, fold=fold))
