"""How often the packed detector says speech: inside recordings, between them, and in sounds that nobody spoke.

Each of the six speakers is one stream: a recording, half a second of faint noise, the next one, as long as they last.
A window counts as inside a recording when all its new samples are, as between two when it ends at least a quarter of a
second after one and before the next. A recording is noticed when any window that begins in it is called speech.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_runtime.model.bundle import read
from edge_runtime.model.session import Session, SessionSettings

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EDGE_SHARED_DATA", ROOT.parent / "shared" / "data")) / "fsdd_8k_int16.npz"
BUNDLE = ROOT / "build" / "voice-activity.edge"
PAUSE, SETTLED = 4000, 2000  # samples: half and a quarter of a second
FAINT = 2.0**-10  # of full scale, -60 dB
SPEECH = 0.5

Samples = npt.NDArray[np.float32]
Marks = npt.NDArray[np.bool_]


def speakers(per_speaker: int | None = None) -> dict[str, tuple[Samples, Marks]]:
    """Each speaker's stream, full scale 1, and which of its samples are of a recording."""
    rng = np.random.default_rng(0)
    parts: dict[str, list[tuple[Samples, bool]]] = {}
    with np.load(DATA) as file:
        ends = np.cumsum(file["length"])
        waves = file["wave"]
        for speaker, start, end in zip(file["speaker"], ends - file["length"], ends, strict=True):
            of_speaker = parts.setdefault(str(speaker), [])
            if per_speaker is None or len(of_speaker) < 2 * per_speaker:
                of_speaker.append(((rng.standard_normal(PAUSE) * FAINT).astype(np.float32), False))
                of_speaker.append((waves[start:end].astype(np.float32) / np.float32(2**15), True))
    return {
        speaker: (
            np.concatenate([samples for samples, _ in found]),
            np.concatenate([np.full(len(samples), spoken) for samples, spoken in found]),
        )
        for speaker, found in parts.items()
    }


def sounds(seconds: int = 60) -> dict[str, Samples]:
    """Sounds that nobody spoke, a stream each."""
    rng = np.random.default_rng(1)
    t = np.arange(8000 * seconds) / 8000
    white = rng.standard_normal(len(t))
    made = {
        "digital silence": np.zeros(len(t)),
        "faint noise": white * FAINT,
        "loud noise": white * 0.1,
        "hum, 50 Hz and harmonics": sum(0.1 / n * np.sin(2 * np.pi * 50 * n * t) for n in (1, 3, 5)),
        "beeps, 1 kHz": 0.3 * np.sin(2 * np.pi * 1000 * t) * (np.sin(2 * np.pi * t) > 0),
    }
    return {name: np.asarray(wave, np.float32) for name, wave in made.items()}


def speech_scores(session: Session, wave: Samples) -> Samples:
    """(windows,) score of speech for each window of one stream."""
    spec = session.manifest.input
    padded = np.concatenate([np.zeros(spec.lead_in, np.float32), wave])
    states, scores = [session.initial()], []
    for window in np.lib.stride_tricks.sliding_window_view(padded, spec.length)[:: spec.hop]:
        found, states = session.step(np.ascontiguousarray(window)[np.newaxis], states)
        scores.append(found[0, 1])
    return np.array(scores, np.float32)


def main() -> None:
    if not DATA.is_file():
        raise SystemExit(f"{DATA.name} is not in {DATA.parent}; EDGE_SHARED_DATA names the folder")
    session = Session(read(BUNDLE), SessionSettings())
    hop = session.manifest.input.hop
    sys.stdout.write(f"{'called speech':26}  noticed  inside  between  recordings and windows\n")
    for speaker, (wave, spoken) in speakers().items():
        says = speech_scores(session, wave) >= SPEECH
        since = np.concatenate([[0], np.cumsum(spoken)])
        ends = hop * np.arange(1, len(says) + 1)
        inside = since[ends] - since[ends - hop] == hop
        between = since[ends] == since[np.maximum(ends - hop - SETTLED, 0)]
        edges = np.flatnonzero(np.diff(spoken.astype(np.int8), append=0))
        recordings = (edges.reshape(-1, 2) + hop) // hop
        noticed = [says[first:last].any() for first, last in recordings]
        shares = f"{np.mean(noticed):7.1%}  {says[inside].mean():6.1%}  {says[between].mean():7.1%}"
        sys.stdout.write(f"{speaker:26}  {shares}  {len(noticed)}, {inside.sum()} and {between.sum()}\n")
    for name, wave in sounds().items():
        says = speech_scores(session, wave) >= SPEECH
        sys.stdout.write(f"{name:26}  {'':7}  {'':6}  {says.mean():7.1%}  {len(says)}\n")


if __name__ == "__main__":
    main()
