from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from export_nets import artifact_of, two_matrices
from onnx import helper

from benchmarks import machine
from benchmarks.compression import __main__ as command
from benchmarks.compression import code, families, judging, peers, records, render, sections, show, timing, work
from benchmarks.compression.families import FAMILIES, Wanted
from benchmarks.compression.figures import Figures, Part, front
from benchmarks.compression.finished import Finished, key_of
from benchmarks.compression.judging import Seen
from benchmarks.compression.records import (
    CHOSEN,
    FLOAT32,
    Candidate,
    Failed,
    Judged,
    Line,
    Peer,
    Repeated,
    Searched,
    Sized,
    Timed,
    Times,
    Trained,
    Verdict,
    Where,
)
from benchmarks.compression.work import FULL, Work
from benchmarks.results import Machine
from edge_runtime.errors import ExportError
from edge_runtime.model.paired import Rounds
from export import fingerprint
from export.artifact import outputs_of, parse
from export.evaluate import snr_db
from export.probe import Failure
from export.search import EFFORTS
from export.space import Move

pytestmark = pytest.mark.torch
WHERE: dict[str, Any] = {"device": "d", "git": "g", "date": "2026-11-23 10:00 UTC", "family": "digits_cnn2d"}
FAMILY = next(family for family in FAMILIES if family.name == WHERE["family"])
CHAIN = (Move("prune", {"ratio": 0.3, "scope": "global", "epochs": 10}), Move("int8", {"keep": ("a", "b")}))


def line(kind: Any, **facts: Any) -> Any:
    return kind(**{**WHERE, **facts})


def sized(variant: str, onnx: int, fold: int = 0) -> Sized:
    return line(Sized, variant=variant, fold=fold, onnx=onnx, gzip=onnx - 10, bundle=onnx + 2000)


def judged(variant: str, fold: int | None, drop: float, *, n: int = 600) -> Judged:
    before: dict[str, Any] = {"before": 0.98, "before_low": 0.97, "before_high": 0.99}
    after: dict[str, Any] = {"after": 0.98 - drop, "drop": drop, "low": drop - 0.002, "high": drop + 0.002}
    verdict = Verdict(n=n, **before, **after, p_value=0.25, lost=4, won=1)
    return line(Judged, variant=variant, fold=fold, metric="accuracy", verdict=verdict)


def timed(variant: str, ratio: float, *, half: float = 0.1) -> Timed:
    took: dict[str, Any] = {f"{who}{key}_us": 10.0 for who in ("", "float32_") for key in ("p50", "q1", "q3")}
    times = Times(
        processes=9, rounds=2700, p95_us=12.0, ratio=ratio, ratio_low=ratio - half, ratio_high=ratio + half, **took
    )
    return line(Timed, variant=variant, numerics="vnni", times=times)


def candidate(name: str, size_kb: float, speedup: float | None, drop: float | None, **facts: Any) -> Candidate:
    told = {"status": "fits", "reasons": (), "seconds": 60.0, "metric": 0.97, "p50_us": 10.0, **facts}
    return Candidate(name=name, size_kb=size_kb, speedup=speedup, drop=drop, drop_low=drop, drop_high=drop, **told)


def searched(*candidates: Candidate, chain: Any = CHAIN, seconds: float = 600.0) -> Searched:
    return line(
        Searched, effort="default", seed=7, max_drop=0.01, windows=480, seconds=seconds, stopped="",
        chosen="pruned 30 % + int8" if chain else "", steps=("pruned", "quantized") if chain else (), chain=chain,
        candidates=candidates,
    )  # fmt: skip


def where(*, others: float = 0.01, quick: bool = False) -> Where:
    facts = {"cpu": "c", "cores": 2, "memory_gb": 8.0, "kernel": "k", "system": "s", "versions": {"torch": "2"}}
    found = Machine(device="d", git="g", date="2026-11-23", load=0.1, busy=0.0, quick=quick, **facts)
    return line(Where, machine=found, others=others)


