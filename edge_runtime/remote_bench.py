"""Candidates that others ask to be measured, over MQTT: one at a time, beside the pipelines and out of their way.

A request comes on a connection of its own, so that it holds up no pipeline's messages, and without a session: what
nobody waits for any more does not come later. The loop's thread only takes requests and publishes answers.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import tempfile
import threading
from collections import Counter

import msgspec

import edge_runtime
from edge_runtime.config import Config
from edge_runtime.device.heat import heat
from edge_runtime.device.machine import cpu_name
from edge_runtime.lanes import Connection
from edge_runtime.model.compare import Answer, Compared, Device, Outcome, RemoteBenchSettings, compare
from edge_runtime.model.family import numeric_family
from edge_runtime.model.session import load_onnxruntime
from edge_runtime.mqtt.client import make_client
from edge_runtime.mqtt.topics import Routes, Tree
from edge_runtime.mqtt.transport import Client
from edge_runtime.records import Message, Outgoing, Properties

log = logging.getLogger(__name__)

SCHEMA = 1
JSON = "application/json"
SUFFIX = "-bench"
PACKET_HEAD_BYTES = 128 * 1024
"""Of a request's packet, beside its payload."""
ANSWER_EXPIRY_S = 600
CORRELATION_BYTES = 64
REPLY_LEVEL = re.compile("[A-Za-z0-9_-]{1,64}")


def remote_bench(config: Config, tree: Tree, client_id: str) -> list[Connection]:
    """The connection that requests come on; none where it is not allowed. client_id: of the node's first connection."""
    if not config.node.allow_remote_bench:
        return []
    own_id, bounds = client_id + SUFFIX, config.remote_bench
    settings = msgspec.structs.replace(
        config.mqtt,
        session_expiry_s=0,
        receive_maximum=1,
        maximum_packet_bytes=bounds.max_request_bytes + PACKET_HEAD_BYTES,
    )
    client = make_client(settings, client_id=own_id, subscriptions=[(tree.bench, 1)], keeps_session=False)
    service = RemoteBench(client, bounds, replies=f"{tree.reply}/")
    return [Connection(client, Routes([]), session=f"{own_id}@{settings.url}", service=service)]


class RemoteBench:
    """Takes requests and answers each; lanes.Service says what its methods promise. counts: by what became of them."""

    def __init__(self, client: Client, settings: RemoteBenchSettings, *, replies: str) -> None:
        """replies: what a response topic has to begin with, or anyone could make the node publish anywhere."""
        self.counts: Counter[str] = Counter()
        self._client, self._settings, self._replies = client, settings, replies
        self._job: _Job | None = None
        self._unconfirmed = 0

    def serve(self, messages: list[Message]) -> None:
        for message in messages:
            self._take(message)
            self._client.acknowledge(message.epoch, [message.mid])
        if self._job is not None and self._job.over:
            job, self._job = self._job, None
            self._answer(job.reply, job.answer())
        if self._unconfirmed:
            delivered, failed = self._client.confirmed()
            self._unconfirmed -= len(delivered) + len(failed)
            for _, reason in failed:
                log.warning("bench_answer_refused", extra={"reason": reason})

    def stop(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.cancel()
            self._answer(job.reply, job.answer())

    def _take(self, message: Message) -> None:
        reply, settings, size = message.properties, self._settings, len(message.payload)
        if objection := self._objection(reply):
            self._drop(objection)
        elif self._job is not None and self._job.reply == reply:
            self._drop("sent again while it is measured")
        elif size > settings.max_request_bytes:
            limit = f"remote_bench.max_request_bytes = {settings.max_request_bytes}"
            self._answer(reply, _without("too_large", f"{size} bytes, more than {limit}"))
        elif self._job is not None:
            self._answer(reply, _without("busy", "another candidate is being measured"))
        else:
            self._begin(message)

    def _begin(self, message: Message) -> None:
        try:
            self._job = _Job(message, self._settings)
        except (OSError, RuntimeError) as error:
            self._answer(message.properties, _without("unable", f"nothing can be begun: {error}"))
        else:
            log.info("bench_begun", extra={"bytes": len(message.payload)})

    def _objection(self, reply: Properties) -> str:
        """Why nobody could be answered, or ""."""
        if not reply.response_topic or not reply.correlation_data:
            return "without response topic or correlation data"
        if len(reply.correlation_data) > CORRELATION_BYTES:
            return f"correlation data of more than {CORRELATION_BYTES} bytes"
        # What a broker might refuse would cost the connection, again after every reconnect.
        level = reply.response_topic.removeprefix(self._replies)
        is_below = level != reply.response_topic and REPLY_LEVEL.fullmatch(level)
        return "" if is_below else f"response topic not {self._replies}NAME"

    def _drop(self, why: str) -> None:
        self.counts[why] += 1
        times = self.counts[why]
        if _is_told(times):
            log.warning("bench_request_dropped", extra={"reason": why, "times": times})

    def _answer(self, reply: Properties, answer: Answer) -> None:
        self.counts[answer.outcome] += 1
        is_sent_back = answer.outcome in ("busy", "too_large")
        if not is_sent_back or _is_told(self.counts[answer.outcome]):
            log.info("bench_done", extra={"outcome": answer.outcome, "reason": answer.reason})
        self._client.publish(
            Outgoing(
                reply.response_topic,
                msgspec.json.encode(answer),
                qos=1,
                content_type=JSON,
                message_expiry_s=ANSWER_EXPIRY_S,
                correlation_data=reply.correlation_data,
            )
        )
        self._unconfirmed += 1


class _Job:
    """One request that is measured, on a thread that mostly waits for the child. reply: where its answer goes."""

    def __init__(self, message: Message, settings: RemoteBenchSettings) -> None:
        self.reply, self._payload, self._settings = message.properties, message.payload, settings
        self._cancelled, self._cancel = os.pipe()
        self._answer = _without("unable", "an error of the node's own: its log has it")
        self._thread = threading.Thread(target=self._run, name="remote-bench", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._close()
            raise

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def cancel(self) -> None:
        os.write(self._cancel, b"\0")

    def answer(self) -> Answer:
        """Waits for it."""
        self._thread.join()
        self._close()
        return self._answer

    def _close(self) -> None:
        os.close(self._cancelled)
        os.close(self._cancel)

    def _run(self) -> None:
        try:
            found = self._compare()
            device = _device() if found.rounds else None
            self._answer = Answer(SCHEMA, found.outcome, found.reason, found.rounds, device)
        except Exception:
            log.exception("bench_error")  # measuring for others must not end the pipelines

    def _compare(self) -> Compared:
        try:
            with tempfile.TemporaryFile() as file:
                file.write(self._payload)
                file.flush()
                self._payload = b""
                return compare(file, self._settings, cancel=self._cancelled)
        except OSError as error:
            return Compared("unable", f"no room for the request in {tempfile.gettempdir()}: {error.strerror}")


def _is_told(times: int) -> bool:
    """The first, second, fourth, ... time: whoever sends many fills no log."""
    return not times & (times - 1)


def _without(outcome: Outcome, reason: str) -> Answer:
    """An answer to what was not measured."""
    return Answer(SCHEMA, outcome, reason)


def _device() -> Device:
    found, machine = heat(), platform.machine()
    return Device(
        cpu=cpu_name(machine),
        machine=machine,
        cores=os.cpu_count() or 1,
        family=numeric_family(),
        onnxruntime=str(load_onnxruntime().__version__),
        edge_runtime=edge_runtime.__version__,
        temperature_c=found.temperature_c,
        throttled=found.throttled,
    )
