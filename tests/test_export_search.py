"""The way through the candidates, on measurements made by hand: what is tried after what, and when it ends."""

from __future__ import annotations

import msgspec
import pytest

from export import space
from export.artifact import Artifact
from export.candidate import Measured
from export.evaluate import Drop, Evaluation
from export.measure import Latency
from export.recipe import Budget
from export.search import EFFORTS, Effort, prune, quantize, repair
from export.space import Chain, Held, Move

pytestmark = pytest.mark.torch

BUDGET = Budget(max_drop=0.01)
EFFORT = Effort(prunes=True, ratio=0.4, steps=5, epochs=3, aware_epochs=7)
CONV = Held(conv=True, recurrent=False, lstm=False, attention=False, matrices=True)
INT8 = (space.int8("u8s8"),)


class Net(msgspec.Struct, frozen=True):
    """As much of a task as the way depends on."""

    budget: Budget = BUDGET
    original: Artifact = msgspec.structs.replace(Artifact("", "", b"", "", "", ()), module=object())


class Scripted:
    """A trial whose candidates measure as told: chain in words to (drop, speed-up); others 0 and 1."""

    def __init__(self, figures: dict[str, tuple[float, float]], refused: tuple[str, ...] = ()) -> None:
        self.task = Net()
        self._figures = figures
        self._refused = refused
        self._done: dict[str, Measured] = {}

    @property
    def measured(self) -> tuple[Measured, ...]:
        return tuple(self._done.values())

    @property
    def tried(self) -> list[str]:
        return [space.named(m.chain) for m in self.measured]

    def measure(self, chain: Chain) -> Measured:
        name = space.named(chain)
        if name not in self._done:
            drop, speedup = self._figures.get(name, (0.0, 1.0))
            artifact = Artifact(name, "", b"1234", "x", "y", ())
            judged = Evaluation(100, 0.9 - drop, 0.8, 1.0, 1.0, 40.0, Drop(drop, 0.0, drop, drop, 1.0))
            found = Measured(chain, artifact, Latency(1, 1, 1, 1, speedup, speedup, speedup, 9), judged)
            self._done[name] = Measured(chain, failure="refused") if name in self._refused else found
        return self._done[name]

    def sensitive(self, _chain: Chain) -> tuple[str, ...]:
        return ("worst", "bad", "fair", "good", "best")


def narrower(ratio: float, epochs: int) -> Move:
    return Move("prune", {"ratio": ratio, "scope": "global", "epochs": epochs})


def test_pruning_goes_on_while_accuracy_holds_and_every_step_is_tried_with_int8() -> None:
    trial = Scripted({"pruned 78% global, 9 epochs": (0.02, 3.0), "pruned 71% global, 12 epochs": (0.02, 2.5)})

    prune(trial, narrower, [INT8], EFFORT)

    assert trial.tried == [
        "pruned 40% global, 3 epochs",
        "pruned 40% global, 3 epochs + int8 u8s8 minmax",
        "pruned 64% global, 6 epochs",
        "pruned 64% global, 6 epochs + int8 u8s8 minmax",
        "pruned 78% global, 9 epochs",
        "pruned 71% global, 12 epochs",
    ]


def test_after_a_step_too_far_half_a_step_with_longer_training_goes_on_where_it_holds() -> None:
    trial = Scripted({"pruned 64% global, 6 epochs": (0.02, 3.0), "pruned 62% global, 15 epochs": (0.02, 3.0)})

    prune(trial, narrower, [], EFFORT)

    assert trial.tried == [
        "pruned 40% global, 3 epochs",
        "pruned 64% global, 6 epochs",
        "pruned 52% global, 9 epochs",
        "pruned 62% global, 15 epochs",
    ]


def test_pruning_that_is_refused_ends_the_way() -> None:
    trial = Scripted({}, refused=("pruned 40% global, 3 epochs",))

    prune(trial, narrower, [INT8], EFFORT)

    assert trial.tried == ["pruned 40% global, 3 epochs"]


