"""Two simulated strangers as a recording, as `edge-runtime record` would have written it; on stdout what they did.

    python examples/gesture_gru/record.py build/gestures.rec

They are in none of the recipe's splits. Each sends a message of 25 rows every half second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import recipe
import wrist

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.records import Floats, Message, Properties
from edge_runtime.stream.recording import RecordingHeader, RecordingWriter

NAMES = ("anna", "ben")
SECONDS = 30.0
ROWS = 25
START_UNIX_NS = 1_767_225_600_000_000_000  # 2026-01-01, any day would do
MESSAGE_NS = int(ROWS / wrist.RATE_HZ * 1e9)


class Stranger(NamedTuple):
    """values: (n, 6) in m/s2 and rad/s, what they did in script."""

    name: str
    script: list[tuple[wrist.Label, float]]
    values: Floats


def strangers() -> list[Stranger]:
    random = np.random.default_rng((recipe.SEED, len(recipe.WEARERS)))
    found = []
    for name in NAMES:
        wearer, script = wrist.random_wearer(random), wrist.random_script(random, seconds=SECONDS)
        values, _ = wrist.perform(wearer, script, seed=int(random.integers(2**32)))
        found.append(Stranger(name, script, values))
    return found


def messages(people: list[Stranger]) -> Iterator[Message]:
    """In the order they are sent: when their last row is measured, an incomplete last one never."""
    counts = {person.name: wrist.to_int16(person.values) for person in people}
    for number in range(max(len(rows) for rows in counts.values()) // ROWS):
        for name, rows in counts.items():
            part = rows[number * ROWS : (number + 1) * ROWS]
            if len(part) == ROWS:
                seq = Properties(user=(("seq", str(number)),))
                received_ns = (number + 1) * MESSAGE_NS
                yield Message(f"wear/{name}/imu", part.tobytes(), received_ns=received_ns, qos=1, properties=seq)


def write(path: Path, people: list[Stranger]) -> None:
    """Raises RecordingError, also when the file exists."""
    writer = RecordingWriter(path, RecordingHeader("gestures", START_UNIX_NS), start_ns=0)
    for message in messages(people):
        writer.write(message)
    writer.close()


if __name__ == "__main__":
    people = strangers()
    try:
        write(Path(sys.argv[1]), people)
    except EdgeRuntimeError as error:
        sys.exit(str(error))
    for person in people:
        begins = np.cumsum([0.0] + [seconds for _, seconds in person.script])
        did = (f"{begin:.1f} s {label}" for begin, (label, _) in zip(begins, person.script, strict=False))
        print(f"{person.name}: {', '.join(did)}")
