from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
from bundles import means_manifest, write_means_bundle, write_running_bundle

from edge_runtime import report
from edge_runtime.daemon import Summary
from edge_runtime.delivery.ledger import Ledger
from edge_runtime.metrics import StoreMetrics
from edge_runtime.model.bundle import read
from edge_runtime.model.manifest import Parity, Tolerance
from edge_runtime.monitor.latency import Deadline


def test_a_bundle_cannot_write_to_the_terminal_what_is_no_text(tmp_path: Path) -> None:
    found = read(write_means_bundle(tmp_path / "m.edge"))

    shown = report.bundle(msgspec.structs.replace(found, card="# méans\n\x1b[2Jall is well\x07\n"))

    assert "# méans\n\\x1b[2Jall is well\\x07" in shown
    assert "\x1b" not in shown


def test_a_streaming_bundle_shows_what_it_carries_and_what_is_always_the_same(tmp_path: Path) -> None:
    shown = report.bundle(read(write_running_bundle(tmp_path / "m.edge")))

    assert "state (2, 1, 2) -> stateN, streams joined along axis 1" in shown
    assert "gain = 0.25 (float32)" in shown


def test_a_bundle_shows_what_was_measured_on_which_family(tmp_path: Path) -> None:
    claimed = msgspec.structs.replace(
        means_manifest(),
        tolerances={"default": Tolerance(1e-5), "avx2": Tolerance(2e-6)},
        parity={"avx2": Parity("measured under \x1b[31memulation", 3e-8)},
    )
    shown = report.bundle(read(write_means_bundle(tmp_path / "m.edge", claimed)))

    wanted = "avx2: measured under \\x1b[31memulation, differs by 3e-08 from the golden vectors, tolerance 2e-06"
    assert wanted in shown


def test_a_run_with_deadlines_says_how_they_were_kept() -> None:
    ledger = Ledger().totals(Counter(), Counter(), Counter())
    deadlines = {"vibration": Deadline(2.5, 30_000, 1_200)}
    ended = Summary(1.0, True, True, ledger, {}, deadlines, "", 70.0, False, None)

    assert "\nvibration: 1,200 of 30,000 results later than 2.5 ms\n" in report.summary(ended)
    assert "later than" not in report.summary(msgspec.structs.replace(ended, deadlines={}))


def test_a_run_says_which_counts_are_older_than_it_and_what_it_leaves_to_the_next() -> None:
    ledger = Ledger().totals(Counter(), Counter(), Counter())
    store = StoreMetrics("", 0, 0.0, 7, "")
    first = Summary(1.0, True, True, ledger, {}, {}, "", 70.0, False, store)
    left = StoreMetrics("the store cannot be written: disk is full", 1200, 0.5, 7, "store.db.corrupt-1")
    second = msgspec.structs.replace(first, continued=True, store=left)

    for said in ("earlier runs", "kept for", "the store"):
        assert said not in report.summary(first)
    assert "balanced\ncounts of delivery `normal` and `full` go on from earlier runs" in report.summary(second)
    assert report.summary(second).splitlines()[-3:] == [
        "kept for the next start: 1,200 results, events and dead letters not confirmed",
        "the store cannot be written: disk is full: what it could not take is lost",
        "the store was unsound and lies at store.db.corrupt-1",
    ]
