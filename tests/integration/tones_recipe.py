"""Ten tones in place of ten digits, in six voices: the spoken-digits model on data that is always there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from edge_runtime.records import Floats
from export.recipe import Budget, Split, Splits

DIGITS_RECIPE = Path(__file__).resolve().parents[2] / "examples" / "spoken_digits" / "recipe.py"
_spec = importlib.util.spec_from_file_location("spoken_digits_recipe", DIGITS_RECIPE)
digits = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(digits)

NAME = "tones"
VERSION = "1.0.0"
SEED = 3
INPUT = digits.INPUT
LABELS = digits.LABELS
BUDGET = Budget(max_drop=0.02)
VOICES = ("reed", "pipe", "bell", "horn", "string", "glass")
PER_CLASS = {"train": 30, "validation": 6, "test": 6}

build, train = digits.build, digits.train


def tone(label: int, voice: int, random: np.random.Generator) -> Floats:
    """(8000,) int16: one pitch for each label, overtones for each voice, noise, at some time in the window."""
    seconds = np.arange(digits.LENGTH) / digits.RATE_HZ
    pitch_hz = 220 * 2 ** (label / 5) * random.uniform(0.995, 1.005)
    turns = pitch_hz * seconds
    overtone = np.sin(4 * np.pi * turns + random.uniform(0, 7)) / (1 + voice)
    wave = np.sin(2 * np.pi * turns + random.uniform(0, 7)) + overtone
    start, length = random.uniform(0, 0.4), random.uniform(0.3, 0.5)
    wave = wave * ((seconds > start) & (seconds < start + length)) + 0.02 * random.standard_normal(digits.LENGTH)
    return (6000 * random.uniform(0.4, 1.5) * wave).astype(np.int16)


def clips(split: str) -> list[tuple[str, int, Floats]]:
    """(voice, label, int16 samples), the same at every call."""
    random = np.random.default_rng((SEED, sorted(PER_CLASS).index(split)))
    return [
        (VOICES[i % len(VOICES)], label, tone(label, i % len(VOICES), random))
        for i in range(PER_CLASS[split])
        for label in range(len(LABELS))
    ]


def data() -> Splits:
    splits = {}
    for name in PER_CLASS:
        rows = clips(name)
        inputs = np.stack([wave for _, _, wave in rows]) * np.float32(digits.SCALE)
        splits[name] = Split(inputs, np.array([label for _, label, _ in rows], np.int64))
    return Splits(**splits)
