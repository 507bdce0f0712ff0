from __future__ import annotations

import json
import threading

import msgspec
import pytest
from bundles import means_manifest

from edge_runtime.delivery.ledger import Ledger
from edge_runtime.delivery.overload import InputQueue, QueueSettings
from edge_runtime.lanes import Connection, Lane
from edge_runtime.loop import Loop
from edge_runtime.monitor.latency import StageRecorder
from edge_runtime.mqtt.publications import DeadLetterSettings, Publications
from edge_runtime.mqtt.topics import INVALID_TOPIC, Routes, Tree, parse_source
from edge_runtime.mqtt.transport import Confirmed
from edge_runtime.records import Message
from edge_runtime.stream.decide import Decider, DecideSettings
from edge_runtime.stream.decode import SourceSettings, make_decoder
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.window import WindowSettings
from edge_runtime.testing import ManualClock, MemoryClient, ModelOfMeans
from edge_runtime.worker import Worker

MANIFEST = means_manifest(length=2, hop=2)
STILL, MOVING = [[1, 0]] * 2, [[0, 1]] * 2


class HeldModel(ModelOfMeans):
    """A model of means that waits to be let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def predict(self, inputs):
        assert self.let_go.wait(10)
        return super().predict(inputs)


class Bench:
    def __init__(
        self,
        *names: str,
        model: ModelOfMeans | None = None,
        worker: bool = False,
        queue: QueueSettings | None = None,
        **options: int,
    ) -> None:
        self.clock, self.client, self.ledger = ManualClock(), MemoryClient(), Ledger()
        self.model = model or ModelOfMeans()
        names = names or ("p",)
        self.connection = Connection(self.client, Routes([(name, parse_source("in/+machine")) for name in names]))
        self.worker = Worker() if worker else None
        self.loop = Loop(
            [self.connection],
            [self._lane(name, queue or QueueSettings(), inline=not worker) for name in names],
            ledger=self.ledger,
            publications=Publications(
                Tree("edge/v1", "n"), result_qos=dict.fromkeys(names, 1), dead_letters=DeadLetterSettings(burst=2)
            ),
            worker=self.worker,
            max_waiting=options.get("max_waiting", 1000),
            now_ns=lambda: self.clock.monotonic_ns,
        )
        self.mids = 0

    def _lane(self, name: str, queue: QueueSettings, *, inline: bool) -> Lane:
        recorder = StageRecorder(name)
        pipeline = Pipeline(
            name,
            spec=MANIFEST.input,
            window=WindowSettings(samples=2, hop=2),
            decode=make_decoder(SourceSettings(topic="in/+machine"), 2),
            predictor=self.model,
            decider=Decider(DecideSettings(alarm_on="moving"), labels=MANIFEST.labels),
            ledger=self.ledger,
            run_id="run",
            clock=self.clock.clock(),
        )
        return Lane(pipeline, InputQueue(queue, max_streams=3), recorder, self.connection, inline=inline)

    def arrive(self, rows: object, topic: str = "in/a", *, epoch: int = 1, qos: int = 1) -> None:
        self.mids += 1
        payload = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
        mid = self.mids if qos else 0
        self.client.arrive(Message(topic, payload, self.clock.monotonic_ns, qos=qos, mid=mid, epoch=epoch))

    def steps(self, n: int = 3) -> None:
        for _ in range(n):
            self.loop.step(0.0)
        assert self.loop.account().imbalances == ()

    def step_until(self, done) -> None:
        for _ in range(2000):
            self.loop.step(0.005)
            if done():
                return
        raise AssertionError("nothing more happened")

    def results(self) -> list[tuple[str, str]]:
        found = [(out.topic, json.loads(out.payload)) for out in self.client.published if "/out/" in out.topic]
        return [(topic.removeprefix("edge/v1/n/p/"), body["label"]) for topic, body in found]

    def documents(self, part: str) -> list[dict]:
        return [json.loads(out.payload) for out in self.client.published if part in out.topic]

    def account(self, pipeline: str = "p"):
        return next(a for a in self.loop.account().pipelines if a.pipeline == pipeline)


def test_messages_become_results_on_their_own_streams_and_are_acknowledged_in_order() -> None:
    bench = Bench()
    bench.arrive(STILL, "in/a")
    bench.arrive(MOVING, "in/b")
    bench.arrive(b"{", "in/a")
    bench.steps()

    assert bench.results() == [("p/out/a", "still"), ("p/out/b", "moving")]
    assert bench.client.acknowledged == [(1, 1), (1, 2), (1, 3)]
    account = bench.account()
    assert (account.received, account.accepted, account.dead_lettered, account.confirmed) == (3, 2, 1, 2)


def test_two_pipelines_share_a_message_which_is_acknowledged_once() -> None:
    bench = Bench("p", "q")
    bench.arrive(STILL)
    bench.steps()

    assert sorted(bench.results()) == [("p/out/a", "still"), ("q/out/a", "still")]
    assert bench.client.acknowledged == [(1, 1)]


def test_nothing_is_acknowledged_while_its_turn_is_with_the_worker() -> None:
    model = HeldModel()
    bench = Bench(model=model, worker=True)
    bench.arrive(STILL)
    bench.steps()
    assert (bench.client.acknowledged, bench.results()) == ([], [])
    assert (bench.account().queued, bench.account().in_flight) == (1, 1)

    model.let_go.set()
    bench.step_until(bench.results)
    assert bench.client.acknowledged == [(1, 1)]
    bench.worker.stop()


def test_receiving_goes_on_while_the_worker_predicts_and_turns_in_flight_are_bounded() -> None:
    model = HeldModel()
    bench = Bench(model=model, worker=True)
    for _ in range(5):
        bench.arrive(STILL)
        bench.steps(1)
    assert bench.account().received == 5
    assert len(bench.loop._lanes["p"].in_flight) == 2

    model.let_go.set()
    bench.step_until(lambda: len(bench.results()) == 5)
    assert bench.client.acknowledged == [(1, mid) for mid in range(1, 6)]
    bench.worker.stop()


def test_worker_and_inline_give_the_same_results() -> None:
    def outcome(*, worker: bool) -> list[tuple]:
        bench = Bench(worker=worker)
        for i in range(20):
            bench.arrive(MOVING if i % 3 else STILL, f"in/{'abc'[i % 3]}")
        bench.step_until(lambda: len(bench.results()) == 20)
        if bench.worker:
            bench.worker.stop()
        return sorted((b["id"], b["label"], b["score"], b["alarm"]) for b in bench.documents("/out/"))

    assert outcome(worker=False) == outcome(worker=True)


def test_an_error_in_the_worker_ends_the_loop_with_it() -> None:
    class Broken(ModelOfMeans):
        def predict(self, inputs):
            raise RuntimeError("a bug")

    bench = Bench(model=Broken(), worker=True)
    bench.arrive(STILL)

    with pytest.raises(RuntimeError, match="a bug"):
        bench.step_until(lambda: False)


def test_packet_ids_of_a_lost_connection_are_never_acknowledged() -> None:
    model = HeldModel()
    bench = Bench(model=model, worker=True)
    bench.arrive(STILL, epoch=1)
    bench.steps()
    bench.arrive(MOVING, epoch=2)
    bench.steps()
    model.let_go.set()
    bench.step_until(lambda: len(bench.results()) == 2)

    assert bench.client.acknowledged == [(2, 2)]
    bench.worker.stop()


def test_when_a_queue_is_full_the_oldest_gives_way_and_is_acknowledged() -> None:
    model = HeldModel()
    bench = Bench(model=model, worker=True, queue=QueueSettings(max=2))
    for _ in range(2):
        bench.arrive(STILL)
        bench.steps(1)
    for _ in range(4):
        bench.arrive(MOVING)
    bench.steps(1)
    assert bench.account().dropped == {"queue_full": 2}

    model.let_go.set()
    bench.step_until(lambda: len(bench.results()) == 4)
    bench.steps()
    assert bench.client.acknowledged == [(1, mid) for mid in range(1, 7)]
    bench.worker.stop()


def test_latest_only_keeps_the_newest_message_of_each_stream() -> None:
    bench = Bench(queue=QueueSettings(when_full="latest_only"))
    for rows in (STILL, STILL, MOVING):
        bench.arrive(rows, "in/a")
    bench.arrive(STILL, "in/b")
    bench.steps()

    assert bench.results() == [("p/out/a", "moving"), ("p/out/b", "still")]
    assert bench.account().dropped == {"queue_full": 2}


def test_a_topic_nobody_takes_is_dead_lettered_under_no_pipeline() -> None:
    bench = Bench()
    bench.arrive(STILL, "other/topic")
    bench.arrive(STILL)
    bench.steps()

    assert bench.results() == [("p/out/a", "still")]
    assert bench.client.acknowledged == [(1, 1), (1, 2)]
    (letter,) = bench.documents("/p/-/dead")
    assert (letter["reason"], letter["topic"]) == ("unknown_topic", "other/topic")
    assert bench.account("-").dead_lettered == 1


def test_streams_beyond_the_bound_are_dead_lettered() -> None:
    bench = Bench()
    for stream in "abcd":
        bench.arrive(STILL, f"in/{stream}")
    bench.steps()

    assert [topic for topic, _ in bench.results()] == ["p/out/a", "p/out/b", "p/out/c"]
    assert [letter["reason"] for letter in bench.documents("/dead")] == ["too_many_streams"]
    assert len(bench.client.acknowledged) == 4


def test_dead_letters_are_rate_limited_and_say_how_many_were_held_back() -> None:
    bench = Bench()
    for _ in range(6):
        bench.arrive(b"{")
    bench.steps()
    assert len(bench.documents("/dead")) == 2

    bench.clock.advance(1.5)
    bench.arrive(b"\x00binary")
    bench.steps()
    letter = bench.documents("/dead")[-1]
    assert (letter["suppressed"], letter["reason"], letter["payload_bytes"]) == (4, "malformed", 7)
    assert bench.account().dead_lettered == 7


def test_a_refused_result_is_accounted_for_with_the_brokers_reason() -> None:
    bench = Bench()
    bench.client.refuse_with = "Not authorized"
    bench.arrive(STILL)
    bench.steps()

    assert bench.account().results_dropped == {"Not authorized": 1}
    assert bench.loop.publish_refusals == 2
    bench.client.refuse_with = ""
    bench.loop.states.retry()
    bench.steps()
    states = [out for out in bench.client.published if "/state/a" in out.topic]
    assert (len(states), states[0]) == (2, states[1])
    assert bench.loop.states.all() == states[:1]


def test_turns_wait_while_too_many_results_are_unconfirmed_so_that_the_queue_rule_decides() -> None:
    bench = Bench(queue=QueueSettings(max=3), max_waiting=2)
    bench.client.withhold_confirmations = True
    for _ in range(10):
        bench.arrive(STILL)
        bench.steps(1)
    assert (bench.account().waiting, bench.account().queued, bench.account().dropped) == (2, 3, {"queue_full": 5})

    bench.client.withhold_confirmations = False
    bench.steps(5)
    assert bench.account().confirmed == 5


def test_a_topic_that_is_not_utf8_is_dead_lettered_as_that() -> None:
    bench = Bench()
    bench.arrive(STILL, INVALID_TOPIC + "in/\\xff/v")
    bench.steps()

    (letter,) = bench.documents("/p/-/dead")
    assert (letter["reason"], letter["topic"]) == ("topic_not_utf8", "in/\\xff/v")
    assert bench.client.acknowledged == [(1, 1)]


def test_messages_without_qos_that_come_while_draining_are_counted() -> None:
    bench = Bench()
    bench.arrive(STILL, qos=0)
    bench.loop.step(0.0, accepting=False)

    assert bench.account().dropped == {"shutdown": 1}
    assert bench.loop.account().imbalances == ()


def test_a_packet_id_that_comes_twice_on_one_connection_is_acknowledged_once() -> None:
    bench = Bench()
    message = Message("in/a", json.dumps(STILL).encode(), 0, qos=1, mid=7, epoch=1)
    bench.client.arrive(message, msgspec.structs.replace(message, dup=True))
    bench.steps()

    assert bench.client.acknowledged == [(1, 7)]
    assert bench.account().duplicates == 1


def test_an_alarm_is_published_retained_when_it_turns() -> None:
    bench = Bench()
    for rows in (STILL, MOVING, MOVING):
        bench.arrive(rows)
    bench.steps()
    retained = [out for out in bench.client.published if "/state/a" in out.topic]

    assert [json.loads(out.payload)["on"] for out in retained] == [False, True]
    assert all(out.retain and out.qos == 1 for out in retained)


def test_an_event_is_published_when_the_alarm_has_ended() -> None:
    bench = Bench()
    for rows in (STILL, MOVING, MOVING, STILL, MOVING):
        bench.arrive(rows)
    bench.steps()
    (event,) = bench.documents("/event/a")

    assert (event["label"], event["windows"], event["seq"]) == ("moving", 2, [1, 2])
    assert (bench.account().events, bench.account().events_dropped) == (1, {})


def test_an_event_that_is_refused_is_counted_with_the_reason_and_not_sent_again() -> None:
    bench = Bench()
    bench.client.refuse_with = "Not authorized: by the ACL"
    for rows in (MOVING, STILL):
        bench.arrive(rows)
    bench.steps()
    bench.client.refuse_with = ""
    bench.loop.states.retry()
    bench.steps()

    assert len(bench.documents("/event/a")) == 1
    assert (bench.account().events, bench.account().events_dropped) == (1, {"Not authorized": 1})


def test_draining_waits_for_the_confirmation_of_an_event() -> None:
    bench = Bench()
    answered, published = bench.client.confirmed, bench.client.published
    bench.client.confirmed = lambda: Confirmed(
        [token for token in answered().delivered if "/event/" not in published[token - 1].topic], []
    )
    for rows in (MOVING, STILL):
        bench.arrive(rows)
    bench.steps()
    assert (bench.account().waiting, bench.loop.drain(deadline_ns=0)) == (0, False)

    event = next(token for token, one in enumerate(published, 1) if "/event/" in one.topic)
    bench.client.confirmed = lambda: Confirmed([event], [])
    bench.steps()
    assert bench.loop.drain(deadline_ns=0)


def test_draining_finishes_what_was_accepted_and_leaves_the_rest_with_the_broker() -> None:
    model = HeldModel()
    bench = Bench(model=model, worker=True)
    bench.arrive(STILL)
    bench.steps(1)
    bench.arrive(MOVING)
    model.let_go.set()

    assert bench.loop.drain(deadline_ns=1)
    assert bench.results() == [("p/out/a", "still")]
    assert bench.client.acknowledged == [(1, 1)]
    bench.worker.stop()


def test_draining_gives_up_at_its_deadline() -> None:
    bench = Bench()
    bench.client.withhold_confirmations = True
    bench.arrive(STILL)
    bench.steps(1)
    bench.clock.advance(1.0)

    assert not bench.loop.drain(deadline_ns=bench.clock.monotonic_ns)
    assert bench.account().waiting == 1
    assert bench.loop.account().imbalances == ()


def test_publish_and_end_to_end_times_are_recorded() -> None:
    bench = Bench()
    bench.arrive(STILL)
    bench.steps()

    summary = bench.loop._lanes["p"].recorder.summary()
    assert set(summary) == {"queue", "decode", "window", "wait", "infer", "decide", "publish", "puback", "e2e"}


def test_an_answer_is_timed_from_when_its_own_message_left_and_a_turn_from_its_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    left = 1
    monkeypatch.setattr(MemoryClient, "written", property(lambda _client: left))
    bench.clock.advance(5.0)
    for _ in range(2):
        bench.arrive(STILL)
    bench.loop.step(0.0)
    (lane,) = bench.loop._lanes.values()
    partly = lane.recorder.summary()
    left = 99
    bench.arrive(STILL)
    bench.steps()

    assert bench.account().confirmed == 3
    assert partly["puback"].count == 1
    assert "publish" not in partly
    assert (lane.recorder.total("publish").count, lane.recorder.total("puback").count) == (3, 2)
