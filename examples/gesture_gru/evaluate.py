"""How well strangers' gestures are told, over three seeds: tables on stdout. About two minutes on one core.

The float32 net in torch; `edge-export run` shows what becomes of it. A seed changes the net, not the simulated people.
Intervals are 95 % bootstraps over wearers, not over windows: windows of one person resemble each other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import recipe
import torch

from export.recipe import Splits
from export.train import deterministic, torch_outputs

SEEDS = (7, 1, 2)
RESAMPLES = 10_000

Doubles = npt.NDArray[np.float64]
Rights = list[npt.NDArray[np.bool_]]


def told(splits: Splits, seed: int) -> npt.NDArray[np.int64]:
    """The label of each test window as the net of a seed tells it: (n,)."""
    with deterministic(seed):
        model = recipe.build()
        recipe.train(model, splits, seed=seed, progress=lambda _line: None)
        found: npt.NDArray[np.int64] = torch_outputs(model.eval(), splits.test.inputs).argmax(axis=1)
    return found


def interval(rights: Rights) -> tuple[float, float]:
    """95 % of the share of right windows, people drawn again. rights: whether each window is right, per wearer."""
    right, windows = np.array([r.sum() for r in rights]), np.array([len(r) for r in rights])
    drawn = np.random.default_rng(0).integers(0, len(rights), (RESAMPLES, len(rights)))
    low, high = np.percentile(right[drawn].sum(axis=1) / windows[drawn].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    torch.set_num_threads(1)
    splits, people = recipe.data(), recipe.sessions("test")
    targets, purity = splits.test.targets, np.concatenate([person.purity for person in people])
    ends = np.cumsum([len(person.targets) for person in people])[:-1]
    print(f"{len(targets)} windows of {len(people)} wearers, {(purity == 1).mean():.0%} with one activity only")
    tables = []
    for seed in SEEDS:
        found = told(splits, seed)
        right = found == targets
        rights = np.split(right, ends)
        low, high = interval(rights)
        worst = sorted(float(r.mean()) for r in rights)
        print(
            f"seed {seed}: {right.mean():.1%} ({low:.1%} to {high:.1%}), one activity {right[purity == 1].mean():.1%}, "
            f"more {right[purity < 1].mean():.1%}; wearers {worst[0]:.1%}, {worst[1]:.1%}, ... {worst[-1]:.1%}"
        )
        table = np.zeros((len(recipe.LABELS), len(recipe.LABELS)))
        np.add.at(table, (targets, found), 1)
        tables.append(table)
    print(f"{'':8}{'windows':>8}{'told right, by seed':>24}   taken for, all seeds together")
    for label, name in enumerate(recipe.LABELS):
        shares = "".join(f"{table[label, label] / table[label].sum():8.1%}" for table in tables)
        wrong = np.sum(tables, axis=0)[label] / np.sum(tables, axis=0)[label].sum()
        others = ", ".join(f"{recipe.LABELS[o]} {wrong[o]:.1%}" for o in np.argsort(-wrong) if o != label)
        print(f"{name:8}{int((targets == label).sum()):8}{shares}   {others}")


if __name__ == "__main__":
    main()
