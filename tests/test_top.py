"""What `top` makes of documents, honest and otherwise; tests/integration/test_top_command.py has real daemons."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from test_loop import STILL, Bench
from test_metrics import Gauge

from edge_runtime.device.wear import Wear
from edge_runtime.metrics import Metrics, StoreMetrics
from edge_runtime.monitor.latency import TIMED
from edge_runtime.records import Message
from edge_runtime.top.nodes import MOST_BYTES, MOST_NODES, Nodes
from edge_runtime.top.view import Moment, Screen, plain, title
from edge_runtime.top.watch import unanswered

S = 1_000_000_000
AT = Moment(100 * S, 1_700_000_100.0)


def metrics(*pipelines: str) -> Metrics:
    """Of a node with some traffic."""
    bench = Bench(*pipelines)
    gauge = Gauge(bench)
    for _ in range(20):
        bench.arrive(STILL)
    bench.steps()
    return gauge.read(10.0)


def said(nodes: Nodes, node: str, kind: str, document: object, *, at_s: float = 100.0, kept: bool = False) -> object:
    body = document if isinstance(document, bytes) else msgspec.json.encode(document)
    return nodes.take(Message(f"edge/v1/{node}/{kind}", body, 0, retain=kept), now_ns=round(at_s * S))


def status(state: str, *, boot_id: str = "b1") -> dict:
    return {"state": state, "since": 1_700_000_000.0, "boot_id": boot_id}


def known(*documents: tuple[str, str, object]) -> Nodes:
    nodes = Nodes("edge/v1")
    for node, kind, document in documents:
        said(nodes, node, kind, document)
    return nodes


def lines_of(found: Metrics) -> list[str]:
    return plain(list(known(("n", "metrics", found))), AT).strip().splitlines()


def drawn(nodes: Nodes, *, width: int, height: int, node: int = 0, pipeline: int = 0) -> list[str]:
    """The lines of a terminal of that size."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    head = title("mqtt://broker:1883", away="", at=AT, hint="q quits")
    with console.capture() as captured:
        console.print(Screen(list(nodes), title=head, at=AT, node=node, pipeline=pipeline), end="")
    return captured.get().splitlines()


def test_a_node_is_shown_with_its_state_rates_ledger_and_percentiles() -> None:
    nodes = known(("press-1", "status", status("online")), ("press-1", "metrics", metrics()))
    text = plain(list(nodes), Moment(103 * S, 0.0))

    assert "press-1  online  up 10 s, metrics 3 s old, every 10 s" in text
    assert "p  means@1.0.0, inline, memory, 2.0 messages/s, 2.0 results/s" in text
    assert "received 20 = accepted 20\n" in text
    assert "results 20 = confirmed 20\n" in text
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("  decode")] == [["decode", "20"]]
    assert "mqtt callbacks" in text


def test_what_lies_in_the_store_and_what_is_written_has_a_line() -> None:
    store = StoreMetrics("", 1204, 3.14, 0, "")
    wear = Wear(9_000_000, 3_200_000, 76.8, 1000.0)
    found = msgspec.structs.replace(metrics(), store=store, wear=wear)
    worse = msgspec.structs.replace(
        found,
        store=StoreMetrics("the store cannot be written: disk full", 1204, 3.14, 96, "/s/store.db.corrupt-1\x1b"),
        wear=msgspec.structs.replace(wear, mb_per_day=None),
    )

    assert lines_of(found)[2] == "  store keeps 1,204 (3.1 MB), 3.2 MB/h written, 77 of 1,000 MB/day"
    assert lines_of(worse)[2] == (
        "  store keeps 1,204 (3.1 MB), 96 replayed, unsound one at /s/store.db.corrupt-1\\x1b, 3.2 MB/h written"
    )
    assert lines_of(msgspec.structs.replace(found, store=None, wear=None))[2] == ""
    unbounded = msgspec.structs.replace(wear, budget_mb_per_day=0.0)
    assert lines_of(msgspec.structs.replace(found, wear=unbounded))[2].endswith("written, 77 MB/day")


