"""What a disturbed run came to, held against the undisturbed run of the same input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from scene import UNNUMBERED_PIPELINES, Document, Expected

MOST_SHOWN = 5
RECEIPT_FIELDS = ("t0", "t1", "start", "end", "peak_at", "since")
COMPARED = ("accepted", "windows", "results", "unchanged", "events")
NOTHING = ("dead_lettered", "queued", "in_flight", "waiting", "lost_before_us", "restarts")
NO_REASONS = ("dropped", "windows_dropped", "results_dropped", "events_dropped")

Key = tuple[str, str]


class Verdict(msgspec.Struct, frozen=True):
    """expected, delivered: distinct results and events. duplicates: beyond those, each of an id that came before.

    lost, unexpected, unequal (to the undisturbed run), differing (from the same id's first delivery), alarms, ledger:
    a sentence each; every one of them is a failure. inversions: results that came first after one of a later window.
    """

    expected: int
    delivered: int
    duplicates: int
    inversions: int
    lost: list[str]
    unexpected: list[str]
    unequal: list[str]
    differing: list[str]
    alarms: list[str]
    ledger: list[str]

    @property
    def problems(self) -> list[str]:
        named = {name: getattr(self, name) for name in self.__struct_fields__}
        return [
            f"{name}: {len(found)}, such as {found[:MOST_SHOWN]}"
            for name, found in named.items()
            if isinstance(found, list) and found
        ]


def judge(
    wanted: Expected,
    found: Sequence[Document],
    *,
    retained: Mapping[str, dict[str, Any]],
    summary: Mapping[str, Any] | None,
) -> Verdict:
    """found: what the sink got, in order. retained: alarm states a newcomer is told. summary: of the last life."""
    expected = _by_key(wanted.documents)
    first: dict[Key, dict[str, Any]] = {}
    duplicates, differing, unexpected, unequal = 0, [], [], []
    for document in found:
        if "/state/" in document.topic:
            continue
        key, plain = _key(document), _plain(document)
        if key in first:
            duplicates += 1
            differing += [_difference(key, first[key], plain)] if first[key] != plain else []
            continue
        first[key] = plain
        if key not in expected:
            unexpected.append(f"{key}")
        elif expected[key] != plain:
            unequal.append(_difference(key, expected[key], plain))
    return Verdict(
        expected=len(expected),
        delivered=len(first),
        duplicates=duplicates,
        inversions=_inversions(list(expected), list(first)),
        lost=[f"{key}" for key in expected if key not in first],
        unexpected=unexpected,
        unequal=unequal,
        differing=differing,
        alarms=_alarms(wanted.documents, found, retained),
        ledger=[] if summary is None else _ledger(wanted.accounts, summary),
    )


def missing(wanted: Expected, found: Iterable[Document]) -> int:
    """Results and events that have not come yet."""
    return len(_by_key(wanted.documents).keys() - {_key(document) for document in found})


def _by_key(documents: Iterable[Document]) -> dict[Key, dict[str, Any]]:
    kept = [document for document in documents if "/out/" in document.topic or "/event/" in document.topic]
    found = {_key(document): _plain(document) for document in kept}
    assert len(found) == len(kept), "two results of the undisturbed run share an id"
    return found


def _key(document: Document) -> Key:
    """Topic and id; where messages have no numbers of the producer's, ids are the run's, and the count has to do."""
    topic, payload = document
    return topic, str(payload["seq"]) if _is_unnumbered(topic) else payload["id"]


def _is_unnumbered(topic: str) -> bool:
    return topic.split("/p/", 1)[1].split("/", maxsplit=1)[0] in UNNUMBERED_PIPELINES


def _plain(document: Document) -> dict[str, Any]:
    """The payload without what may differ: stage times; without numbers, times of receipt and the run's ids, too."""
    topic, payload = document
    plain = {name: value for name, value in payload.items() if name != "lat_ms"}
    if _is_unnumbered(topic):
        for name in ("id", *RECEIPT_FIELDS):
            plain.pop(name, None)
    return plain


def _difference(key: Key, wanted: dict[str, Any], found: dict[str, Any]) -> str:
    names = sorted({*wanted, *found})
    parts = [f"{n}: {found.get(n)!r} not {wanted.get(n)!r}" for n in names if wanted.get(n) != found.get(n)]
    return f"{key} {'; '.join(parts)}"


def _inversions(expected: Sequence[Key], found: Sequence[Key]) -> int:
    """Neighbours of a topic that came the wrong way round."""
    place = {key: i for i, key in enumerate(expected)}
    last: dict[str, int] = {}
    inversions = 0
    for key in found:
        now = place.get(key)
        if now is not None:
            inversions += now < last.get(key[0], -1)
            last[key[0]] = now
    return inversions


def _alarms(wanted: Iterable[Document], found: Iterable[Document], retained: Mapping[str, dict[str, Any]]) -> list[str]:
    """Changes come in order, though one that was overtaken may be left out; none else comes; the last is retained."""
    expected, seen = _states(wanted), _states(found)
    problems = [f"{topic}: {seen[topic][-1]} was not to come" for topic in seen.keys() - expected.keys()]
    for topic, changes in expected.items():
        backwards = _backwards(changes, seen.get(topic, []))
        if backwards:
            problems.append(f"{topic}: {len(backwards)} of {len(seen[topic])} changes out of order: {backwards[0]}")
        kept = retained.get(topic)
        if kept is None or _plain(Document(topic, kept)) != changes[-1]:
            problems.append(f"{topic}: retained {kept} not {changes[-1]}")
    return problems


def _backwards(expected: Sequence[dict[str, Any]], seen: Sequence[dict[str, Any]]) -> list[str]:
    """Changes that came after a later one, or that were not to come."""
    problems, last = [], -1
    for change in seen:
        now = expected.index(change) if change in expected else -1
        if now < last or now < 0:
            problems.append(f"change {now} after change {last} ({change})")
        last = now
    return problems


def _states(documents: Iterable[Document]) -> dict[str, list[dict[str, Any]]]:
    """By topic; what only repeats what was said before is left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        if "/state/" in document.topic:
            changes, plain = found.setdefault(document.topic, []), _plain(document)
            if not changes or changes[-1] != plain:
                changes.append(plain)
    return found


def _ledger(expected: Mapping[str, dict[str, Any]], summary: Mapping[str, Any]) -> list[str]:
    """The node's account of all its lives: it balances, and says what was sent and made of it."""
    problems = [str(one) for one in summary["ledger"]["imbalances"]]
    if not summary["balanced"]:
        problems.append("not balanced")
    found = {account["pipeline"]: account for account in summary["ledger"]["pipelines"]}
    for name, wanted in expected.items():
        if name not in found:
            problems.append(f"{name}: no account")
            continue
        account = found[name]
        problems += [f"{name}: {n} {account[n]} not {wanted[n]}" for n in COMPARED if account[n] != wanted[n]]
        problems += [f"{name}: {n} {account[n]} not 0" for n in NOTHING if account[n]]
        problems += [f"{name}: {n} {account[n]} not none" for n in NO_REASONS if sum(account[n].values())]
        made = account["accepted"] + account["duplicates"]
        if account["received"] != made:
            problems.append(f"{name}: {account['received']} received, {made} accepted or duplicates")
    return problems
