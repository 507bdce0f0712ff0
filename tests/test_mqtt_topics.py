from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from edge_runtime.mqtt.topics import (
    Planned,
    Routes,
    Source,
    Tree,
    match,
    overlaps,
    parse_source,
    plan_connections,
    plan_pipelines,
)

LEVELS = ("a", "b", "", "$x")
MAX_LEVELS = 3
TOPICS = [
    topic
    for count in range(1, MAX_LEVELS + 2)
    for levels in itertools.product((*LEVELS, "c"), repeat=count)
    if (topic := "/".join(levels))
]

plain_levels = st.sampled_from(LEVELS)
filters = st.builds(
    lambda levels, rest: "/".join([*levels, *rest]) or "#",
    st.lists(plain_levels | st.just("+"), max_size=MAX_LEVELS - 1),
    st.sampled_from([[], ["#"], ["+"], ["a"]]),
)
topics = st.lists(plain_levels, min_size=1, max_size=MAX_LEVELS + 1).map("/".join).filter(bool)


@pytest.mark.parametrize(
    ("written", "subscribed", "topic", "stream"),
    [
        ("plant/+machine/vib", "plant/+/vib", "plant/press 1/vib", "press 1"),
        ("+site/+machine/vib", "+/+/vib", "north/press/vib", "north/press"),
        ("plant/#rest", "plant/#", "plant/a/b/c", "a/b/c"),
        ("plant/+machine/#rest", "plant/+/#", "plant/press/x/y", "press/x/y"),
        ("plant/+machine/#rest", "plant/+/#", "plant/press", "press"),
        ("plant/press/vib", "plant/press/vib", "plant/press/vib", "vib"),
        ("vib", "vib", "vib", "vib"),
    ],
)
def test_captured_levels_name_the_stream(written: str, subscribed: str, topic: str, stream: str) -> None:
    source = parse_source(written)

    assert source.filter == subscribed
    assert match(source.filter, topic)
    assert source.stream(topic) == stream


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("", "empty"),
        ("plant/+/vib", "unnamed '+'; name it"),
        ("plant/#", "unnamed '#'; name it"),
        ("#rest/vib", "'#' can only be the last level"),
        ("plant/ma+chine", "whole levels"),
        ("plant/+ma+chine", "is not a name"),
        ("plant/+machine name", "is not a name"),
        ("plant/vib#", "whole levels"),
        ("+a/+a", "twice"),
        ("a\x00b", "NUL"),
        ("a/", "cannot name a stream"),
        ("\ud800", "UTF-8"),
        ("x" * 65_536, "65536 bytes"),
        ("$share/group/plant/+machine", "windows need them all"),
    ],
)
def test_a_source_that_cannot_be_subscribed_is_refused_with_a_sentence(written: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace("+", r"\+")):
        parse_source(written)


@settings(deadline=None)
@given(filters, topics)
def test_match_agrees_with_paho(topic_filter: str, topic: str) -> None:
    assert match(topic_filter, topic) == topic_matches_sub(topic_filter, topic)


def test_filters_overlap_exactly_when_some_topic_matches_both() -> None:
    levels = (*LEVELS, "+")
    every_filter = {
        "/".join([*head, *rest]) or "#"
        for count in range(MAX_LEVELS)
        for head in itertools.product(levels, repeat=count)
        for rest in ([], ["#"], ["+"], ["a"])
    }
    matched = {name: {topic for topic in TOPICS if match(name, topic)} for name in every_filter}

    wrong = [(a, b) for a in matched for b in matched if overlaps(a, b) == matched[a].isdisjoint(matched[b])]

    assert len(matched) > 100
    assert wrong == []


def test_a_topic_that_was_not_utf_8_matches_nothing() -> None:
    assert not match("#", "\x00plant/\\xff")
    assert not match("+/+", "\x00plant/\\xff")


def test_equal_filters_are_subscribed_once_at_the_highest_qos() -> None:
    assert plan_connections([("a/+", 0), ("b", 1), ("a/+", 1), ("b", 0)]) == [[("a/+", 1), ("b", 1)]]


def test_overlapping_filters_get_connections_of_their_own() -> None:
    plan = plan_connections([("plant/+/vib", 1), ("plant/#", 0), ("hall/t", 1), ("plant/p1/+", 1), ("plant/p1/vib", 1)])

    assert plan == [
        [("plant/+/vib", 1), ("hall/t", 1)],
        [("plant/#", 0)],
        [("plant/p1/+", 1)],
        [("plant/p1/vib", 1)],
    ]


@settings(deadline=None)
@given(st.lists(st.tuples(filters, st.integers(0, 1)), max_size=8))
def test_a_plan_holds_every_filter_once_and_no_overlap_within_a_connection(
    subscriptions: list[tuple[str, int]],
) -> None:
    plan = plan_connections(subscriptions)

    assert sorted(name for connection in plan for name, _ in connection) == sorted({name for name, _ in subscriptions})
    for connection in plan:
        for (a, _), (b, _) in itertools.combinations(connection, 2):
            assert not overlaps(a, b)


