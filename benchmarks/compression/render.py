"""The page made from the JSON lines. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.compression import sections, show
from benchmarks.compression.code import DIRTY
from benchmarks.compression.families import FAMILIES
from benchmarks.compression.figures import Figures
from benchmarks.compression.records import CHOSEN, Line, Searched, Timed, Trained, Where
from benchmarks.figures import TRUSTED_SHARE
from benchmarks.results import Machine

HEAD = """\
# Compression

Made by `make bench-export` from `benchmarks/results/compression/*.jsonl`; do not edit. What `edge-export compress`
finds for each family of models, and what others make of the same file with the same calibration windows. Sizes are of
the ONNX file that lies in the bundle, on the machine below and on no other.
"""

HOW = """\
## How to read it

- *Size*: bytes of the float32 ONNX file over bytes of the other one, both as `edge-export` packs them (softmax at the
  end where the network gives logits, short names, no shapes between nodes), nothing zipped; of the first fold, with
  the range over the folds where they differ. *As a bundle*: with manifest, golden windows, reference and card, the
  same in float32: of a small network, most of the bundle is golden windows, which do not shrink with it. A peer's
  file is as the peer wrote it, with the same softmax. These originals are larger than their tasks need: a size is
  also a measure of that. A name such as "pruned 92%" is what was asked for, 1 - 0.7^7 of the channels; what was
  removed stands in the steps.
- *Drop*: float32's metric less the variant's, on the same test windows, in points of 100. Neither the network of a
  fold nor its training, calibration or fine-tuning has seen that fold's test windows. The choice of the moves has
  seen the first fold's training and validation windows, and where data is cross-validated, those are the other folds'
  test windows: only the first fold's row is of windows that nothing has seen. Speakers and machines are the same in
  training and test. The interval (95 %, Agresti and Min) and McNemar's exact test are about pairs: only windows that
  one of the two gets right count; windows are taken as independent. Of AUC: mean over folds of the difference, the
  interval by resampling whole machines within each fold 1,000 times (p is then at least 0.002); the search's own
  interval, on validation, resamples single windows.
- The search runs on the first fold alone; its budget is on the drop on validation with one standard error on top. The
  moves it chose are then made again on every other fold, fine-tuned to that fold's own network, whatever comes out; a
  pruning step that finds nothing more to remove there is left out, and told (a rule made after one fold of the 2-D
  CNN had failed by it). A drop beyond the budget on a fold is what a search on few validation windows can do; it
  stays in the table.
- The originals are trained as their recipes say and no longer. Fine-tuning after pruning trains on, taught by the
  original's outputs and the labels, for as many epochs as the chosen steps say: what it gives back is partly what
  more training would have given float32, plainly so where the compressed one is better. No float32 was trained as
  long for comparison. Peers do not train.
- *Speed*: float32 and the variant in turn in one process, one window, one thread, order shuffled; {processes}
  processes each, which take turns with the other variants'. The ratio is the median over processes of each one's
  median ratio; its interval (95 %) is that median's by ranks. It is of the first fold's file, one window and a minute
  or two: it says nothing of another day, fold, or processor. Times are median (quartiles) over all rounds; the ratio
  is not their quotient. The search's own timings are shorter, taken as it goes, and only good to choose by: where
  they say "equally fast", the smaller file is chosen, which the final timing may show to be the slower one.
