"""One run under faults: a broker, producers, a node that is disturbed, a consumer, and the verdict."""

from __future__ import annotations

import logging
import os
import random
import time
import uuid
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from broker import Broker, until
from node import Node
from oracle import Verdict, judge, missing
from outcome import Run, append, asked_for, run_of
from proxy import Proxy
from scene import KINDS, Expected, Input, expected, inputs, write_scene
from sender import Sender
from sink import Sink

log = logging.getLogger(__name__)

AUTOSAVE_S = 1
PERSISTENT = ("persistence true", f"autosave_interval {AUTOSAVE_S}", "max_queued_messages 1000000")
"""Of a broker that keeps sessions and queues over its own end; a folder of its own is to be added."""
LONG = os.environ.get("EDGE_CHAOS") == "long"
SEED = int(os.environ.get("EDGE_CHAOS_SEED", "1"))
QUIET_S, CALM_S = 3.0, 0.3
START_S, LIFE_S, EARLY = 0.5, 0.5, 4
"""About how long a daemon takes from its start to its first results; how long it may work before it is killed."""


class Trial:
    """Everything is the trial's own: topics, client ids, folder. seed: of inputs, kill times and the proxy; logged."""

    def __init__(
        self,
        folder: Path,
        broker: Broker,
        *,
        seed: int,
        count: int,
        rate: float,
        delivery: str = "normal",
        kinds: Sequence[str] = KINDS,
        through_proxy: bool = False,
        window: int = 1,
        **settings: Any,
    ) -> None:
        """count, rate: messages, and how many a second. settings: more lines of the configuration, as write_scene."""
        log.info("trial", extra={"seed": seed, "count": count, "rate": rate, "delivery": delivery})
        self.seed, self.random, self.broker = seed, random.Random(seed), broker
        self.kinds, self.delivery = kinds, delivery
        self.name = f"f{uuid.uuid4().hex[:8]}"
        self.proxy = Proxy(broker.port, seed=seed) if through_proxy else None
        url = self.proxy.url if self.proxy else broker.url
        self.config = write_scene(folder, url, node=self.name, delivery=delivery, kinds=kinds, **settings)
        self.inputs: list[Input] = inputs(seed, count, node=self.name, kinds=kinds)
        self.sink = Sink(broker.port, node=self.name)
        self.node = Node(self.config)
        self.sender = Sender(broker.port, self.inputs, client_id=f"sender-{self.name}", rate=rate, window=window)
        self.summary: dict[str, Any] | None = None
        self.recoveries_s: list[float] = []

    @cached_property
    def expected(self) -> Expected:
        return expected(self.config, self.inputs)

    def begin(self, *faults: str) -> None:
        """Start the node, then the producers."""
        _ = self.expected  # before anything is timed
        self.node.start(*faults)
        self.wait_subscribed()
        self.sender.start()

    def wait_subscribed(self) -> None:
        """What comes before is sent again, and then out of order where producers do not wait for confirmations."""
        self.node.wait_connected()
        last = f" 1 {self.name}/+/{self.kinds[-1]}"
        until(lambda: last in self.broker.log, what="the subscriptions are taken")

    def storm(self, *, count: int, rate: float) -> Sender:
        """Producers that do not wait for each other's confirmations, in place of the trial's own."""
        self.inputs = inputs(self.seed, count, node=self.name, kinds=self.kinds)
        name = f"storm-{self.name}"
        self.sender = Sender(self.broker.port, self.inputs, client_id=name, rate=rate, window=1000)
        return self.sender

    def live(self, seconds: float) -> None:
        """Let it run for a while; the time between faults is part of the experiment."""
        time.sleep(seconds)

    def kill_and_restart(self, *faults: str) -> float:
        """SIGKILL at a random moment: one in EARLY during the start, the others while connected; the moment."""
        if self.random.randrange(EARLY):
            self.node.wait_connected(timeout_s=30)
            self.live(self.random.uniform(0.0, LIFE_S))
        else:
            self.live(self.random.uniform(0.0, START_S))
        at_s = time.monotonic()
        self.node.kill()
        self.node.start(*faults)
        return at_s

    def results_after(self, at_s: float, *, timeout_s: float = 20.0) -> float:
        """Seconds from a moment to the first result that came after it."""
        until(lambda: self.sink.first_after(at_s) is not None, what="a result after the fault", timeout_s=timeout_s)
        first_s = self.sink.first_after(at_s)
        assert first_s is not None
        self.recoveries_s.append(round(first_s - at_s, 3))
        return first_s - at_s

    def finish(self, *, timeout_s: float = 60.0) -> Verdict:
        """Let the rest be sent and worked off, stop the node, and judge; nothing more comes for QUIET_S is the end."""
        self.sender.wait(timeout_s)
        self.settle()
        if self.node.alive:
            self.summary = self.node.stop()
        return self.verdict()

    def settle(self) -> None:
        """Until every result has come and nothing comes again, or nothing has come for QUIET_S."""
        before, since_s = -1, time.monotonic()
        while True:
            now, now_s = len(self.sink.arrivals), time.monotonic()
            if now != before:
                before, since_s = now, now_s
            elif now_s - since_s > (QUIET_S if missing(self.expected, self.sink.documents()) else CALM_S):
                return
            time.sleep(0.05)

    def verdict(self) -> Verdict:
        self.sink.catch_up()
        states = {document.topic for document in self.expected.documents if "/state/" in document.topic}
        retained = self.sink.retained(len(states))
        found = judge(self.expected, self.sink.documents(), retained=retained, summary=self.summary)
        log.info("verdict", extra={"duplicates": found.duplicates, "inversions": found.inversions})
        results = asked_for()
        if results is not None:
            append(self.outcome(_test_sentence(), found), results)
        return found

    def outcome(self, fault: str, verdict: Verdict, *, times: int = 1, **more: Any) -> Run:
        """The verdict as a line of the results. times: how often the fault was."""
        node = self.node
        return run_of(
            fault,
            verdict,
            delivery=self.delivery,
            seed=self.seed,
            sent=len(self.inputs),
            times=max(times, node.kills),
            kills=node.kills,
            recoveries_s=self.recoveries_s,
            stops_s=[round(stop_s, 3) for stop_s in node.stops_s],
            **more,
        )

    def close(self) -> None:
        self.node.close()
        self.sender.close()
        self.sink.close()
        if self.proxy:
            self.proxy.close()


def _test_sentence() -> str:
    """The name of the test that runs, as a sentence."""
    name = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition("::")[2].removesuffix(" (call)")
    return name.removeprefix("test_").replace("_", " ")
