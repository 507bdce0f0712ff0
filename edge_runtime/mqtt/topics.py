"""Topic filters with named wildcards, the connections they need, and the tree the daemon publishes to.

Pure: strings in, facts out. Rules of matching: MQTT 5.0, section 4.7.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

Subscription = tuple[str, int]

MAX_TOPIC_BYTES = 65_535
MAX_CACHED_TOPICS = 4_096
INVALID_TOPIC = "\x00"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Source(msgspec.Struct, frozen=True):
    """Where a pipeline's messages come from, and which levels of a topic name their stream.

    captures: indices of the levels taken one by one. tail: index of the first level of a captured rest, or None.
    """

    filter: str
    captures: tuple[int, ...]
    tail: int | None = None

    def stream(self, topic: str) -> str:
        """The captured levels of a topic that matches the filter, joined by "/"; "" when they are all empty."""
        levels = topic.split("/")
        names = [levels[i] for i in self.captures]
        if self.tail is not None:
            names += levels[self.tail :]
        return "/".join(names)


def parse_source(topic: str) -> Source:
    """Read "plant/+machine/vib" or "plant/#rest"; without a wildcard the last level names the stream.

    Raises ValueError with a sentence for the operator.
    """
    _check_text(topic)
    if topic.startswith("$share/"):
        raise ValueError(
            f"{topic!r} is a shared subscription: the broker would deal the messages of one stream out to several "
            "clients, and windows need them all; subscribe without $share and partition by topic"
        )
    levels = topic.split("/")
    captures: list[int] = []
    names: set[str] = set()
    tail: int | None = None
    for index, level in enumerate(levels):
        name = _wildcard_name(topic, index, len(levels))
        if name is None:
            continue
        if name in names:
            raise ValueError(f"{topic!r} uses the name {name!r} twice; every wildcard needs a name of its own")
        names.add(name)
        if level[0] == "#":
            tail = index
        else:
            captures.append(index)
    if not names:
        if not levels[-1]:
            raise ValueError(f"{topic!r} ends with an empty level, which cannot name a stream")
        captures.append(len(levels) - 1)
    bare = [level[0] if level[:1] in ("+", "#") else level for level in levels]
    return Source(filter="/".join(bare), captures=tuple(captures), tail=tail)


def _check_text(topic: str) -> None:
    if not topic:
        raise ValueError("a topic cannot be empty")
    if "\x00" in topic:
        raise ValueError(f"{topic!r} contains a NUL character, which MQTT forbids")
    try:
        size = len(topic.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{topic!r} cannot be written as UTF-8") from None
    if size > MAX_TOPIC_BYTES:
        raise ValueError(f"the topic has {size} bytes; MQTT allows {MAX_TOPIC_BYTES}")


def _wildcard_name(topic: str, index: int, count: int) -> str | None:
    """The name of the wildcard at a level, or None when the level is plain text. Raises ValueError."""
    level = topic.split("/")[index]
    where = f"level {index + 1} of {topic!r}"
    if level[:1] not in ("+", "#"):
        if "+" in level or "#" in level:
            raise ValueError(f"{where} has a wildcard inside it; '+' and '#' stand for whole levels")
        return None
    sign, name = level[0], level[1:]
    if not name:
        raise ValueError(
            f"{where} is an unnamed '{sign}'; name it, as in '{sign}machine': what it captures names the stream"
        )
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{where}: {name!r} is not a name of 1 to 64 letters, digits, '_' and '-'")
    if sign == "#" and index != count - 1:
        raise ValueError(f"{where}: '#' can only be the last level")
    return name


def check_topic(topic: str) -> None:
    """Raises ValueError for what cannot be published to: a broker would break the connection over it."""
    _check_text(topic)
    if "+" in topic or "#" in topic:
        raise ValueError(f"{topic!r} has a wildcard in it")


def match(topic_filter: str, topic: str) -> bool:
    """Whether a topic matches a filter.

    A topic with a NUL in it, which is how text that was not UTF-8 is marked, matches nothing, not even "#".
    """
    if INVALID_TOPIC in topic or (topic.startswith("$") and topic_filter[:1] in ("+", "#")):
        return False
    wanted, found = topic_filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        found = found[: len(wanted)]
    return len(wanted) == len(found) and all(w in ("+", f) for w, f in zip(wanted, found, strict=True))


def overlaps(filter_a: str, filter_b: str) -> bool:
    """Whether some topic matches both filters."""
    a, b = filter_a.split("/"), filter_b.split("/")
    for first, other in ((a[0], b[0]), (b[0], a[0])):
        if first in ("+", "#") and other.startswith("$"):
            return False
    for x, y in zip(a, b, strict=False):
        if "#" in (x, y):
            return True
        if x != y and "+" not in (x, y):
            return False
    shorter, longer = sorted((a, b), key=len)
    if shorter == ["+"] and longer == ["", "#"]:
        return False  # only the empty topic, which MQTT does not have
    return len(shorter) == len(longer) or longer[len(shorter) :] == ["#"]


def plan_connections(subscriptions: Iterable[Subscription]) -> list[list[Subscription]]:
    """Split subscriptions so that no two filters of one connection match the same topic.

    A broker may deliver a message once for every filter that matches, or once in all; apart, each connection
    sees it exactly once. Equal filters become one, at their highest QoS; the order is kept otherwise.
    """
    highest: dict[str, int] = {}
    for topic_filter, qos in subscriptions:
        highest[topic_filter] = max(qos, highest.get(topic_filter, 0))
    connections: list[list[Subscription]] = []
    for topic_filter, qos in highest.items():
        for connection in connections:
            if not any(overlaps(topic_filter, other) for other, _ in connection):
                connection.append((topic_filter, qos))
                break
        else:
            connections.append([(topic_filter, qos)])
    return connections


class Planned(msgspec.Struct, frozen=True):
    """A connection, the pipelines it serves, and what its client id ends with: nothing for the first.

    receive_maximum: messages of QoS 1 it may have unacknowledged, None for as many as the settings say.
    """

    suffix: str
    subscriptions: tuple[Subscription, ...]
    pipelines: tuple[str, ...]
    receive_maximum: int | None = None


def plan_pipelines(wanted: Mapping[str, Subscription], *, blocking: Mapping[str, int]) -> list[Planned]:
    """The connections of pipelines, by name; the first one publishes, so it never blocks, though it may serve none.

    blocking: a connection of its own for each of these, as withholding acknowledgements stops all that comes on it;
    with the number of messages that may be unacknowledged.
    """
    shared = {name: subscription for name, subscription in wanted.items() if name not in blocking}
    planned: list[Planned] = []
    for number, subscriptions in enumerate(plan_connections(shared.values()) or [[]], 1):
        filters = {topic_filter for topic_filter, _ in subscriptions}
        served = tuple(name for name, (topic_filter, _) in shared.items() if topic_filter in filters)
        planned.append(Planned("" if number == 1 else f"-{number}", tuple(subscriptions), served))
    return planned + [Planned(f"-block-{name}", (wanted[name],), (name,), most) for name, most in blocking.items()]


class Routes:
    """Which pipelines of one connection want a topic, and as which stream; remembered for the last topics seen."""

    def __init__(self, sources: Sequence[tuple[str, Source]], *, max_cached_topics: int = MAX_CACHED_TOPICS) -> None:
        """sources: (pipeline, source) of every pipeline this connection serves."""
        self._sources = tuple(sources)
        self._max_cached_topics = max_cached_topics
        self._cache: dict[str, tuple[tuple[str, str], ...]] = {}

    def find(self, topic: str) -> tuple[tuple[str, str], ...]:
        """(pipeline, stream) pairs; empty for a topic nobody takes, or whose captured levels are all empty."""
        routes = self._cache.get(topic)
        if routes is None:
            routes = self._search(topic)
            if len(self._cache) >= self._max_cached_topics:
                del self._cache[next(iter(self._cache))]
            self._cache[topic] = routes
        return routes

    def _search(self, topic: str) -> tuple[tuple[str, str], ...]:
        found = ((name, source.stream(topic)) for name, source in self._sources if match(source.filter, topic))
        return tuple((name, stream) for name, stream in found if stream)


def check_name(kind: str, name: str) -> str:
    """The name itself when it may stand in a topic. Raises ValueError: kind says what was to be named."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{kind} {name!r} is not a name of 1 to 64 letters, digits, '_' and '-'")
    return name


