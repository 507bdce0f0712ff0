"""Show what a node of edge-runtime says: results, alarms and events. Needs nothing but paho-mqtt."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections import deque
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

from paho.mqtt import client as mqtt

REMEMBERED = 10_000
TIMES_KEPT = 100
TIME = {"out": "t1", "state": "since", "event": "end"}


class Subscriber:
    """Prints a line per document; one that comes twice, as QoS 1 allows, is shown once."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.seen: dict[tuple[str, str, float], None] = {}
        self.last_seq: dict[str, int] = {}
        self.stages_ms: deque[float] = deque(maxlen=TIMES_KEPT)
        self.shown = self.repeats = 0

    def on_connect(self, client: mqtt.Client, *about: object) -> None:
        print(f"broker: {about[2]}", flush=True)
        client.subscribe([(f"{self.base}/+/{kind}/#", 1) for kind in ("out", "state", "event")])

    def on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        pipeline, kind, stream = message.topic.removeprefix(f"{self.base}/").split("/", 2)
        document = json.loads(message.payload)
        if self.is_repeat((kind, document["id"], document[TIME[kind]])):
            self.repeats += 1
            return
        self.shown += 1
        name = f"{pipeline}/{stream}"
        line = {"out": self.result, "state": state, "event": event}[kind](name, document)
        print(name, line, flush=True)

    def is_repeat(self, key: tuple[str, str, float]) -> bool:
        if key in self.seen:
            return True
        self.seen[key] = None
        if len(self.seen) > REMEMBERED:
            del self.seen[next(iter(self.seen))]
        return False

    def result(self, name: str, result: dict[str, Any]) -> str:
        first, last = result["seq"]
        expected = self.last_seq.get(name, first) + 1
        self.last_seq[name] = last
        self.stages_ms.append(sum(result["lat_ms"].values()))
        line = f"{clock(result['t1'])} result {result['label']} {result['score']:.3f}"
        line += " ALARM" if result["alarm"] else ""
        line += f" [{result['missing']} of {result['n']} samples filled in]" if result["missing"] else ""
        line += " [spans a gap]" if "gap" in result["flags"] else ""
        line += f" [messages {expected} to {first - 1} are in no result]" if first > expected else ""
        return f"{line} p50 {statistics.median(self.stages_ms):.2f} ms"


def state(_name: str, state: dict[str, Any]) -> str:
    return f"{clock(state['since'])} alarm {'on' if state['on'] else 'off'}: {state['label']} {state['score']:.3f}"


def event(_name: str, event: dict[str, Any]) -> str:
    length = f"{event['end'] - event['start']:.3f} s, {event['windows']} windows"
    gap = " [spans a gap]" if "gap" in event["flags"] else ""
    return f"{clock(event['start'])} event {event['label']}: peak {event['peak_score']:.3f}, {length}{gap}"


def clock(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="milliseconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="mqtt://[user@]host[:port] or mqtts://...; the password comes from MQTT_PASSWORD")
    parser.add_argument("node", help="the node's id")
    parser.add_argument("--root", default="edge/v1", help="first levels of the node's topics (default: %(default)s)")
    parser.add_argument("--session", default="", help="a name of your own: the broker keeps what you miss while away")
    args = parser.parse_args()
    subscriber, url = Subscriber(f"{args.root}/{args.node}/p"), urlsplit(args.url)
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=args.session, clean_session=not args.session)
    if url.username:
        client.username_pw_set(url.username, os.environ.get("MQTT_PASSWORD"))
    if url.scheme == "mqtts":
        client.tls_set()
    client.on_connect, client.on_message = subscriber.on_connect, subscriber.on_message
    client.on_connect_fail = lambda *_: print("the broker cannot be reached; trying again", flush=True)
    client.connect_async(url.hostname or "localhost", url.port or (8883 if url.scheme == "mqtts" else 1883))
    try:
        client.loop_forever(retry_first_connection=True)
    except KeyboardInterrupt:
        client.disconnect()
        print(f"{subscriber.shown} documents, {subscriber.repeats} repeats", flush=True)


if __name__ == "__main__":
    main()
