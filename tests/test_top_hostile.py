"""What `top` makes of documents that somebody wrote to harm it."""

from __future__ import annotations

import re

import msgspec
import pytest
from rich.cells import cell_len
from test_top import AT, drawn, known, metrics, said, status

from edge_runtime.device.wear import Wear
from edge_runtime.metrics import StoreMetrics
from edge_runtime.top.nodes import Nodes
from edge_runtime.top.view import plain

NINES, NESTED = b"9" * 5000, b"[" * 980 + b"]" * 980


@pytest.mark.parametrize("kind", ["status", "metrics"])
@pytest.mark.parametrize("value", [NINES, b'"\xff"', b"[" * 5000 + b"]" * 5000, b"1e400", b"NaN", b'"\\ud800"', b"["])
def test_what_we_do_not_know_of_a_document_must_be_json_too(kind: str, value: bytes) -> None:
    known_part = msgspec.json.encode(metrics() if kind == "metrics" else status("online"))
    nodes = Nodes("edge/v1")

    assert said(nodes, "n", kind, known_part) is not None
    assert said(nodes, "n", kind, known_part[:-1] + b',"x":' + value + b"}") is None
    assert [node.unreadable for node in nodes] == [1]


@pytest.mark.parametrize("value", [NESTED, b"9" * 4000, b"-1e308", b'"\\u001b\x7f"'])
def test_a_line_of_json_holds_whatever_was_read_or_there_is_none(value: bytes) -> None:
    body = msgspec.json.encode(status("online"))[:-1] + b',"x":' + value + b"}"
    nodes = Nodes("edge/v1")
    heard = said(nodes, "n", "status", body)

    if heard is None:
        assert [node.unreadable for node in nodes] == [1]
    else:
        assert msgspec.json.decode(heard.line())["document"] == msgspec.json.decode(body)
        assert all(" " <= char <= "~" for char in heard.line())


def test_texts_cannot_write_to_the_terminal_and_numbers_cannot_fill_it() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e" + "x" * 10_000
    found = metrics()
    pipeline = msgspec.structs.replace(found.pipelines["p"], model=evil, execution=evil, messages_per_s=1e308)
    account = found.ledger.pipelines[0]
    account.pipeline, account.dropped = evil, {evil: 10**18}
    stages = {evil: found.latency["p"]["decode"]}
    found = msgspec.structs.replace(
        found,
        at=1e300,
        uptime_s=1e300,
        problems=(evil,) * 50,
        pipelines={evil: pipeline, "p": pipeline},
        latency={evil: stages},
        recent={evil: stages},
        throttled=(evil,),
        store=StoreMetrics(evil, 10**18, 1e308, 10**18, evil),
        wear=Wear(10**18, 10**18, 1e308, 1e308),
    )
    nodes = Nodes("edge/v1")
    said(nodes, "n", "metrics", found, kept=True)
    shown = "".join([plain(list(nodes), AT), *drawn(nodes, width=80, height=50)])

    assert "\\x1b]0;owned" in shown
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert "! 40 more" in shown
    assert all(cell_len(line) <= 80 for line in drawn(nodes, width=80, height=50))


@pytest.mark.parametrize(
    ("rate", "shown"),
    [
        (999_999.94, "999,999.9"),
        (123_456_789.0, "123,456,789"),
        (1e9, "1e+09"),
        (1e308, "1e+308"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (-2.0, "-2.0"),
        (-1e308, "-1e+308"),
        pytest.param(10**400, "inf", id="400 digits"),
        pytest.param(-(10**4200), "-inf", id="-4200 digits"),
    ],
)
def test_no_figure_whatever_it_is_destroys_the_table(rate: float, shown: str) -> None:
    found = metrics()
    odd = msgspec.structs.replace(found.pipelines["p"], messages_per_s=rate, oldest_ms=rate, queue_depth=10**400)
    odd_one = msgspec.structs.replace(found, pipelines={"p": odd}, rss_mb=rate, cpu_cores=rate, uptime_s=1e300)
    nodes = known(("a", "metrics", found), ("z", "metrics", found))
    said(nodes, "m", "status", status("online"))
    node = next(node for node in nodes if node.name == "m")
    node.metrics, node.heard_ns = odd_one, AT.monotonic_ns
    lines = drawn(nodes, width=80, height=40, node=1)

    assert lines[2].split()[:4] == ["a", "unknown", "2.0", "2.0"]
    assert lines[3].split()[:4] == ["m", "online", shown, "2.0"]
    assert lines[4].split()[:4] == ["z", "unknown", "2.0", "2.0"]
    assert max(map(len, plain(list(nodes), AT).splitlines())) < 120


@pytest.mark.parametrize("digits", [b"9" * 400, b"9" * 4200, b"-" + b"9" * 400])
def test_numbers_of_hundreds_of_digits_end_nothing(digits: bytes) -> None:
    disk = {"store": StoreMetrics("", 1, 1.0, 1, ""), "wear": Wear(1, 1, 1.0, 1.0)}
    body = msgspec.json.encode(msgspec.structs.replace(metrics(), **disk))
    nodes = known(("n", "status", status("online")), ("o", "status", status("offline")))
    taken = []
    for field in set(re.findall(rb'"(\w+)":[-0-9]', body)) - {b"v"}:
        odd = re.sub(rb'(?<="' + field + rb'":)[-0-9.e]+', digits, body)
        if said(nodes, "n", "metrics", odd) is not None:
            taken.append(field)
            body = odd
    said(nodes, "o", "metrics", body, kept=True)

    assert {b"received", b"kept", b"last_hour_bytes"} <= set(taken)
    assert max(map(len, plain(list(nodes), AT).splitlines())) < 200
    assert drawn(nodes, width=80, height=24)


def test_sums_beyond_all_numbers_are_shown() -> None:
    found = metrics("p", "q")
    most = msgspec.structs.replace(found.pipelines["p"], messages_per_s=1.7e308)
    nodes = known(
        ("a", "metrics", msgspec.structs.replace(found, pipelines={"p": most, "q": most})), ("b", "metrics", found)
    )

    assert drawn(nodes, width=80, height=40)[2].split()[:4] == ["a", "unknown", "inf", "4.0"]


def test_of_a_thousand_words_on_the_heat_four_are_shown() -> None:
    found = msgspec.structs.replace(metrics(), throttled=tuple(f"w{n}" for n in range(1000)))

    assert "w0, w1, w2, w3, 996 more, mqtt callbacks\n" in plain(list(known(("n", "metrics", found))), AT)
