"""What the benchmark of compression finds out, as JSON lines: each with the device, the commit and the day."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from benchmarks.results import Machine
from export.space import Chain

FLOAT32, CHOSEN = "float32", "chosen"
DATE = "%Y-%m-%d %H:%M UTC"
"""Of a line."""


class _Line(msgspec.Struct, tag_field="name", kw_only=True, frozen=True, forbid_unknown_fields=True):
    """device: CPU, cores, architecture. git: commit, with -dirty when the code differed from it. family: a recipe."""

    device: str
    git: str
    date: str
    family: str


class Trained(_Line, tag="trained", kw_only=True, frozen=True):
    """The original of a fold. train, validation, test: windows. parameters: of the network."""

    fold: int
    train: int
    validation: int
    test: int
    parameters: int


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the search, as the search saw it: on validation, timed as it went.

    drop, drop_low, drop_high: of the metric against float32, absolute. speedup: median over rounds. seconds: to make,
    judge and time it. None: not found out.
    """

    name: str
    status: str
    reasons: tuple[str, ...]
    size_kb: float
    seconds: float
    metric: float | None
    drop: float | None
    drop_low: float | None
    drop_high: float | None
    p50_us: float | None
    speedup: float | None


class Searched(_Line, tag="searched", kw_only=True, frozen=True):
    """chosen: what it did, in words, "" when nothing better was found. seconds: of all candidates and the rest of the
    search, without training the original; less than all where it was resumed. stopped: why early. chain: to repeat it.
    """

    effort: str
    seed: int
    max_drop: float | None
    windows: int
    seconds: float
    stopped: str
    chosen: str
    steps: tuple[str, ...]
    chain: Chain
    candidates: tuple[Candidate, ...]
    resumed: bool = False


class Repeated(_Line, tag="repeated", kw_only=True, frozen=True):
    """The chosen chain on another fold. left_out: why pruning steps of it were, as they found nothing to remove."""

    fold: int
    seconds: float
    left_out: tuple[str, ...] = ()


class Verdict(msgspec.Struct, frozen=True):
    """A variant against float32 on n test windows that both saw.

    before, after: the metric of float32 and of the variant. low, high: 95 % intervals. p_value: McNemar's exact test
    for accuracy, else of the paired bootstrap. lost, won: windows that only float32, only the variant got right.
    """

    n: int
    before: float
    before_low: float
    before_high: float
    after: float
    drop: float
    low: float
    high: float
    p_value: float
    lost: int | None
    won: int | None


class Judged(_Line, tag="judged", kw_only=True, frozen=True):
    """fold: None for all folds together. metric: accuracy or AUC."""

    variant: str
    fold: int | None
    metric: str
    verdict: Verdict


class Sized(_Line, tag="sized", kw_only=True, frozen=True):
    """Bytes of the ONNX file as it ships, of it after gzip, and of the bundle around it where one was made."""

    variant: str
    fold: int
    onnx: int
    gzip: int
    bundle: int | None


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Float32 and a variant in turn, one window, one thread, in several processes that took turns with the others'.

    rounds: of all processes. *_us: over all rounds. ratio: float32 / variant, the median over the processes' medians;
    ratio_low, ratio_high: its 95 % interval by ranks.
    """

    processes: int
    rounds: int
    p50_us: float
    q1_us: float
    q3_us: float
    p95_us: float
    float32_p50_us: float
    float32_q1_us: float
    float32_q3_us: float
    ratio: float
    ratio_low: float
    ratio_high: float


class Timed(_Line, tag="timed", kw_only=True, frozen=True):
    """numerics: the CPU's numeric family."""

    variant: str
    numerics: str
    times: Times


class Failed(_Line, tag="failed", kw_only=True, frozen=True):
    """A variant that was not made, does not run, or has no bundle, and why."""

    variant: str
    fold: int
    reason: str


class Peer(_Line, tag="peer", kw_only=True, frozen=True):
    """A peer made its file. version: of the package. seconds: it took."""

    variant: str
    version: str
    seconds: float


class Where(_Line, tag="where", kw_only=True, frozen=True):
    """The machine, before the timing of a family. others: share of all cores that others used during it."""

    machine: Machine
    others: float


Line = Trained | Searched | Repeated | Judged | Sized | Timed | Failed | Peer | Where


def write(path: Path, lines: Iterable[Line]) -> None:
    """All of a family's lines, or none: the file is there when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    partial.replace(path)


def read(folder: Path) -> list[Line]:
    """Every line of a folder's files."""
    decoder = msgspec.json.Decoder(Line)
    return [line for path in sorted(folder.glob("*.jsonl")) for line in decoder.decode_lines(path.read_bytes())]