def whole(*, size: int = 1000, drop: float = 0.004, speed: float = 3.0, half: float = 0.1) -> list[Line]:
    """A family with everything: float32 of 10,000 bytes, the chosen one, a peer, one that failed."""
    folds = [line(Trained, fold=k, parameters=5, train=1920, validation=480, test=600) for k in range(5)]
    return [
        *folds,
        searched(candidate("float32", 10.0, 1.0, 0.0), candidate("int8", 1.0, 3.0, 0.001, status="chosen")),
        sized(FLOAT32, 10_000),
        *(line for k in range(5) for line in (sized(FLOAT32, 10_000, k), sized(CHOSEN, size + k, k))),
        judged(CHOSEN, 0, drop),
        judged(CHOSEN, None, drop, n=3000),
        line(Peer, variant="dynamic", version="onnxruntime 1", seconds=1.0),
        sized("dynamic", 5_000),
        judged("dynamic", 0, 0.02),
        timed(CHOSEN, speed, half=half),
        timed("dynamic", 0.25),
        line(Failed, variant="nncf", fold=0, reason="crashed with SIGSEGV | really"),
        where(),
    ]


def row(page: str, begin: str) -> list[str]:
    found = next(line for line in page.splitlines() if line.startswith(f"| {begin}"))
    return [cell.strip() for cell in found.split(" | ")]


def test_what_was_asked_for_stands_beside_what_was_found() -> None:
    cells = row(show.table([Figures(FAMILY, whole())]), "[2-D CNN")

    assert cells[1:4] == ["pruned+int8", "10.0x (at least 8x)", "4.0x"]
    assert cells[4] == "+0.40 pt [+0.20, +0.60] (at most 1 pt)"
    assert cells[5:] == ["3,000", "0.250", "3.00x [2.90, 3.10] (at least 2.5x)", "yes |"]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"size": 2000}, "**no**: size 5.00x, wanted 8x"),
        ({"drop": 0.015}, "**no**: drop +1.50 pt, wanted at most 1 pt"),
        ({"speed": 2.0, "size": 2000}, "**no**: size 5.00x, wanted 8x, speed 2.00x, wanted 2.5x"),
    ],
)
def test_a_miss_names_what_was_missed_and_by_how_much(facts: dict[str, Any], said: str) -> None:
    assert show.met(Figures(FAMILY, whole(**facts))) == said


def test_a_figure_whose_interval_reaches_beyond_the_limit_says_so() -> None:
    assert show.met(Figures(FAMILY, whole(speed=2.6, half=0.3))).endswith("the interval of speed reaches beyond")


def test_what_is_met_is_the_size_of_the_first_fold_and_the_drop_over_all() -> None:
    lines: list[Line] = [searched()]
    for fold, size in enumerate((1100, 1000, 1250)):
        lines += [sized(FLOAT32, 10_000, fold), sized(CHOSEN, size, fold)]
    found = Figures(FAMILY, [*lines, judged(CHOSEN, 0, 0.02), judged(CHOSEN, None, 0.009), timed(CHOSEN, 3.0)])

    assert found.parts() == [
        Part("size", 10_000 / 1100, 8.0, 8),
        Part("drop", 0.009, 0.011, 0.01, rises=False),
        Part("speed", 3.0, 2.9, 2.5),
    ]
    assert show.met(found) == "yes; the interval of drop reaches beyond"


def test_a_search_that_chose_nothing_is_a_miss() -> None:
    lines = [searched(candidate("float32", 10.0, 1.0, 0.0), chain=()), sized(FLOAT32, 10_000), where()]

    assert show.met(Figures(FAMILY, lines)) == "**no**: nothing better than float32 was found"


def test_what_is_not_measured_yet_is_neither_met_nor_missed() -> None:
    lines = [line for line in whole() if not isinstance(line, Timed)]

    assert show.met(Figures(FAMILY, lines)) == "not all measured"