def test_a_pipeline_that_blocks_has_a_connection_of_its_own_even_for_an_equal_filter() -> None:
    wanted = {"slow": ("a/+", 1), "wear": ("a/+", 0), "vib": ("a/#", 1), "alarm": ("a/+", 1), "heat": ("b", 1)}

    assert plan_pipelines(wanted, blocking={"slow": 64, "heat": 8}) == [
        Planned("", (("a/+", 1),), ("wear", "alarm")),
        Planned("-2", (("a/#", 1),), ("vib",)),
        Planned("-block-slow", (("a/+", 1),), ("slow",), 64),
        Planned("-block-heat", (("b", 1),), ("heat",), 8),
    ]


def test_when_all_pipelines_block_the_first_connection_only_publishes() -> None:
    plan = plan_pipelines({"p": ("a", 1), "q": ("a", 1)}, blocking={"p": 5, "q": 6})

    assert [(one.suffix, one.pipelines, one.receive_maximum) for one in plan] == [
        ("", (), None),
        ("-block-p", ("p",), 5),
        ("-block-q", ("q",), 6),
    ]


@settings(deadline=None)
@given(
    wanted=st.dictionaries(st.sampled_from("pqrstu"), st.tuples(filters, st.integers(0, 1)), min_size=1),
    blocking=st.sets(st.sampled_from("pqrstu")),
)
def test_every_pipeline_is_served_by_one_connection_that_subscribes_its_filter_and_ids_differ(
    wanted: dict[str, tuple[str, int]], blocking: set[str]
) -> None:
    plan = plan_pipelines(wanted, blocking={name: 9 for name in wanted if name in blocking})

    assert sorted(name for one in plan for name in one.pipelines) == sorted(wanted)
    assert len({one.suffix for one in plan}) == len(plan)
    assert (plan[0].suffix, plan[0].receive_maximum) == ("", None)
    for one in plan:
        assert {wanted[name][0] for name in one.pipelines} == {topic_filter for topic_filter, _ in one.subscriptions}
        assert all(dict(one.subscriptions)[wanted[name][0]] >= wanted[name][1] for name in one.pipelines)
        blocks = one.receive_maximum is not None
        assert blocks == any(name in blocking for name in one.pipelines)
        assert not blocks or (one.receive_maximum, len(one.pipelines)) == (9, 1)


def test_routes_name_every_pipeline_and_its_stream() -> None:
    source = parse_source("plant/+machine/vib")
    routes = Routes([("wear", source), ("alarm", source), ("temp", parse_source("plant/+machine/temp"))])

    assert routes.find("plant/p1/vib") == (("wear", "p1"), ("alarm", "p1"))
    assert routes.find("plant/p1/temp") == (("temp", "p1"),)
    assert routes.find("plant/p1/hum") == ()


def test_a_topic_whose_captured_levels_are_empty_has_no_stream_and_no_route() -> None:
    routes = Routes([("p", parse_source("plant/#rest")), ("q", parse_source("+machine"))])

    assert routes.find("plant") == (("q", "plant"),)
    assert routes.find("plant/") == ()


def test_routes_remember_no_more_topics_than_they_may() -> None:
    searched: list[str] = []

    class Counting(Routes):
        def _search(self, topic: str) -> tuple[tuple[str, str], ...]:
            searched.append(topic)
            return super()._search(topic)

    routes = Counting([("p", parse_source("t/+n"))], max_cached_topics=2)
    for topic in ("t/1", "t/2", "t/1", "t/3", "t/2", "t/3", "t/1"):
        assert routes.find(topic) == (("p", topic[2:]),)

    assert searched == ["t/1", "t/2", "t/3", "t/1"]


def test_the_tree_is_the_one_that_is_documented() -> None:
    tree = Tree(root="edge/v1", node="press-1")

    assert tree.status == "edge/v1/press-1/status"
    assert tree.info == "edge/v1/press-1/info"
    assert tree.metrics == "edge/v1/press-1/metrics"
    assert tree.events == "edge/v1/press-1/events"
    assert tree.out("vib", "a/b") == "edge/v1/press-1/p/vib/out/a/b"
    assert tree.state("vib", "p1") == "edge/v1/press-1/p/vib/state/p1"
    assert tree.event("vib", "p1") == "edge/v1/press-1/p/vib/event/p1"
    assert tree.dead("vib") == "edge/v1/press-1/p/vib/dead"
    assert overlaps(tree.everything, tree.out("vib", "p1"))


@pytest.mark.parametrize("root", ["", "edge/+", "#", "/edge", "edge/", "$SYS/edge", "a\x00b"])
def test_a_root_that_is_no_plain_topic_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match=r"root|empty|NUL"):
        Tree(root=root, node="n")


@pytest.mark.parametrize("name", ["", "press/1", "a b", "ä", "x" * 65, "+"])
def test_names_that_cannot_stand_in_a_topic_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        Tree(root="edge/v1", node=name)
    with pytest.raises(ValueError, match="is not a name"):
        Tree(root="edge/v1", node="n").out(name, "s")


def test_a_source_is_a_value() -> None:
    assert parse_source("a/+b/#c") == Source(filter="a/+/#", captures=(1,), tail=2)
