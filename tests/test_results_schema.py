"""What docs/results.md and docs/schemas say of the published documents is what the daemon publishes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import msgspec
import pytest
from bundles import means_manifest
from test_loop import Bench
from test_metrics import Gauge

from edge_runtime.delivery.ledger import Ledger
from edge_runtime.device.heat import Heat
from edge_runtime.device.wear import Wear
from edge_runtime.metrics import Metrics, StoreMetrics
from edge_runtime.mqtt.publications import DeadLetterSettings, Publications
from edge_runtime.mqtt.topics import Tree
from edge_runtime.records import Message, Outgoing, Queued, StageTimes
from edge_runtime.stream.decide import Decider, DecideSettings
from edge_runtime.stream.decode import SourceSettings, make_decoder
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.window import WindowSettings
from edge_runtime.testing import ModelOfMeans

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = ROOT / "docs" / "schemas"
TITLES = {
    "result": "Result",
    "state": "State",
    "event": "Event",
    "dead-letter": "Dead letter",
    "node-event": "Node event",
    "metrics": "Metrics",
}
STILL, MOVING = b"[[1,0],[1,0]]", b"[[0,1],[0,1]]"


class FirstOfMeans(ModelOfMeans):
    """One score a window, as a reconstruction error."""

    def predict(self, inputs):
        return super().predict(inputs)[:, :1]


def schema(name: str) -> dict:
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text())


def published(*, alarm_on: str = "moving", labels: tuple[str, ...] = ("still", "moving")) -> dict[str, list[Outgoing]]:
    """Every document of a pipeline whose stream goes into alarm and out, and sends one message that is none."""
    manifest = means_manifest(length=2, hop=2)
    made = Pipeline(
        "p",
        spec=manifest.input,
        window=WindowSettings(samples=2, hop=2),
        decode=make_decoder(SourceSettings(topic="t"), 2),
        predictor=ModelOfMeans() if labels else FirstOfMeans(),
        decider=Decider(DecideSettings(alarm_on=alarm_on), labels=labels, threshold=0.5),
        ledger=Ledger(),
        run_id="run",
    )
    payloads = [STILL, MOVING, MOVING, STILL, b"{", MOVING, STILL]
    turn = made.process([Queued("s/1", [Message("t", body, 0) for body in payloads])])
    documents = Publications(Tree("edge/v1", "n"), result_qos={"p": 1}, dead_letters=DeadLetterSettings())
    letters = [documents.dead_letter("p", letter, now_ns=0) for letter in turn.dead_letters]
    return {
        "result": documents.results(turn.results),
        "state": [documents.state_change("p", change) for change in turn.state_changes],
        "event": [documents.event(segment) for segment in turn.events],
        "dead-letter": [letter for letter in letters if letter],
        "node-event": [documents.node_event("session_lost", {}, unix_s=1.5)],
        "metrics": [documents.metrics(found, every_s=10.0) for found in metrics()],
    }


def metrics() -> list[Metrics]:
    """With and without traffic, and what a device may know of its heat, its store and its storage."""
    bench = Bench("p", "q")
    gauge = Gauge(bench)
    for rows in (STILL, MOVING, b"{"):
        bench.arrive(rows)
    bench.steps()
    plain = [gauge.read(1.0, heat=heat) for heat in (Heat(), Heat(51.5, ()), Heat(80.0, ("throttled",)))]
    store, young = StoreMetrics("", 3, 0.001, 7, "/s/store.db.corrupt-1"), Wear(4096, 4096, None)
    older = msgspec.structs.replace(young, mb_per_day=9.5, budget_mb_per_day=1000.0)
    return [*plain, *(msgspec.structs.replace(plain[0], store=store, wear=wear) for wear in (young, older))]


def test_the_committed_schemas_are_what_the_records_and_the_page_give(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "write-schemas"), str(tmp_path)], check=True)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}

    assert written == {path.name: path.read_text() for path in SCHEMAS.iterdir()}
    assert set(written) == {f"{name}.schema.json" for name in TITLES}


@pytest.mark.parametrize("name", TITLES)
def test_what_is_published_fits_its_schema_which_is_strict_about_what_it_names(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))
    check = jsonschema.Draft202012Validator(schema(name))
    documents = [json.loads(outgoing.payload) for outgoing in published()[name]]

    assert documents
    for document in documents:
        check.validate(document)
        assert set(document) == set(schema(name)["properties"])
        for key in document:
            assert not check.is_valid({k: v for k, v in document.items() if k != key})
            assert not check.is_valid({**document, key: {"not": "this"}})


def test_a_pipeline_without_an_alarm_and_one_of_errors_fit_too() -> None:
    check = jsonschema.Draft202012Validator(schema("result"))
    quiet, errors = published(alarm_on=""), published(alarm_on="", labels=())

    assert [json.loads(out.payload)["alarm"] for out in quiet["result"]] == [None] * 6
    assert [json.loads(out.payload)["scores"] for out in errors["result"]][:2] == [{"error": 1.0}, {"error": 0.0}]
    for outgoing in quiet["result"] + errors["result"]:
        check.validate(json.loads(outgoing.payload))
    assert (quiet["state"], quiet["event"]) == ([], [])


@pytest.mark.parametrize(("name", "topic"), [("result", "out"), ("state", "state"), ("event", "event")])
def test_a_document_lies_on_the_topic_the_page_gives_it(name: str, topic: str) -> None:
    found = published()[name]

    assert {outgoing.topic for outgoing in found} == {f"edge/v1/n/p/p/{topic}/s/1"}
    assert {(out.qos, out.retain, out.content_type) for out in found} == {(1, name == "state", "application/json")}


def test_a_node_event_has_its_facts_beside_the_keys_of_all() -> None:
    documents = Publications(Tree("edge/v1", "n"), result_qos={}, dead_letters=DeadLetterSettings(), boot_id="b")
    found = documents.node_event("store_degraded", {"problem": "disk full"}, unix_s=12.34567)

    assert (found.topic, found.qos, found.retain, found.content_type) == (
        "edge/v1/n/events",
        1,
        False,
        "application/json",
    )
    document = json.loads(found.payload)
    assert document == {"v": 1, "event": "store_degraded", "at": 12.346, "boot_id": "b", "problem": "disk full"}
    jsonschema.Draft202012Validator(schema("node-event")).validate(document)


def kind_of(found: dict) -> str:
    """A key's type as the page has it; a record inside is an object, a choice of words a string."""
    kinds = found.get("anyOf", [found])
    return " or ".join(kind.get("type") or ("object" if "$ref" in kind else "string") for kind in kinds)