def without_folds(*folds: int) -> list[Line]:
    kept = [line for line in whole() if not (isinstance(line, Sized) and line.variant == CHOSEN and line.fold in folds)]
    return [*kept, *(line(Failed, variant=CHOSEN, fold=fold, reason="pruning refuses") for fold in folds)]


@pytest.mark.parametrize(
    ("folds", "said", "without"),
    [
        ((2, 3, 4), "**no**: the chain fails on folds 2, 3, 4", " (**without 3 folds, where the chain fails**)"),
        ((4,), "**no**: the chain fails on fold 4", " (**without 1 fold, where the chain fails**)"),
    ],
)
def test_a_chain_that_fails_on_other_folds_is_a_miss_whatever_the_rest_says(
    folds: tuple[int, ...], said: str, without: str
) -> None:
    cells = row(show.table([Figures(FAMILY, without_folds(*folds))]), "[2-D CNN")

    assert cells[8] == f"{said} |"
    assert cells[5] == f"3,000{without}"


def test_a_chosen_one_that_does_not_run_is_a_miss_and_not_a_fold_less() -> None:
    lines = [line for line in whole() if not (isinstance(line, Timed) and line.variant == CHOSEN)]
    assert "**Not finished: 2-D CNN, log-mel.**" in render.page(lines)

    crashed = [*lines, line(Failed, variant=CHOSEN, fold=0, reason="timing crashed")]
    assert show.met(Figures(FAMILY, crashed)) == "**no**: does not run on fold 0"
    assert row(show.table([Figures(FAMILY, crashed)]), "[2-D CNN")[5] == "3,000"
    assert "Not finished" not in render.page(crashed)


def test_lines_of_several_commits_or_of_code_that_was_never_committed_are_told() -> None:
    one = whole()
    assert "Made by" not in render.page(one).replace("Made by `make bench-export`", "")

    two = [*one[:-1], msgspec.structs.replace(one[-1], git="h")]
    assert "**Made by more than one state of the code: 2-D CNN, log-mel (g; h).**" in render.page(two)
    dirty = [msgspec.structs.replace(each, git="g-dirty") for each in one]
    assert "**Made by code that no commit holds: 2-D CNN, log-mel (g-dirty).**" in render.page(dirty)


def test_a_part_is_met_on_its_limit_and_sure_by_its_interval() -> None:
    falls = Part("drop", 0.01, 0.012, 0.01, rises=False)

    assert (falls.is_met, falls.is_sure) == (True, False)
    assert Part("size", 8.0, 8.0, 8.0).is_sure


def test_the_page_says_of_every_peer_what_it_gave_or_why_not() -> None:
    page = render.page(whole())

    assert row(page, "`quantize_dynamic`")[1:3] == ["5.0", "2.0x"]
    assert "- NNCF, fold 0: crashed with SIGSEGV \\| really" in page
    assert "| 600 | 10.0x · +0.40 pt [+0.20, +0.60] · 3.00x | 2.0x · +2.00 pt [+1.80, +2.20] · 0.25x | -" in page
    assert "Judged on the first fold alone, n = 600; each timed in 2,700 rounds. Peers: onnxruntime 1." in page
    assert "Not measured: 1-D CNN, raw wave" in page
    assert "Not finished" not in page


def test_a_family_without_all_folds_or_times_is_called_unfinished() -> None:
    lines = [line for line in whole() if not (isinstance(line, Trained) and line.fold == 4)]

    assert "**Not finished: 2-D CNN, log-mel.**" in render.page(lines)


def test_times_taken_beside_others_are_not_to_be_trusted() -> None:
    lines = [line for line in whole() if not isinstance(line, Where)]

    assert "not to be trusted" in render.page([*lines, where(others=0.2)])
    assert "its numbers mean nothing" in render.page([*lines, where(quick=True)])
    assert "nothing was timed" in render.page(lines)
    with pytest.raises(ValueError, match="no results"):
        render.page([])