class Tree(msgspec.Struct, frozen=True):
    """The topics of one node (DESIGN, MQTT surface). Raises ValueError for a root or node that is no topic."""

    root: str
    node: str

    def __post_init__(self) -> None:
        _check_text(self.root)
        if any(not level or level[0] == "$" or set(level) & {"+", "#"} for level in self.root.split("/")):
            raise ValueError(
                f"root {self.root!r} must be plain levels such as 'edge/v1': no wildcard, '$' or empty level"
            )
        check_name("node", self.node)

    @property
    def base(self) -> str:
        return f"{self.root}/{self.node}"

    @property
    def everything(self) -> str:
        """The filter over all of it; a source that overlaps it would feed the daemon its own results."""
        return f"{self.base}/#"

    @property
    def status(self) -> str:
        return f"{self.base}/status"

    @property
    def info(self) -> str:
        return f"{self.base}/info"

    @property
    def metrics(self) -> str:
        return f"{self.base}/metrics"

    @property
    def events(self) -> str:
        return f"{self.base}/events"

    @property
    def bench(self) -> str:
        """Where requests to measure a candidate come in."""
        return f"{self.base}/cmd/bench"

    @property
    def reply(self) -> str:
        """What answers go below: a requester names a topic of its own there."""
        return f"{self.base}/reply"

    def out(self, pipeline: str, stream: str) -> str:
        return f"{self._pipeline(pipeline)}/out/{stream}"

    def state(self, pipeline: str, stream: str) -> str:
        return f"{self._pipeline(pipeline)}/state/{stream}"

    def event(self, pipeline: str, stream: str) -> str:
        return f"{self._pipeline(pipeline)}/event/{stream}"

    def dead(self, pipeline: str) -> str:
        return f"{self._pipeline(pipeline)}/dead"

    def _pipeline(self, name: str) -> str:
        return f"{self.base}/p/{check_name('pipeline', name)}"
