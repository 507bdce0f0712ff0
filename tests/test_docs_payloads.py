"""The examples of docs/payloads.md give what it says, and its table is made from the committed lines."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_runtime.mqtt.topics import parse_source
from edge_runtime.records import Message, Properties
from edge_runtime.stream import content_type, decode
from edge_runtime.stream.decode import DECODERS, SourceSettings, make_decoder

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import payloads, render, results  # noqa: E402

PAGE = (ROOT / "docs" / "payloads.md").read_text()
SECTION = re.compile(
    r"### (?P<name>[^\n]+)\n```(?P<kind>\w+)\n(?P<made>.*?)```\n```toml\n(?P<toml>.*?)```\ngives `(?P<gives>[^\n]+)`",
    re.DOTALL,
)
EXAMPLES = [found.groupdict() for found in SECTION.finditer(PAGE)]


class Client:
    """Stands in for paho's client and keeps what is published."""

    def __init__(self) -> None:
        self.published: list[Message] = []

    def publish(self, topic: str, payload: bytes | str, qos: int = 0, properties: Any = None) -> None:
        raw = payload.encode() if isinstance(payload, str) else payload
        found = Properties(
            content_type=getattr(properties, "ContentType", ""), user=tuple(getattr(properties, "UserProperty", ()))
        )
        self.published.append(Message(topic=topic, payload=raw, received_ns=0, qos=qos, properties=found))


def published(kind: str, made: str) -> Message:
    """The message of an example, Python or a mosquitto_pub line."""
    client = Client()
    if kind == "python":
        exec(made, {"client": client})
    else:
        command, *words = shlex.split(made)
        assert command == "mosquitto_pub"
        options = dict(zip(words[::2], words[1::2], strict=True))
        client.publish(options["-t"], options["-m"], int(options["-q"]))
    (message,) = client.published
    return message


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["name"])
def test_an_example_gives_what_the_page_says(example: dict[str, str]) -> None:
    wanted = ast.literal_eval(example["gives"])
    source = msgspec.convert(msgspec.toml.decode(example["toml"])["source"], SourceSettings)
    message = published(example["kind"], example["made"])

    samples = make_decoder(source, len(wanted[0]))(message, "s")

    assert np.allclose(samples.values, wanted, rtol=1e-6)
    assert (samples.seq is not None) == bool(source.seq_field or source.seq_property)
    assert parse_source(source.topic).stream(message.topic) == "press-3"


def test_every_section_with_an_example_is_run_and_every_format_has_one() -> None:
    assert len(EXAMPLES) == PAGE.count("\n### ")
    assert {word for example in EXAMPLES for word in DECODERS if word in example["toml"]} >= {"raw", "msgpack", "cbor"}
    assert sum("format" not in example["toml"] for example in EXAMPLES) >= 3


def test_the_page_names_every_reason_and_every_content_type() -> None:
    reasons = re.split(r",\s+", re.search(r"for counting: (.*?)\.", decode.__doc__, re.DOTALL)[1])
    section = PAGE.split("## Why a message was refused")[1].split("\n## ")[0]
    described = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)

    assert described == reasons
    assert all(f"`{name}`" in PAGE for name in content_type.MEDIA_TYPES)
    assert all(f"`application/*+{suffix}`" in PAGE for suffix in content_type.SUFFIXES)


def test_a_waveform_as_raw_bytes_costs_what_the_page_says_against_json() -> None:
    found = {
        line.subject: line
        for line in results.read(ROOT / "benchmarks" / "results" / "payloads")[1:]
        if line.shape == "window of 128 x 6"
    }

    assert found["`raw`"].p50_us * 10 <= found["`json`, lists"].p50_us
    assert found["`raw`"].payload_bytes == min(line.payload_bytes for line in found.values())


def test_the_committed_table_is_made_from_the_committed_lines() -> None:
    lines = results.read(ROOT / "benchmarks" / "results" / "payloads")

    assert render.with_payloads(PAGE, lines) == PAGE
    assert {line.subject for line in lines[1:]} == set(payloads.VARIANTS)


def test_a_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no <!-- python -m benchmarks payloads: begin -->"):
        render.with_payloads("# Payloads\n", [])


def test_a_variant_that_gives_other_values_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(payloads.VARIANTS, "wrong", lambda rows: (lambda: np.zeros((1, 6), np.float32), b""))

    with pytest.raises(ValueError, match="does not give back the values"):
        list(payloads.run(1, None))