def test_only_what_nobody_beats_is_on_the_pareto_front() -> None:
    found = [
        candidate("float32", 10, 1.0, 0.0),
        candidate("small", 2, 0.9, 0.0),
        candidate("fast", 4, 3.0, 0.01),
        candidate("worse", 4, 2.0, 0.02),
        candidate("refused", 0, None, None),
        candidate("rejected", 1, 9.0, 0.0, status="rejected"),
    ]

    assert front(found) == {"float32", "small", "fast"}


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    records.write(tmp_path / "digits_cnn2d.jsonl", whole())

    assert records.read(tmp_path) == whole()


def test_the_median_of_nine_lies_between_the_second_and_the_last_but_one() -> None:
    assert timing.interval([9, 8, 7, 6, 5, 4, 3, 2, 1]) == (2, 8)
    assert timing.interval([3, 1, 2]) == (1, 3)


def test_a_ratio_is_of_rounds_and_its_interval_of_processes() -> None:
    found = timing.summary([Rounds([2000, 4000, 6000], [1000, 1000, 1000]), Rounds([3000], [1000])])

    assert (found.ratio, found.ratio_low, found.ratio_high) == (3.5, 3.0, 4.0)
    assert (found.processes, found.rounds, found.p50_us, found.float32_p50_us) == (2, 4, 1.0, 3.5)


def test_every_variant_is_timed_once_before_any_is_again_and_one_that_crashes_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact = two_matrices()
    order = []

    def child(_module: str, arguments: list[str], folder: Path) -> bytes | Failure:
        order.append((folder.name, arguments[1]))
        told = msgspec.json.encode(Rounds([2], [1]))
        return Failure("crashed") if folder.name == "1" else told

    monkeypatch.setattr(timing, "child", child)
    found = timing.rounds(artifact, {"good": artifact, "bad": artifact}, np.zeros((1, 8), np.float32), processes=2)

    assert order == [("0", "0"), ("1", "0"), ("0", "1")]
    assert found == {"good": [Rounds([2], [1])] * 2, "bad": Failure("crashed")}


def seen(before: list[int], after: list[int], targets: list[int]) -> Seen:
    eye = np.eye(3, dtype=np.float32)
    return Seen(np.array(targets, np.int64), eye[before], eye[after])


def test_windows_of_all_folds_are_counted_together() -> None:
    folds = [seen([0, 1, 2], [0, 1, 0], [0, 1, 2]), seen([0, 0], [0, 1], [0, 1])]

    found = judging.judged(folds, metric=None, seed=0)

    assert (found.n, found.before, found.after, found.lost, found.won) == (5, 0.8, 0.8, 1, 1)
    assert (found.drop, found.p_value) == (0.0, 1.0)
    assert found.low == -found.high

    worse = judging.judged([*folds, seen([0, 1], [1, 0], [0, 1])], metric=None, seed=0)
    assert (worse.lost, worse.won) == (3, 1)


def share_above(outputs: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean((outputs[:, 0] > 0.5) == targets))


def test_the_interval_of_a_metric_is_as_wide_as_that_of_so_many_windows() -> None:
    after = (np.arange(100) % 2).astype(np.float32)[:, None]
    fold = Seen(np.ones(100, np.int64), np.ones((100, 1), np.float32), after)

    found = judging.judged([fold], metric=share_above, seed=0)

    assert found.drop == 0.5
    assert (found.low, found.high) == pytest.approx((0.402, 0.598), abs=0.015)  # of a binomial of 100 and a half


def test_a_metric_of_folds_is_its_mean_with_windows_resampled_within_each() -> None:
    ones = np.ones((40, 1), np.float32)
    folds = [Seen(np.ones(40, np.int64), ones, ones), Seen(np.ones(40, np.int64), ones, 0 * ones)]

    found = judging.judged(folds, metric=share_above, seed=0)

    assert (found.n, found.before, found.after, found.drop) == (80, 1.0, 0.5, 0.5)
    assert (found.low, found.high, found.p_value, found.lost) == (0.5, 0.5, pytest.approx(2 / 1001), None)


