"""Of retained documents only the newest of each topic counts, until the broker has it."""

from __future__ import annotations

import pytest

from edge_runtime.mqtt.retained import Retained
from edge_runtime.records import Outgoing
from edge_runtime.testing import MemoryClient


def document(value: str, topic: str = "state/a") -> Outgoing:
    return Outgoing(topic, value.encode(), 1, retain=True)


def published(client: MemoryClient) -> list[str]:
    return [out.payload.decode() for out in client.published]


def test_the_newest_of_each_topic_is_kept_for_the_next_connection() -> None:
    client = MemoryClient()
    states = Retained(client)
    for value, topic in (("1", "state/a"), ("2", "state/b"), ("3", "state/a")):
        states.publish(document(value, topic))

    assert published(client) == ["1", "2", "3"]
    assert states.all() == [document("3"), document("2", "state/b")]


def test_what_was_refused_is_published_again_as_the_newest_then_is() -> None:
    client = MemoryClient()
    states = Retained(client)
    states.publish(document("1"))
    states.publish(document("2"))
    assert states.failed(1)
    states.delivered([2])
    states.retry()
    states.retry()

    assert published(client) == ["1", "2", "2"]


@pytest.mark.parametrize("answered", [True, False])
def test_what_the_broker_has_is_not_published_again(answered: bool) -> None:
    client = MemoryClient()
    states = Retained(client)
    states.publish(document("1"))
    states.delivered([1] if answered else [7])
    states.retry()

    assert published(client) == ["1"]
    assert states.failed(1) is not answered


def test_what_an_earlier_run_has_said_is_said_again_and_gives_way_to_what_is_new() -> None:
    states = Retained(MemoryClient())
    states.restore([document("old"), document("other", "state/b")])
    assert states.all() == [document("old"), document("other", "state/b")]

    states.publish(document("new"))
    assert states.all() == [document("new"), document("other", "state/b")]


def test_a_token_of_something_else_is_none_of_its_business() -> None:
    states = Retained(MemoryClient())
    states.publish(document("1"))

    assert not states.failed(99)