def test_of_the_ledger_only_what_happened_is_shown() -> None:
    found = metrics()
    account = found.ledger.pipelines[0]
    account.received, account.dropped, account.dead_lettered = 27, {"queue_full": 4, "expired": 1}, 2
    account.windows_dropped, account.results_dropped, account.lost_before_us = {"not_finite": 3}, {"stopped": 1}, 9
    text = plain(list(known(("n", "metrics", found))), AT)

    assert "received 27 = accepted 20 + dropped 5 (expired 1, queue_full 4) + dead-lettered 2; lost before us 9" in text
    assert "results 20 = confirmed 20 + dropped 1 (stopped 1); windows dropped 3 (not_finite 3)" in text


def test_several_nodes_have_a_line_each_and_an_offline_one_says_so() -> None:
    nodes = known(
        ("b", "status", status("offline")),
        ("a", "status", status("online")),
        ("a", "metrics", metrics("p", "q")),
        ("c", "status", status("degraded")),
    )
    lines = [line.split() for line in plain(list(nodes), AT).splitlines()]

    assert lines[0][:3] == ["node", "state", "messages/s"]
    assert [line[:3] for line in lines[1:4]] == [["a", "online", "4.0"], ["b", "offline", "-"], ["c", "degraded", "-"]]


def test_metrics_the_broker_had_kept_are_dated_by_the_nodes_clock_and_may_be_of_an_earlier_run() -> None:
    nodes = known(("n", "status", status("online", boot_id="b2")))
    said(nodes, "n", "metrics", metrics(), kept=True)
    old = plain(list(nodes), AT)
    said(nodes, "n", "metrics", msgspec.structs.replace(metrics(), boot_id="b2"))
    new = plain(list(nodes), AT)

    assert "metrics of 2023-11-14 " in old
    assert ", of an earlier run, every 10 s" in old
    assert "metrics 0 s old, every 10 s" in new


def test_a_node_that_runs_but_sends_nothing_for_three_intervals_is_silent() -> None:
    nodes = known(("n", "status", status("online")), ("n", "metrics", metrics()))
    (node,) = nodes

    assert not node.silent(129 * S)
    assert node.silent(131 * S)
    assert plain([node], Moment(131 * S, 0.0)).split()[:2] == ["n", "silent"]
    said(nodes, "n", "status", status("stopped"))
    assert not node.silent(131 * S)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"state":"online"}',
        b'{"state":"dancing","since":0,"boot_id":""}',
        b'{"state":"online","since":1e999,"boot_id":""}',
        b'{"state":"\xff","since":0,"boot_id":""}',
        b'{"more":' + b"[" * 100_000 + b"]" * 100_000 + b',"state":"online","since":0,"boot_id":"b"}',
        b" " * MOST_BYTES + b'{"state":"online","since":0,"boot_id":"b"}',
    ],
)
def test_what_is_no_document_is_counted_and_changes_nothing(body: bytes) -> None:
    nodes = known(("n", "status", status("online")))
    (node,) = nodes

    assert said(nodes, "n", "status", body) is None
    assert (node.unreadable, node.status is not None and node.status.state) == (1, "online")
    assert "1 document could not be read; status: " in plain([node], AT)
    said(nodes, "n", "status", status("degraded"))
    assert plain([node], AT).endswith("1 document could not be read")
    said(nodes, "n", "status", body)
    assert "2 documents could not be read; status: " in plain([node], AT)


def test_metrics_of_another_version_are_not_read() -> None:
    nodes = known(("n", "status", status("online")))
    said(nodes, "n", "metrics", msgspec.json.encode(metrics()).replace(b'"v":1', b'"v":2', 1))
    (node,) = nodes

    assert (node.metrics, node.unreadable) == (None, 1)
    assert "1 document could not be read; metrics: v is 2, known is 1" in plain([node], AT)
    assert unanswered([node], "n", "edge/v1", 2.0) == "metrics of n cannot be read: v is 2, known is 1"