def test_windows_of_one_machine_are_drawn_or_left_out_together() -> None:
    after = np.repeat((np.arange(20) % 2).astype(np.float32), 5)[:, None]
    fold = Seen(np.ones(100, np.int64), np.ones((100, 1), np.float32), after)

    found = judging.judged([fold], metric=share_above, seed=0, together=5)

    assert found.drop == 0.5
    assert (found.low, found.high) == pytest.approx((0.28, 0.72), abs=0.04)  # of a binomial of 20 and a half


def test_another_form_than_the_one_asked_for_is_told_with_the_best_of_that_form() -> None:
    pruned = CHAIN[:1]
    found = [
        candidate("float32", 10.0, 1.0, 0.0),
        candidate("pruned 30 %", 2.0, 5.0, 0.001, status="chosen"),
        candidate("pruned 30 % + int8", 0.5, 4.0, 0.002),
        candidate("pruned 51 % + int8", 0.4, 6.0, 0.09, status="rejected"),
    ]
    lines = [line for line in whole() if not isinstance(line, Searched)]
    lines.append(msgspec.structs.replace(searched(*found, chain=pruned), chosen="pruned 30 %"))

    assert "with int8 on top, pruned 30 % + int8: 20.0x smaller, 4.00x, +0.20 pt" in render.page(lines)
    assert "with int8 on top" not in render.page(whole())


def test_a_search_beside_which_another_family_was_worked_on_says_so() -> None:
    other = [msgspec.structs.replace(each, family="digits_gru", date="2026-11-23 10:05 UTC") for each in whole()]
    later = [msgspec.structs.replace(each, family="digits_lstm", date="2026-11-23 12:00 UTC") for each in whole()]
    figures = [Figures(family, [*whole(), *other, *later]) for family in FAMILIES]
    found = {one.family.name: show.beside(one, figures) for one in figures if one.searched}

    assert found == {"digits_cnn2d": ["GRU, log-mel"], "digits_gru": ["2-D CNN, log-mel"], "digits_lstm": []}


def test_finished_work_is_not_done_again_unless_it_follows_from_something_else(tmp_path: Path) -> None:
    finished, made = Finished(tmp_path), []

    def make() -> list[Line]:
        made.append(1)
        return [sized(CHOSEN, 5)]

    for key in ("a", "a", "b"):
        assert finished.unit("search", key_of(key), make) == (sized(CHOSEN, 5),)
    assert len(made) == 2
    assert Finished(tmp_path).lines("search", key_of("b")) == (sized(CHOSEN, 5),)
    finished.forget("search.json")
    assert finished.lines("search", key_of("b")) is None


def test_work_that_is_broken_off_is_not_finished(tmp_path: Path) -> None:
    def interrupted() -> list[Line]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Finished(tmp_path).unit("search", "k", interrupted)

    assert Finished(tmp_path).lines("search", "k") is None


def test_an_artifact_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    finished, artifact = Finished(tmp_path), msgspec.structs.replace(two_matrices(), session={"k": "1"}, steps=("s",))

    finished.save_artifact("shipped/chosen", artifact)

    assert finished.artifact("shipped/chosen") == artifact


def test_a_peer_gets_the_original_and_its_file_runs() -> None:
    artifact, windows = two_matrices(), np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)

    made = peers.quantized("static", artifact, windows)
    assert not isinstance(made, Failure)
    outputs = peers.outputs(made, windows)

    assert made.model != artifact.model
    assert not isinstance(outputs, Failure)
    assert 20 < snr_db(outputs_of(artifact, windows), outputs) < 100