def test_pruning_ends_after_the_steps_of_its_effort() -> None:
    trial = Scripted({})

    prune(trial, narrower, [], EFFORT)

    assert len(trial.tried) == EFFORT.steps


def test_quantizations_go_on_by_accuracy_then_speed_then_closeness() -> None:
    trial = Scripted({"int8 u8s8 minmax": (0.03, 2.0), "int8 s8s8 minmax": (0.0, 1.9), "int8 s8s8 entropy": (0.0, 2.6)})

    assert quantize(trial, CONV, gpu=False) == [(space.int8("s8s8", "entropy"),)]
    assert trial.tried[2:] == ["int8 s8s8 percentile", "int8 s8s8 entropy", "int8 s8s8 minmax 7-bit"]


def test_int8_that_spoils_the_fastest_leaves_the_worst_layers_float_until_it_holds() -> None:
    trial = Scripted(
        {
            "int8 u8s8 minmax": (0.03, 2.0),
            "int8 u8s8 minmax 1 float": (0.02, 1.9),
            "int8 u8s8 minmax 2 float": (0.0, 1.8),
        }
    )
    for chain in ((), INT8):
        trial.measure(chain)

    repair(trial, EFFORT)

    assert trial.tried[2:] == [
        "int8 u8s8 minmax 1 float",
        "int8 u8s8 minmax 2 float",
        "quantization-aware 7 epochs + int8 u8s8 minmax",
    ]
    assert trial.measured[3].chain[-1].settings["keep"] == ("worst", "bad")


@pytest.mark.parametrize("figures", [(0.0, 2.0), (0.03, 0.9)], ids=["accurate", "slow"])
def test_what_is_accurate_or_no_faster_is_not_repaired(figures: tuple[float, float]) -> None:
    trial = Scripted({"int8 u8s8 minmax": figures})
    for chain in ((), INT8):
        trial.measure(chain)

    repair(trial, EFFORT)

    assert trial.tried == ["float32", "int8 u8s8 minmax"]


def test_what_was_inaccurate_before_int8_is_not_repaired() -> None:
    wrecked = (narrower(0.4, 3),)
    name = space.named(wrecked)
    trial = Scripted({name: (0.03, 2.0), f"{name} + int8 u8s8 minmax": (0.03, 3.0)})
    for chain in ((), wrecked, (*wrecked, *INT8)):
        trial.measure(chain)

    repair(trial, EFFORT)

    assert len(trial.tried) == 3


def test_training_that_expects_int8_expects_the_one_that_follows() -> None:
    follows = (space.int8("s8s8", reduce_range=True),)
    trial = Scripted({space.named(follows): (0.03, 2.0)})
    for chain in ((), follows):
        trial.measure(chain)

    repair(trial, EFFORT)

    aware = trial.measured[-1].chain[0]
    assert aware.kind == "qat"
    assert (aware.settings["scheme"], aware.settings["reduce_range"]) == ("s8s8", True)


def test_two_kinds_of_quantization_go_on() -> None:
    lstm = Held(conv=False, recurrent=True, lstm=True, attention=False, matrices=True)

    found = quantize(Scripted({"int8-dynamic": (0.0, 1.8)}), lstm, gpu=False)

    assert [space.named(chain) for chain in found] == ["int8-dynamic", "int8-weights"]


def test_a_recurrent_net_is_offered_what_it_can_bear() -> None:
    gru = Held(conv=False, recurrent=True, lstm=False, attention=False, matrices=True)
    lstm = Held(conv=False, recurrent=True, lstm=True, attention=False, matrices=True)

    assert [space.named(chain) for chain in space.post_training(gru, gpu=False)] == ["int8-weights"]
    assert [space.named(chain) for chain in space.post_training(lstm, gpu=True)] == [
        "int8-dynamic",
        "int8-weights",
        "fp16",
    ]


def test_every_effort_but_post_training_prunes() -> None:
    assert [name for name, effort in EFFORTS.items() if not effort.prunes] == ["post-training"]
