from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from broker import Broker
from daemon import Daemon, account, subscribed, write_config

pytestmark = pytest.mark.broker

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
KINDS = {"out": "result", "state": "state", "event": "event", "dead": "dead-letter"}


def test_a_stream_in_alarm_and_out_again_is_one_event_and_everything_published_fits_its_schema(
    broker: Broker, tmp_path: Path
) -> None:
    config = write_config(tmp_path, broker.url)
    config.write_text(config.read_text().replace('seq_field = "n"', 'seq_field = "n", time_field = "t"'))
    daemon = Daemon(config)
    try:
        daemon.wait_connected()
        subscribed(broker, tmp_path)
        probe = broker.probe("edge/v1/n1/p/p/#")
        for n, moving in enumerate([0.1, 0.75, 1.0, 0.875, 0.25, 0.75]):
            body = {"n": n, "t": 1_700_000_000 + n, "v": [[1 - moving, moving]] * 4}
            probe.publish("in/a/v", json.dumps(body).encode())
        probe.publish("in/a/v", b"{")
        messages = probe.wait_for(6 + 4 + 1 + 1)
        summary = daemon.stop()
    finally:
        daemon.close()

    found: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    for message in [*messages, *probe.seen()]:
        kind = message.topic.removeprefix("edge/v1/n1/p/p/").split("/")[0]
        found[kind].append(json.loads(message.payload))
        schema = json.loads((SCHEMAS / f"{KINDS[kind]}.schema.json").read_text())
        jsonschema.validate(found[kind][-1], schema, cls=jsonschema.Draft202012Validator)
    (event,) = found["event"]
    assert (event["stream"], event["label"], event["windows"], event["seq"]) == ("a", "moving", 3, [1, 3])
    assert (event["start"], event["end"]) == (1_700_000_001, 1_700_000_003)
    assert (event["peak_score"], event["peak_at"]) == (1.0, 1_700_000_002)
    assert [state["on"] for state in found["state"]] == [False, True, False, True]
    assert [len(found[kind]) for kind in ("out", "dead")] == [6, 1]
    assert summary["balanced"]
    assert (account(summary)["events"], account(summary)["events_dropped"]) == (1, {})
