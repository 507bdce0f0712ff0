"""A producer at QoS 1 that gives up nothing: every message is sent until the broker has confirmed it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode
from scene import Input

HOST = "127.0.0.1"
NO_MATCHING_SUBSCRIBERS = 16
RETRY_S = 0.05
TICK_S = 0.002
HARDEST_S = 0.2


class Sender:
    """Sends messages at a rate, those of a topic in order, on a thread of its own, over any number of brokers' lives.

    What a broker refused, or had nobody for, is sent again with the same number, as is what it never confirmed: a
    receiver may get such a message twice. sent: confirmed messages. repeats: sent again after a refusal.
    """

    def __init__(self, port: int, messages: Sequence[Input], *, client_id: str, rate: float, window: int = 1) -> None:
        """rate: messages a second. window: messages of a topic that may be unconfirmed."""
        self.sent = self.repeats = 0
        self._messages, self._rate, self._window = messages, rate, window
        self._answers: SimpleQueue[tuple[int, bool]] = SimpleQueue()
        self._waiting: dict[str, deque[Input]] = {}
        self._open: dict[str, int] = {}
        self._by_mid: dict[int, Input] = {}
        self._again: deque[tuple[float, Input]] = deque()
        self._paused = self._closed = False
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
        self._client.reconnect_delay_set(0.05, HARDEST_S)  # type: ignore[arg-type]  takes fractions as well
        self._client.max_inflight_messages_set(1000)
        self._client.on_publish = self._on_publish
        self._client.connect_async(HOST, port)
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def start(self) -> None:
        self._client.loop_start()
        self._thread.start()

    def pause(self) -> None:
        """Begin nothing new; what is unconfirmed is still seen through."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    @property
    def done(self) -> bool:
        return self.sent == len(self._messages)

    @property
    def idle(self) -> bool:
        """Whether nothing that was begun is unconfirmed."""
        return not (self._by_mid or self._again or any(self._waiting.values()))

    def wait(self, timeout_s: float) -> None:
        """Until everything is confirmed; fails with how much was not."""
        self._thread.join(timeout_s)
        assert self.done, f"{self.sent} of {len(self._messages)} messages were sent within {timeout_s} s"

    def close(self) -> None:
        self._closed = True
        if self._thread.is_alive():
            self._thread.join(5)
        self._client.disconnect()
        self._client.loop_stop()

    def _run(self) -> None:
        given, start_s = 0, time.monotonic()
        before_s = start_s
        while not self._closed and not self.done:
            now_s = time.monotonic()
            if self._paused:
                start_s += now_s - before_s
            before_s = now_s
            due = max(given, min(len(self._messages), int((now_s - start_s) * self._rate) + 1))
            for message in self._messages[given:due]:
                self._waiting.setdefault(message.topic, deque()).append(message)
            given = due
            self._send_what_may_go()
            time.sleep(TICK_S)

    def _send_what_may_go(self) -> None:
        while not self._answers.empty():
            self._note(*self._answers.get())
        while self._again and self._again[0][0] <= time.monotonic():
            self._publish(self._again.popleft()[1])
        for topic, waiting in self._waiting.items():
            while waiting and self._open.get(topic, 0) < self._window:
                self._open[topic] = self._open.get(topic, 0) + 1
                self._publish(waiting.popleft())

    def _publish(self, message: Input) -> None:
        self._by_mid[self._client.publish(message.topic, message.payload, 1).mid] = message

    def _note(self, mid: int, taken: bool) -> None:
        message = self._by_mid.pop(mid)
        if taken:
            self._open[message.topic] -= 1
            self.sent += 1
        else:
            self.repeats += 1
            self._again.append((time.monotonic() + RETRY_S, message))

    def _on_publish(self, _client: paho.Client, _user: Any, mid: int, code: ReasonCode, _properties: Any) -> None:
        """Called back under a lock of paho's that publish takes, too: only note it down."""
        self._answers.put((mid, not code.is_failure and code.value != NO_MATCHING_SUBSCRIBERS))