@given(kind=st.sampled_from(["status", "metrics", "info"]), node=st.text(max_size=9), body=st.binary(max_size=60))
def test_no_message_at_all_ends_it(kind: str, node: str, body: bytes) -> None:
    nodes = Nodes("edge/v1")
    said(nodes, node, kind, body)

    assert plain(list(nodes), AT) is not None


def test_percentiles_of_the_last_interval_stand_beside_those_since_the_start() -> None:
    found = metrics()
    whole = found.latency["p"]["e2e"]
    now = msgspec.structs.replace(whole, count=7, p50_ms=1.5, p95_ms=2.5, p99_ms=3.5, max_ms=4.5)
    then = msgspec.structs.replace(whole, count=900, p50_ms=11.5, p95_ms=12.5, p99_ms=13.5, max_ms=14.5)
    found = msgspec.structs.replace(found, recent={"p": {"e2e": now}}, latency={"p": {"decode": then, "e2e": then}})
    nodes = known(("a", "metrics", found), ("b", "status", status("offline")))
    lines = [line.split() for line in plain(list(nodes), AT).splitlines()]

    assert lines[1][6] == "3.500"
    rows = {line[0]: line for line in lines if line}
    assert rows["e2e"] == ["e2e", "7", "1.500", "2.500", "3.500", "4.500", "11.500", "13.500"]
    assert rows["decode"] == ["decode", "-", "-", "-", "-", "-", "11.500", "13.500"]


@pytest.mark.parametrize("state", ["offline", "stopped", "silent"])
def test_the_rates_of_a_node_that_is_gone_do_not_look_live(state: str) -> None:
    told = "online" if state == "silent" else state
    nodes = known(("a", "status", status(told)), ("a", "metrics", metrics()), ("b", "status", status("offline")))
    at = Moment((200 if state == "silent" else 112) * S, 0.0)
    text = plain(list(nodes), at)

    assert text.splitlines()[1].split() == ["a", state, "-", "-", "-", "0", "-", "-"]
    assert f"a  {state}  was up 10 s, last said {100 if state == 'silent' else 12} s ago, every 10 s" in text
    assert "then 2.0 messages/s, 2.0 results/s" in text
    assert "then queue 0" in text
    assert "then, over 10.0 s" in text
    assert "last 10.0 s" not in text


def test_the_metrics_a_node_that_is_gone_left_are_what_it_last_said() -> None:
    nodes = known(("n", "status", status("offline")))
    said(nodes, "n", "metrics", metrics(), kept=True)

    assert ", last said at 2023-11-14 " in plain(list(nodes), AT)


def test_a_pipeline_that_is_not_timed_says_so() -> None:
    timed, untimed = metrics(), msgspec.structs.replace(metrics(), latency={}, recent={})

    assert "not timed" not in plain(list(known(("n", "metrics", timed))), AT)
    text = plain(list(known(("n", "metrics", untimed))), AT)
    assert text.splitlines()[-1] == "  not timed"
    assert "p50" not in text


def test_a_document_that_was_withdrawn_is_forgotten() -> None:
    nodes = known(("n", "status", status("offline")), ("n", "metrics", metrics()))
    said(nodes, "n", "metrics", b"")
    (node,) = nodes

    assert (node.metrics, node.unreadable) == (None, 0)


def test_topics_that_are_no_nodes_and_nodes_beyond_the_bound_are_passed_over() -> None:
    nodes = Nodes("edge/v1")
    for name in ("ünlauter", "", "a b", "a/p"):
        said(nodes, name, "status", status("online"))
    assert list(nodes) == []
    for n in range(MOST_NODES + 5):
        said(nodes, f"n{n}", "status", status("online"))
    assert len(list(nodes)) == MOST_NODES


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 50), (20, 3)])
@pytest.mark.parametrize("count", [0, 1, 60])
def test_a_picture_fits_the_terminal_whatever_there_is_to_show(width: int, height: int, count: int) -> None:
    nodes = Nodes("edge/v1")
    found = metrics("p", "q", "r")
    for n in range(count):
        name = f"node-with-a-long-name-{n:02}"
        said(nodes, name, "status", status("online"))
        said(nodes, name, "metrics", found)
    lines = drawn(nodes, width=width, height=height, node=count - 1)

    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)
    if count == 60 and height > 3:
        assert any(line.startswith("node-with-a-long-name-59  online") for line in lines)


