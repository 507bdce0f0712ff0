"""python -m benchmarks.arm64.variants [EXAMPLE…]: each example as float32, int8, pruned and chosen, a bundle each.

The two that simulate their data lie in the repository, since training gives other weights on other machines; what the
others are trained on is not ours to hand out: their bundles are made where it is there, and only counted. Which is the
fastest of its kind is decided by time on this machine. voice_activity is somebody else's model and is only packed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_runtime.errors import EdgeRuntimeError, ExportError
from export import compress, originals, pack
from export.candidate import Measured
from export.recipe import load
from export.search import Outcome
from export.space import TRAINS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
COMMITTED = Path(__file__).parent / "models"
MADE = ROOT / "build" / "arm64"
SIMULATED = ("pump_vibration", "gesture_gru")
PACKED = {"voice_activity": ROOT / "build" / "voice-activity.edge"}
"""Somebody else's, made as their README says; there is no more than float32 of them."""
NAMES = (*SIMULATED, "spoken_digits", "machine_temperature", *PACKED)
VARIANTS = ("float32", "int8", "pruned", "chosen")
CACHE = ROOT / ".cache" / "arm64"


def bundles() -> list[Path]:
    """All that are there, committed or made."""
    return sorted(path for folder in (COMMITTED, MADE) for path in folder.glob("*.edge"))


def make(example: str) -> list[Path]:
    """Search at default effort and pack the four. Raises ExportError when it cannot be trained or searched."""
    if example in PACKED:
        return [_taken(example)]
    task = originals.of_recipe(load(EXAMPLES / example / "recipe.py"), folder=CACHE, progress=_say)
    outcome = compress.run(task, folder=CACHE, progress=_say).outcome
    folder = COMMITTED if example in SIMULATED else MADE
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for variant, measured in variants(outcome).items():
        path = folder / f"{example}-{variant}.edge"
        pack.pack(path, msgspec.structs.replace(outcome, chosen=measured))
        made.append(path)
    return made


def _taken(example: str) -> Path:
    found = PACKED[example]
    if not found.exists():
        raise ExportError(f"{found.relative_to(ROOT)} missing: examples/{example}/README.md says how to make it")
    MADE.mkdir(parents=True, exist_ok=True)
    made = MADE / f"{example}-float32.edge"
    shutil.copy(found, made)
    return made


def variants(outcome: Outcome) -> dict[str, Measured]:
    """float32; of what was quantized alone, and of what was pruned alone and keeps the budget, the fastest; the chosen.

    What there is none of is left out.
    """
    float32, *others = outcome.measured
    kept = [
        m
        for m, verdict in zip(outcome.measured, outcome.verdicts, strict=True)
        if m.cost and verdict.status != "rejected"
    ]
    groups = {
        "int8": [m for m in others if m.cost and not any(move.kind in TRAINS for move in m.chain)],
        "pruned": [m for m in kept if m.chain and all(move.kind in TRAINS for move in m.chain)],
    }
    found = {"float32": float32}
    found |= {name: max(group, key=_speedup) for name, group in groups.items() if group}
    return found | ({"chosen": outcome.chosen} if outcome.chosen else {})


def _speedup(m: Measured) -> float:
    return m.cost.speedup if m.cost else 0.0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arm64.variants", description=__doc__)
    parser.add_argument("examples", nargs="*", metavar="EXAMPLE", help=f"of {', '.join(NAMES)}; default all")
    examples = parser.parse_args(arguments).examples or NAMES
    failed = [example for example in examples if not _is_made(example)]
    return 1 if failed else 0


def _is_made(example: str) -> bool:
    try:
        made = make(example)
    except EdgeRuntimeError as error:
        print(f"error: {example}: {error}", file=sys.stderr)
        return False
    for path in made:
        print(path.relative_to(ROOT), path.stat().st_size)
    return True


if __name__ == "__main__":
    sys.exit(main())