def test_a_run_of_a_peers_file_is_one_window_at_a_time() -> None:
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["mean"]), helper.make_node("Sub", ["x", "mean"], ["y"])]
    less_the_batch = artifact_of(nodes, {"axes": np.array([0])}, shape=[8], width=8)

    outputs = peers.outputs(less_the_batch, np.arange(32, dtype=np.float32).reshape(4, 8))

    assert not isinstance(outputs, Failure)
    assert outputs.shape == (4, 8)
    assert not outputs.any()


def test_a_peer_that_is_told_leaves_the_front_end_alone() -> None:
    artifact, windows = two_matrices(), np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)

    weights = []
    for name in ("static", "static-told"):
        made = peers.quantized(name, artifact, windows)
        assert not isinstance(made, Failure)
        weights.append({tensor.name for tensor in parse(made.model).graph.initializer})

    assert [("fixed" in names, "learned" in names) for names in weights] == [(False, False), (True, False)]


def test_a_peer_that_refuses_or_is_absent_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = artifact_of([helper.make_node("NoSuchOperator", ["x"], ["y"])], {}, shape=[8], width=8)
    monkeypatch.setattr(peers, "NNCF", tmp_path / "nncf")

    refused = peers.quantized("static", broken, np.zeros((1, 8), np.float32))
    absent = peers.quantized("nncf", two_matrices(), np.zeros((1, 8), np.float32))

    assert isinstance(refused, Failure)
    assert "INVALID_GRAPH" in refused.reason
    assert isinstance(absent, Failure)
    assert "make bench-export" in absent.reason


def test_everything_the_issue_asks_for_has_its_family() -> None:
    wanted = {family.name: family.wanted for family in FAMILIES if family.wanted}

    assert len(wanted) == 7
    assert wanted["digits_dscnn"] == Wanted(size=3, drop=0.008, speed=1.5)
    assert {family.name for family in FAMILIES} == set(families.zoo.NAMES)
    assert len({family.source() for family in FAMILIES}) == len(FAMILIES)


def test_of_a_search_that_was_broken_off_nobody_says_that_it_was_fast_enough() -> None:
    once = searched(candidate("float32", 10.0, 1.0, 0.0))
    told = [row(show.searches([Figures(FAMILY, [found])]), "2-D CNN") for found in (once, resumed(once))]

    assert [(cells[2], cells[-1]) for cells in told] == [
        ("10.0", "yes |"),
        ("at least 10.0", "not known: broken off |"),
    ]


def resumed(found: Searched) -> Searched:
    return msgspec.structs.replace(found, resumed=True)


def test_a_search_has_the_budget_that_was_promised() -> None:
    promised = {family.name: family.wanted.drop for family in FAMILIES if family.wanted}

    assert {name: families.zoo.load(name).budget.max_drop for name in promised} == promised


def test_nothing_is_trained_where_nobody_can_judge_it(tmp_path: Path) -> None:
    looks = {family.name: Work(family, tmp_path, FULL, str)._looks for family in FAMILIES}

    assert {name for name, effort in looks.items() if effort != "default"} == {"kws_dscnn"}
    assert not EFFORTS[looks["kws_dscnn"]].prunes


def test_another_training_follows_from_another_file_that_the_recipe_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families.zoo, "FOLDER", tmp_path)
    for name, text in (("digits_cnn2d", "from near import x\nimport numpy"), ("near", "x = 1"), ("far", "")):
        (tmp_path / f"{name}.py").write_text(text)
    before = FAMILY.source()

    (tmp_path / "far.py").write_text("y = 2")
    assert FAMILY.source() == before
    (tmp_path / "near.py").write_text("x = 2")
    assert FAMILY.source() != before


