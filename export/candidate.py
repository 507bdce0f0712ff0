"""A candidate made, judged on validation and timed on the target; a step or a process that fails is a result."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from edge_runtime.errors import ExportError, ModelError
from export import probe, space, to_onnx
from export.artifact import BATCH, Artifact, outputs_of
from export.cache import Cache
from export.evaluate import Evaluation, evaluate
from export.measure import Cost
from export.probe import Failure
from export.recipe import Budget, Progress
from export.slim import slim
from export.space import NARROWER, TRAINS, Chain, Move
from export.targets import Target
from export.task import Task

FAR = 3.0
"""A drop of more than so many times what is allowed is not timed: no repair reaches that far."""
LEAST_FAR = 0.05
AWARE = 2.5
"""Times as long an epoch with quantization in the loop takes; 2.1 was measured."""


class Measured(msgspec.Struct, frozen=True):
    """A candidate and what was found out about it.

    artifact: as it would ship, None when a step refused. cost: of a window on the target, None when it was not found
    out. seconds: what making, judging and timing it took, when it was done and not remembered. failure: why it cannot
    run, "" when it does.
    """

    chain: Chain
    artifact: Artifact | None = None
    cost: Cost | None = None
    validation: Evaluation | None = None
    test: Evaluation | None = None
    failure: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return space.named(self.chain)

    @property
    def size_kb(self) -> float:
        return self.artifact.size_kb if self.artifact else 0.0

    @property
    def drop(self) -> float:
        """Of the metric against float32, on validation."""
        return self.validation.drop.value if self.validation else 0.0


class _Kept(msgspec.Struct, frozen=True):
    """What the cache remembers of a measured candidate."""

    cost: Cost | None
    validation: Evaluation | None
    failure: str
    seconds: float


class OutOfTime(Exception):  # noqa: N818  no error: the search goes on with what needs no training
    """A training would end past the search's time limit; its text is the candidate's name."""


class Trial:
    """Measures candidates of one task on one target, each once, and remembers them in order.

    left_out: names of candidates whose training was not begun for want of time.
    """

    def __init__(
        self,
        task: Task,
        target: Target,
        cache: Cache,
        *,
        progress: Progress,
        deadline_s: float = math.inf,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """deadline_s: by the clock now_s, of the last training's end."""
        self.task = task
        self._target = target
        self._cache = cache
        self._deadline_s = deadline_s
        self._now_s = now_s
        self._progress = progress
        self._measured: dict[str, Measured] = {}
        self.left_out: list[str] = []

    @property
    def measured(self) -> tuple[Measured, ...]:
        return tuple(self._measured.values())

    @contextmanager
    def within_time(self) -> Iterator[None]:
        """Ends what is done in it before a training for which no time is left, and notes in left_out which."""
        try:
            yield
        except OutOfTime as training:
            self.left_out.append(str(training))

    def measure(self, chain: Chain) -> Measured:
        """The candidate's figures. Raises OutOfTime where a training would end past the deadline."""
        key = self._cache.key(chain)
        if key not in self._measured:
            known = self._remembered(chain)
            if known is None or not self._is_timed(known):
                self._check_time(chain)
                known = self._found(chain)
            self._measured[key] = known
        return self._measured[key]

    def test(self, candidate: Measured) -> Measured:
        """The candidate with its evaluation on the test split, where there is one."""
        if self.task.test is None or candidate.artifact is None:
            return candidate
        return msgspec.structs.replace(candidate, test=self._evaluate(self._cache.perform(candidate.chain), "test"))

    def sensitive(self, chain: Chain) -> tuple[str, ...]:
        """Names of the nodes that a chain's static int8 hurts, the worst first; none where that cannot be found out."""
        from export.sensitivity import sensitivity

        *before, move = chain
        self._progress(f"{space.named(chain)}: which layers it hurts")
        scheme, method = str(move.settings["scheme"]), str(move.settings["method"])
        float32 = self._cache.perform(tuple(before))
        try:
            found = sensitivity(float32, self.task.calibrate, scheme=scheme, method=method)
        except (ExportError, ModelError) as error:
            self._progress(f"{space.named(chain)}: which layers it hurts is not known: {error}")
            return ()
        return tuple(layer.name for layer in found)

    def _is_timed(self, known: Measured) -> bool:
        """Whether it was, or need not be: what was too far for another budget may be near enough for this one.

        Where milliseconds decide, those of another day do not count; ratios are taken in one run and hold.
        """
        far = known.validation is not None and is_far(known.validation, self.task.budget)
        return bool(known.failure) or far or (known.cost is not None and self.task.budget.p95_ms is None)

    def _check_time(self, chain: Chain) -> None:
        for length, move in enumerate(chain):
            before, whole = chain[:length], chain[: length + 1]
            if move.kind not in TRAINS or self._cache.is_made(whole):
                continue
            if self._now_s() + self._training_s(before, move) > self._deadline_s:
                raise OutOfTime(space.named(whole))

    def _training_s(self, before: Chain, move: Move) -> float:
        """At most, by an epoch of the network that it begins with, or of the first that was trained; else 0.

        Networks only become narrower: an epoch of what a step makes takes no longer than one of what it began with.
        """
        trained = [m for m in self.measured if m.chain and m.chain[-1].kind in NARROWER and not m.failure]
        like = next((m for m in trained if m.chain == before), trained[0] if trained else None)
        if like is None:
            return 0.0
        epochs = space.number(move, "epochs") / space.number(like.chain[-1], "epochs")
        return like.seconds * epochs * (AWARE if move.kind == "qat" else 1.0)

    def _found(self, chain: Chain) -> Measured:
        begun_s = self._now_s()
        self._progress(f"{space.named(chain)}: making")
        try:
            found = self._judged(chain, self._cache.perform(chain))
        except (ExportError, ModelError) as error:
            found = Measured(chain, failure=str(error))
        judged = found
        if not found.failure and found.validation and not is_far(found.validation, self.task.budget):
            found = self._timed(found)
        seconds = self._now_s() - begun_s
        kept = _Kept(found.cost, found.validation, judged.failure, seconds)  # a target that failed is asked again
        self._cache.remember(chain, self._figures, kept)
        return msgspec.structs.replace(found, seconds=seconds)

    def _judged(self, chain: Chain, artifact: Artifact) -> Measured:
        """Loaded in a child process first: a crash must not be ours."""
        ships = shipped(self.task, artifact)
        first = self.task.validation.inputs[:BATCH]
        if isinstance(crash := probe.run(artifact, first, provider=self._target.provider), Failure):
            return Measured(chain, artifact=ships, failure=crash.reason)
        self._progress(f"{space.named(chain)}: evaluating")
        return Measured(chain, artifact=ships, validation=self._evaluate(artifact, "validation"))

    def _timed(self, found: Measured) -> Measured:
        if found.artifact is None:
            return found
        self._progress(f"{found.name}: timing beside float32")
        original, window = shipped(self.task, self.task.original), self.task.validation.inputs[:1]
        cost = self._target.cost(original, found.artifact, window, seed=self.task.seed)
        if isinstance(cost, Failure):
            return msgspec.structs.replace(found, failure=cost.reason)
        return msgspec.structs.replace(found, cost=cost)

    def _remembered(self, chain: Chain) -> Measured | None:
        """What is known of it; None where nothing is, and where the figures are known but the model cannot be had."""
        kept = self._cache.remembered(chain, self._figures, _Kept)
        if kept is None:
            return None
        try:
            artifact = shipped(self.task, self._cache.perform(chain))
        except ExportError:
            artifact = None
        if artifact is None and not kept.failure:
            return None
        return Measured(chain, artifact, kept.cost, kept.validation, None, kept.failure, kept.seconds)

    @property
    def _figures(self) -> str:
        """The name under which figures are kept: times are those of one machine."""
        return f"on-{hashlib.sha256(self._target.place.encode()).hexdigest()[:8]}"

    def _evaluate(self, artifact: Artifact, name: str) -> Evaluation:
        split = self.task.splits()[name]
        outputs = outputs_of(artifact, split.inputs, provider=self._target.provider)
        return evaluate(self.task, split, outputs, self.task.reference[name])


def shipped(task: Task, artifact: Artifact) -> Artifact:
    """What a device gets: scores where the network gives logits, and nothing that nobody reads."""
    return slim(to_onnx.with_scores(artifact) if task.output == "logits" else artifact)


def is_far(found: Evaluation, budget: Budget) -> bool:
    return budget.max_drop is not None and found.drop.value > max(FAR * budget.max_drop, LEAST_FAR)
