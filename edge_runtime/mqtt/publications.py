"""Records to PUBLISH packets: every document the daemon sends, and its topic."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from edge_runtime.mqtt.topics import Tree
from edge_runtime.records import DeadLetter, Outgoing, Result, Segment, StateChange

JSON = "application/json"
SCHEMA = 1
DEAD_LETTER_HEAD_BYTES = 256
METRICS_EXPIRY_INTERVALS, LEAST_METRICS_EXPIRY_S = 3, 30


class DeadLetterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many dead letters a pipeline may publish: per_minute on average, burst at once. The rest is counted."""

    per_minute: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    burst: Annotated[int, msgspec.Meta(ge=1)] = 10


class DeadLetterDocument(msgspec.Struct, frozen=True):
    """What could not be used, and why.

    head: the payload's first bytes, base64. suppressed: letters not published since the last one.
    """

    topic: str
    stream: str
    reason: str
    detail: str
    payload_bytes: int
    head: str
    suppressed: int


class NodeEvent(msgspec.Struct, frozen=True):
    """Something that happened to the node, and that an operator may have to look into; its facts stand beside these.

    at: Unix seconds.
    """

    v: int
    event: str
    at: float
    boot_id: str


class _Allowance:
    """A token bucket."""

    def __init__(self, settings: DeadLetterSettings, now_ns: int) -> None:
        self._per_ns = settings.per_minute / 60e9
        self._burst = float(settings.burst)
        self._level, self._at_ns = self._burst, now_ns
        self.suppressed = 0

    def take(self, now_ns: int) -> bool:
        self._level = min(self._burst, self._level + (now_ns - self._at_ns) * self._per_ns)
        self._at_ns = now_ns
        if self._level < 1.0:
            self.suppressed += 1
            return False
        self._level -= 1.0
        return True


class _ResultTopics(dict[str, str]):
    """Topics of a pipeline's results, by stream: one not yet known is built and remembered."""

    def __init__(self, tree: Tree, pipeline: str) -> None:
        self._tree, self._pipeline = tree, pipeline

    def __missing__(self, stream: str) -> str:
        topic = self[stream] = self._tree.out(self._pipeline, stream)
        return topic


class Publications:
    """Builds the node's documents. result_qos: QoS of a pipeline's results, by its name. boot_id: of the daemon.

    It remembers the topic of every stream; whoever opens streams bounds their number.
    """

    def __init__(
        self, tree: Tree, *, result_qos: dict[str, int], dead_letters: DeadLetterSettings, boot_id: str = ""
    ) -> None:
        self._tree, self._boot_id = tree, boot_id
        self.result_qos = result_qos
        self._result_topics = {pipeline: _ResultTopics(tree, pipeline) for pipeline in result_qos}
        self._dead_letters = dead_letters
        self._allowances: dict[str, _Allowance] = {}
        self._encode = msgspec.json.Encoder().encode

    def results(self, results: Sequence[Result]) -> list[Outgoing]:
        """One document each. results: of one pipeline, at least one."""
        pipeline = results[0].pipeline
        topics, qos, encode = self._result_topics[pipeline], self.result_qos[pipeline], self._encode
        return [Outgoing(topics[result.stream], encode(result), qos, False, JSON) for result in results]

    def state_change(self, pipeline: str, change: StateChange) -> Outgoing:
        topic = self._tree.state(pipeline, change.stream)
        return Outgoing(topic, self._encode(change), qos=1, retain=True, content_type=JSON)

    def event(self, segment: Segment) -> Outgoing:
        topic = self._tree.event(segment.pipeline, segment.stream)
        return Outgoing(topic, self._encode(segment), qos=1, content_type=JSON)

    def dead_letter(self, pipeline: str, letter: DeadLetter, *, now_ns: int) -> Outgoing | None:
        """The dead letter's document, or None when the pipeline's allowance is used up."""
        allowance = self._allowances.setdefault(pipeline, _Allowance(self._dead_letters, now_ns))
        if not allowance.take(now_ns):
            return None
        document = DeadLetterDocument(
            topic=letter.message.topic,
            stream=letter.stream,
            reason=letter.reason,
            detail=letter.detail,
            payload_bytes=len(letter.message.payload),
            head=base64.b64encode(letter.message.payload[:DEAD_LETTER_HEAD_BYTES]).decode(),
            suppressed=allowance.suppressed,
        )
        allowance.suppressed = 0
        return Outgoing(self._tree.dead(pipeline), self._encode(document), qos=0, content_type=JSON)

    def node_event(self, event: str, facts: Mapping[str, Any], *, unix_s: float) -> Outgoing:
        """event: a fixed word. facts: what is known about it, under other keys than NodeEvent's."""
        told = msgspec.structs.asdict(NodeEvent(SCHEMA, event, round(unix_s, 3), self._boot_id))
        return Outgoing(self._tree.events, self._encode({**told, **facts}), qos=1, content_type=JSON)

    def info(self, document: dict[str, Any]) -> Outgoing:
        return Outgoing(self._tree.info, self._encode(document), qos=1, retain=True, content_type=JSON)

    def metrics(self, document: msgspec.Struct, *, every_s: float) -> Outgoing:
        """Retained, so that whoever asks has it at once; gone when no newer one came for METRICS_EXPIRY_INTERVALS."""
        expiry_s = max(LEAST_METRICS_EXPIRY_S, math.ceil(METRICS_EXPIRY_INTERVALS * every_s))
        body = self._encode(document)
        return Outgoing(self._tree.metrics, body, retain=True, content_type=JSON, message_expiry_s=expiry_s)