@pytest.fixture
def makers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what makes lines."""
    for name in (*code.MAKERS, "show.py"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(code, "FOLDER", tmp_path)
    return tmp_path


def test_work_is_done_again_when_the_code_that_it_follows_from_changes(
    makers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> list[str]:
        done = Work(FAMILY, makers, FULL, str)
        return [key for units in (done._search, done._peers, done._folds) for _, key, _ in units((searched(),))]

    first = keys()
    (makers / "show.py").write_text("x = 1")
    assert keys() == first
    (makers / "judging.py").write_text("x = 1")
    second = keys()
    monkeypatch.setattr(fingerprint, "own_code", lambda: b"another prune.py")

    assert not set(first) & set(second)
    assert not set(second) & set(keys())


def test_folds_follow_from_the_chosen_chain_and_times_from_the_files(tmp_path: Path) -> None:
    def folds(*chain: Move) -> set[str]:
        return {key for _, key, _ in Work(FAMILY, tmp_path, FULL, str)._folds((searched(chain=chain),))}

    def times(model: bytes) -> str:
        for name in (FLOAT32, CHOSEN):
            Finished(tmp_path).save_artifact(f"shipped/{name}", msgspec.structs.replace(two_matrices(), model=model))
        ((_, key, _),) = Work(FAMILY, tmp_path, FULL, str)._timing((sized(FLOAT32, 2), sized(CHOSEN, 1)))
        return key

    assert folds(*CHAIN) == folds(*CHAIN)
    assert not folds(*CHAIN) & folds(CHAIN[0])
    assert times(b"a") == times(b"a") != times(b"b")


class Narrowing:
    """A cache of a network that can be narrowed once; moves are all it makes."""

    def perform(self, chain: tuple[Move, ...]) -> Any:
        if [move.kind for move in chain].count("prune") > 1:
            raise ExportError("pruning removed nothing")
        if any(move.kind == "qat" for move in chain):
            raise ExportError("no training")
        return chain


def test_on_another_fold_pruning_that_finds_nothing_left_is_left_out_and_nothing_else_is() -> None:
    prune, int8 = CHAIN
    cache: Any = Narrowing()

    assert work.repeat(cache, (prune, int8)) == ((prune, int8), ())
    assert work.repeat(cache, (prune, prune, int8)) == ((prune, int8), ("pruning removed nothing",))
    with pytest.raises(ExportError, match="no training"):
        work.repeat(cache, (prune, Move("qat"), int8))


def test_the_page_says_on_which_folds_a_step_was_left_out() -> None:
    lines = [*whole(), *(judged(CHOSEN, fold, 0.0) for fold in (1, 2))]
    lines += [line(Repeated, fold=1, seconds=3.0), line(Repeated, fold=2, seconds=4.0, left_out=("nothing",))]

    text = sections.section(Figures(FAMILY, lines))

    assert "| fold 0 (searched) |" in text
    assert "| fold 1 |" in text
    assert "| fold 2 (1 pruning step left out: nothing more to remove) |" in text


def test_lines_name_the_code_as_it_was_when_the_work_began(makers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "commit", lambda _code: "a")
    done = Work(FAMILY, makers, FULL, str)
    monkeypatch.setattr(machine, "commit", lambda _code: "b")

    assert done._line(Repeated, fold=1, seconds=1.0).git == "a"
    (makers / "peers.py").write_text("x = 1")
    assert done._line(Repeated, fold=1, seconds=1.0).git == "a-changed"


def test_the_page_is_made_anew_from_the_lines_alone(tmp_path: Path) -> None:
    records.write(tmp_path / "digits_cnn2d.jsonl", whole())
    page = tmp_path / "compression.md"

    assert command.main(["--render", "--results", str(tmp_path), "--page", str(page)]) == 0
    assert page.read_text() == render.page(whole())


@pytest.mark.parametrize("wrong", [["no_such_family"], ["--only", "train"], ["--again", "everything"]])
def test_a_word_the_command_does_not_know_is_wrong_usage(wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(wrong)


def test_others_are_what_neither_we_nor_our_children_used() -> None:
    assert 0 <= timing.Others().share() <= 1
    assert machine.ticks()[1] >= machine.ticks()[0] > 0
