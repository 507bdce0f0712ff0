"""The whole series as a recording, as `edge-runtime record` would have written it beside the machine.

    python examples/machine_temperature/record.py build/machine-temperature.rec

Messages come every five minutes by the recording's clock, whatever time stamps they carry.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import recipe

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.records import Message
from edge_runtime.stream.recording import RecordingHeader, RecordingWriter

TOPIC = "plant/machine-1/temperature"
NS = 1_000_000_000


def messages() -> Iterator[Message]:
    """One for each sample; received_ns counts from the first."""
    found = recipe.series()
    for index, (unix_s, value) in enumerate(zip(found.unix_s.tolist(), found.values.tolist(), strict=True)):
        payload = msgspec.json.encode({"ts": unix_s, "value": value})
        yield Message(TOPIC, payload, received_ns=index * recipe.PERIOD_S * NS, qos=1)


def write(path: Path) -> int:
    """Returns the number of messages. Raises RecordingError, also when the file exists."""
    header = RecordingHeader("machine-temperature", int(recipe.series().unix_s[0]) * NS)
    writer = RecordingWriter(path, header, start_ns=0)
    for message in messages():
        writer.write(message)
    writer.close()
    return writer.messages


if __name__ == "__main__":
    try:
        print(f"{write(Path(sys.argv[1])):,} messages")
    except EdgeRuntimeError as error:
        sys.exit(str(error))