- *Peers*: the same float32 graph and the same calibration windows, at their defaults: `quantize_dynamic`,
  `quantize_static` of ONNX Runtime, and both again after `quant_pre_process`, which its documentation recommends;
  NNCF `nncf.quantize` on the ONNX model. Their defaults quantize a log-mel front-end too, which its range of powers
  does not bear; so `quantize_static` and NNCF are run once more with `nodes_to_exclude` and `ignored_scope` naming
  its nodes, which `edge-export` knows by itself. Not run: `quant_pre_process` and exclusion together, which should do
  better (the search's own `int8-dynamic` of the LSTM says how much). `quant_pre_process` is run without its symbolic
  shape inference where that fails. They neither prune nor train, and know no budget: what they give is where users
  begin, not what these tools could do in expert hands. They, and the chosen one beside them, are judged on the first
  fold alone. A run of theirs is one window at a time.
- A peer that leaves a layer in float32 keeps its accuracy and gains nothing: read size, drop and speed together.
- `make bench-export` goes on where it was broken off; finished work lies in `.cache/compression`. With
  `COMPRESSION='digits_gru --only timing --again timing'` it takes one family's times again.
- Nothing here was measured on Arm. Int8 speed depends on the CPU's instructions (here: {numerics}).
"""


def page(lines: Sequence[Line]) -> str:
    """Markdown. Raises ValueError without a line."""
    found = [figures for family in FAMILIES if (figures := Figures(family, lines)).lines]
    asked = [figures for figures in found if figures.family.wanted]
    others = [figures for figures in found if not figures.family.wanted]
    parts = [HEAD, machine(lines), missing(found), mixed(found), "## What was asked for\n", show.table(asked)]
    parts += ["### Other models\n", show.table(others)] if others else []
    parts += ["## What others make of the same files\n", show.peers(found)]
    parts += ["## How long the search takes\n", show.searches(found)]
    parts += [sections.section(figures) for figures in found]
    return "\n".join(part for part in [*parts, _how(lines)] if part)


def machine(lines: Sequence[Line]) -> str:
    """Where, with what, of which code and when. Raises ValueError without a line."""
    if not lines:
        raise ValueError("no results: run python -m benchmarks.compression")
    places = [line for line in lines if isinstance(line, Where)]
    machines = [place.machine for place in places]
    versions = _distinct(", ".join(f"{name} {version}" for name, version in m.versions.items()) for m in machines)
    dates = sorted(line.date for line in lines)
    busiest = max(places, key=lambda place: place.others, default=None)
    others = f"at most {busiest.others:.1%} of the cores ({busiest.family})" if busiest else "nothing was timed"
    rows = [
        ("machine", _distinct(_described(m) for m in machines) or _distinct(line.device for line in lines)),
        ("versions", versions or "told with the timing"),
        ("commit", _commits(lines)),
        ("date", dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"),
        ("others during the timing", others),
    ]
    text = "".join(f"- {name}: {value}\n" for name, value in rows)
    if disturbed := [place.family for place in places if place.others > TRUSTED_SHARE]:
        text += (
            f"\n**Others used more than {TRUSTED_SHARE:.0%} of the cores while {', '.join(disturbed)} was timed: those "
            "times are not to be trusted.**\n"
        )
    if any(m.quick for m in machines):
        text += "\n**A quick run: it shows that the benchmark works, its numbers mean nothing.**\n"
    return text


def missing(found: Sequence[Figures]) -> str:
    """The families that are not in the results, or not whole."""
    known = {figures.family.name for figures in found}
    absent = [family.title for family in FAMILIES if family.name not in known]
    partial = [figures.family.title for figures in found if not is_whole(figures)]
    text = f"**Not measured: {'; '.join(absent)}.**\n" if absent else ""
    return text + (f"\n**Not finished: {'; '.join(partial)}.**\n" if partial else "")


def is_whole(figures: Figures) -> bool:
    """Whether search, folds and timing are there; with nothing chosen there is nothing to repeat."""
    searched: Searched | None = figures.searched
    if searched is None or not searched.chain:
        return searched is not None and bool(figures.of(Timed))
    is_timed = figures.times(CHOSEN) is not None or figures.failed_first(CHOSEN)
    return is_timed and len(figures.of(Trained)) == figures.family.folds


def mixed(found: Sequence[Figures]) -> str:
    """The families whose lines were made by several states of the code, or by one that no commit holds."""
    several = [figures for figures in found if len(figures.commits()) > 1]
    dirty = [figures for figures in found if figures not in several and figures.commits()[0].endswith(DIRTY)]
    text = f"**Made by more than one state of the code: {_by(several)}.**\n" if several else ""
    return text + (f"\n**Made by code that no commit holds: {_by(dirty)}.**\n" if dirty else "")


def _by(found: Sequence[Figures]) -> str:
    return ", ".join(f"{figures.family.title} ({'; '.join(figures.commits())})" for figures in found)


def _how(lines: Sequence[Line]) -> str:
    timed = [line for line in lines if isinstance(line, Timed)]
    return HOW.format(
        processes=" or ".join(sorted({str(line.times.processes) for line in timed})) or "no",
        numerics=", ".join(sorted({line.numerics or "unknown" for line in timed})) or "not timed",
    )


def _commits(lines: Sequence[Line]) -> str:
    """One, or each with the families whose lines were made by it."""
    families: dict[str, list[str]] = {}
    for line in lines:
        if line.family not in families.setdefault(line.git, []):
            families[line.git].append(line.family)
    return "; ".join(git + (f" ({', '.join(names)})" if len(families) > 1 else "") for git, names in families.items())


def _described(found: Machine) -> str:
    return f"{found.device}, {found.memory_gb} GB, {found.system}, kernel {found.kernel}"


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))