def test_at_80_columns_no_figure_of_a_node_is_cut() -> None:
    nodes = known(*((name, "metrics", metrics("p", "q")) for name in ("press-hall-1", "press-hall-2")))
    lines = drawn(nodes, width=80, height=40)

    assert lines[1].split() == ["node", "state", "messages/s", "results/s", "queued", "dropped", "e2e", "p99", "missed"]
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("pipeline", [0, 1])
def test_where_there_is_no_room_the_chosen_pipeline_is_shown_alone_and_whole(pipeline: int) -> None:
    found = metrics("p", "q")
    summary = found.latency["p"]["decode"]
    stages = {name: dict.fromkeys(TIMED, summary) for name in ("p", "q")}
    store, wear = StoreMetrics("", 1204, 3.14, 96, ""), Wear(9_000_000, 3_200_000, 76.8, 1000.0)
    found = msgspec.structs.replace(found, latency=stages, recent=stages, store=store, wear=wear)
    nodes = known(("n", "metrics", found))
    lines = drawn(nodes, width=80, height=24, pipeline=pipeline)
    shown = [line.split()[0] for line in lines if line.startswith("  ") and line.strip()]

    assert shown[-len(TIMED) :] == ["e2e", *(stage for stage in TIMED if stage != "e2e")]
    (head,) = (line for line in lines if "means@1.0.0" in line)
    assert head.startswith(f"{'pq'[pipeline]} ({pipeline + 1} of 2)  means@1.0.0")
    assert "more lines" not in lines[-1]
    assert sum("means@1.0.0" in line for line in drawn(nodes, width=80, height=60)) == 2


def test_the_arrows_choose_which_node_is_shown_and_which_pipeline_first() -> None:
    nodes = known(("a", "metrics", metrics("p", "q")), ("b", "metrics", metrics("r")))

    def heads(**chosen: int) -> list[str]:
        return [line.split()[0] for line in drawn(nodes, width=100, height=80, **chosen) if "means@1.0.0" in line]

    assert heads() == ["p", "q"]
    assert heads(pipeline=1) == heads(pipeline=-1) == ["q", "p"]
    assert heads(node=1) == heads(node=-1) == ["r"]
    assert heads(node=2) == ["p", "q"]


def test_a_line_of_json_holds_the_whole_document_in_ascii() -> None:
    heard = said(Nodes("edge/v1"), "n", "status", {**status("online"), "more": "ü\u202e"})
    line = heard.line()

    assert json.loads(line) == {
        "node": "n",
        "kind": "status",
        "retained": False,
        "document": {**status("online"), "more": "ü\u202e"},
    }
    assert line.isascii()


def test_who_did_not_answer_is_named() -> None:
    running = known(("a", "status", status("online")), ("b", "status", status("offline")), ("c", "metrics", metrics()))

    assert unanswered([], "n1", "edge/v1", 2.0) == "nothing was heard of node n1 under edge/v1 within 2 s"
    assert unanswered([], "+", "edge/v1", 0.5) == "nothing was heard of any node under edge/v1 within 0.5 s"
    missing = unanswered(list(running), "+", "edge/v1", 2.0)
    assert missing == "no metrics within 2 s from a (with node.metrics_interval_s = 0 none come)"
    assert "no metrics yet; with node.metrics_interval_s = 0 none come" in plain(list(running), AT)


def test_that_the_broker_is_away_is_said_on_the_first_line() -> None:
    assert title("mqtt://b:1", away="gone\x1b[2J", at=AT, hint="q quits").plain.endswith("  broker away: gone\\x1b[2J")
    assert title("mqtt://b:1", away="", at=AT, hint="q quits").plain.endswith("  q quits")