def headings(name: str) -> dict[str, dict]:
    """Where the page describes a document and each of the records inside it, and their schemas."""
    inside = {re.sub("([A-Z])", r" \1", title).strip(): kind for title, kind in schema(name).get("$defs", {}).items()}
    titles = {f"### {title.capitalize()}": kind for title, kind in inside.items()}
    return {f"## {TITLES[name]}": schema(name), **titles}


@pytest.mark.parametrize("name", TITLES)
def test_the_page_gives_every_key_its_type(name: str) -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    for heading, found in headings(name).items():
        section = page.partition(f"\n{heading}\n")[2].partition("\n##")[0]
        told = dict(re.findall(r"\| `(\w+)` \| ([^|]+) \|", section))

        assert told == {key: kind_of(kind) for key, kind in found["properties"].items()}, heading
        assert found["required"] == list(told)


def test_a_result_has_every_stage_of_the_page_up_to_the_decision() -> None:
    result = json.loads(published()["result"][0].payload)

    assert list(result["lat_ms"]) == list(StageTimes.__struct_fields__)
    assert list(result["lat_ms"]) == list(schema("result")["$defs"]["StageTimes"]["properties"])


def test_metrics_are_kept_by_the_broker_until_three_of_them_are_missing() -> None:
    documents = Publications(Tree("edge/v1", "n"), result_qos={}, dead_letters=DeadLetterSettings())
    found = [documents.metrics(metrics()[0], every_s=every_s) for every_s in (0.2, 10.0, 60.0)]

    assert {(out.topic, out.qos, out.retain, out.content_type) for out in found} == {
        ("edge/v1/n/metrics", 0, True, "application/json")
    }
    assert [out.message_expiry_s for out in found] == [30, 30, 180]
