"""The long form of the fault suite: `make chaos`. Writes results/reliability.jsonl and docs/reliability.md.

python chaos.py [--quick] [--seed N] [--only PHASE]...     phases: tests kills mixed storm wear; all of them by default
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "integration"), str(REPOSITORY)]

from broker import Broker, until  # noqa: E402  the path above
from outcome import RESULTS, Line, Machine, append, growth, read  # noqa: E402
from reliability import PAGE, render  # noqa: E402
from scene import NUMBERED_KINDS, Input, inputs  # noqa: E402
from sender import Sender  # noqa: E402
from subject import POINTS  # noqa: E402
from test_storm import capacity  # noqa: E402
from trial import AUTOSAVE_S, PERSISTENT, Trial  # noqa: E402
from wear import measure_wear  # noqa: E402

from benchmarks import machine as machines  # noqa: E402

KEEPALIVE_S = 1
QUICK_LINE = f"keepalive_s = {KEEPALIVE_S}\nconnect_timeout_s = 1.0"
QUEUE = 64
TIMES = 10
NAMED_SHARE = 0.3


class Sizes(argparse.Namespace):
    """How long each phase is. kills, messages: at least. Seconds for the others."""

    def __init__(self, *, quick: bool) -> None:
        super().__init__()
        self.kills, self.messages, self.rate = (8, 3_000, 300) if quick else (220, 104_000, 320)
        self.mixed_s, self.storm_s, self.wear_s = (20, 15, 20) if quick else (600, 600, 150)
        self.warm_up_s = 5 if quick else 120
        self.test_seeds = (1,) if quick else (1, 2, 3)


@contextmanager
def quiet_broker(*, ends: bool = False) -> Iterator[tuple[Broker, Path]]:
    """A broker that logs next to nothing, and a folder; both are gone afterwards. ends: it keeps all over its end."""
    with tempfile.TemporaryDirectory(prefix="edge-chaos-") as name:
        folder = Path(name)
        (folder / "kept").mkdir()
        kept = (*PERSISTENT, f"persistence_location {folder}/kept/") if ends else PERSISTENT[-1:]
        broker = Broker(folder / "broker", lines=(*kept, "log_type none", "log_type subscribe"))
        broker.start()
        try:
            yield broker, folder
        finally:
            broker.close()


def say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def tests(sizes: Sizes, seed: int, out: Path) -> None:
    """Every test of the suite, long, with several seeds."""
    for one in sizes.test_seeds:
        say(f"tests, seed {seed + one}")
        environment = {**os.environ, "EDGE_CHAOS": "long", "EDGE_CHAOS_SEED": str(seed + one)}
        environment["EDGE_CHAOS_RESULTS"] = str(out)
        subprocess.run([sys.executable, "-m", "pytest", "-q", str(HERE)], cwd=REPOSITORY, env=environment, check=False)


def kills(sizes: Sizes, seed: int, out: Path) -> None:
    """SIGKILL over and over, at random moments and at named points."""
    with quiet_broker() as (broker, folder):
        lines = {"more": "[store]\nreplay_per_s = 5000.0", "mqtt": "receive_maximum = 257"}  # so that lives get far
        trial = Trial(folder / "trial", broker, seed=seed, count=sizes.messages, rate=sizes.rate, **lines)
        points = Counter[str]()
        try:
            trial.begin()
            while trial.node.kills < sizes.kills or not trial.sender.done:
                if trial.random.random() < NAMED_SHARE and not trial.sender.done:
                    point = trial.random.choice(POINTS)
                    trial.kill_and_restart(f"{point}:{trial.random.randint(1, 200)}")
                    until(lambda: not trial.node.alive or trial.sender.done, what=f"{point} is passed", timeout_s=60)
                    if not trial.node.alive:
                        trial.node.await_death()
                        points[point] += 1
                        trial.node.start()
                else:
                    trial.kill_and_restart()
                if trial.node.kills % 20 < 2:
                    say(f"kills {trial.node.kills}, sent {trial.sender.sent}, results {trial.sink.results()}")
            verdict = trial.finish(timeout_s=120)
        finally:
            trial.close()
        append(trial.outcome("SIGKILL at random moments and at named points", verdict, points=dict(points)), out)


def sampled(trial: Trial, seconds: float, act: Callable[[], None]) -> list[tuple[float, float]]:
    """Resident memory each second, while act is done over and over for so long; (seconds, MB)."""
    begun_s, samples = time.monotonic(), []
    while (now_s := time.monotonic() - begun_s) < seconds:
        samples.append((now_s, trial.node.rss_mb))
        act()
        pause_s = 1.0 - (time.monotonic() - begun_s) % 1.0
        trial.live(pause_s)
    return samples


class Mischief:
    """One fault after the other, begun and ended between two samples; the process has to live through all of them."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.random, self.n = trial, random.Random(trial.seed), 0
        self.done = Counter[str]()
        self._left_s, self._undo = 3.0, self._heal
        self._broker_saved_s = time.monotonic()

    def __call__(self) -> None:
        """Called about each second."""
        self._left_s -= 1
        if self._left_s > 0:
            return
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()
            self._left_s = self.random.uniform(1, 4)
            return
        self._begin(
            self.random.choice(("slow", "drip", "cut", "reset", "half-close", "refuse", "stall", "broker", "stop"))
        )

    def _begin(self, name: str) -> None:
        proxy = self.trial.proxy
        assert proxy is not None
        self.n += 1
        self.done[name] += 1
        self._undo, self._left_s = self._heal, self.random.uniform(1, 5)
        match name:
            case "slow":
                proxy.latency_s, proxy.jitter_s = 0.03, 0.05
            case "drip":
                proxy.drip_bytes = self.random.randint(1, 40)
            case "refuse":
                proxy.refusing = True
                proxy.cut()
            case "stall":
                proxy.stall()
            case "broker":
                self._end_broker()
            case "stop":
                os.kill(self.trial.node.pid, signal.SIGSTOP)
                self._undo = self._go_on
            case _:
                {"cut": proxy.cut, "reset": proxy.reset, "half-close": proxy.half_close}[name]()

    def _heal(self) -> None:
        assert self.trial.proxy is not None
        self.trial.proxy.heal()

    def _go_on(self) -> None:
        os.kill(self.trial.node.pid, signal.SIGCONT)

    def _end_broker(self) -> None:
        """SIGTERM, or SIGKILL when it has had the time to save its sessions."""
        saved = time.monotonic() - self._broker_saved_s > 2 * AUTOSAVE_S + 1
        (self.trial.broker.kill if saved and self.random.random() < 0.5 else self.trial.broker.stop)()
        self._undo, self._left_s = self._begin_broker, self.random.uniform(0.5, 2)

    def _begin_broker(self) -> None:
        self.trial.broker.start()
        self._broker_saved_s = time.monotonic()

    def end(self) -> None:
        if self._undo is not None:
            self._undo()
        self._undo = None


def mixed(sizes: Sizes, seed: int, out: Path) -> None:
    """Faults of network, broker and scheduling in turn, and one process that lives through all of them."""
    rate = 150
    with quiet_broker(ends=True) as (broker, folder):
        trial = Trial(
            folder / "trial",
            broker,
            seed=seed,
            count=int(rate * sizes.mixed_s),
            rate=rate,
            kinds=NUMBERED_KINDS,
            through_proxy=True,
            mqtt=QUICK_LINE,
        )
        try:
            trial.begin()
            mischief = Mischief(trial)
            samples = sampled(trial, sizes.mixed_s, mischief)
            mischief.end()
            verdict = trial.finish(timeout_s=120)
        finally:
            trial.close()
        say(f"mixed: {dict(mischief.done)}")
        what = f"{mischief.n} faults of network, broker and scheduling in turn, one life"
        append(trial.outcome(what, verdict, times=mischief.n, points=dict(mischief.done)), out)
        append(growth("mixed faults", samples, warm_up_s=sizes.warm_up_s), out)


class Burst(Sequence[Input]):
    """Inputs of a storm, made when they are asked for."""

    def __init__(self, node: str, count: int) -> None:
        (first,) = inputs(0, 1, node=node, kinds=("burst",))
        self._node, self._count = node, count
        self._payload = json.loads(first.payload)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: slice) -> list[Input]:  # type: ignore[override]  only slices are asked for
        return [
            Input(f"{self._node}/{'ab'[i % 2]}/burst", json.dumps({**self._payload, "n": i // 2}).encode())
            for i in range(*place.indices(self._count))
        ]


def storm(sizes: Sizes, seed: int, out: Path) -> None:
    """Ten times what the model can take, all the time."""
    queue = f'queue = {{ max = {QUEUE}, when_full = "drop_oldest" }}'
    with quiet_broker() as (broker, folder):
        trial = Trial(folder / "trial", broker, seed=seed, count=20, rate=100, kinds=("burst",), pipeline=queue)
        rate = TIMES * capacity(folder / "trial" / "slow.edge")
        count = int(rate * sizes.storm_s * 1.2)
        name = f"storm-{trial.name}"
        trial.sender = Sender(broker.port, Burst(trial.name, count), client_id=name, rate=rate, window=1000)
        try:
            trial.node.start()
            trial.wait_subscribed()
            trial.sender.start()
            samples = sampled(trial, sizes.storm_s, lambda: None)
            sent = trial.sender.sent
            summary = trial.node.stop()
        finally:
            trial.close()
        (account,) = [one for one in summary["ledger"]["pipelines"] if one["pipeline"] == "storm"]
        say(f"storm: {sent} sent, {sent / sizes.storm_s:.0f}/s, {account['accepted']} worked off, {account['dropped']}")
        assert summary["balanced"]
        found = growth(f"storm: {sent / account['accepted']:.0f} messages sent for each worked off", samples,
                       warm_up_s=sizes.warm_up_s)  # fmt: skip
        append(found, out)


def wear(sizes: Sizes, seed: int, out: Path) -> None:
    """What the store writes at 10 messages a second."""
    with quiet_broker() as (broker, folder):
        for line in measure_wear(broker, folder, seconds=sizes.wear_s, seed=seed):
            append(line, out)


def describe(*, quick: bool) -> Machine:
    found = machines.describe(quick=quick)
    return Machine(
        device=found.device,
        system=found.system,
        kernel=found.kernel,
        memory_gb=found.memory_gb,
        versions={name: found.versions[name] for name in ("python", "mosquitto", "paho-mqtt", "onnxruntime")},
        commit=found.git,
        date=found.date,
        load=found.load,
        quick=quick,
    )


PHASES: dict[str, Callable[[Sizes, int, Path], None]] = {
    "kills": kills, "mixed": mixed, "storm": storm, "wear": wear, "tests": tests,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="show that it works; the numbers mean nothing")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--only", action="append", choices=PHASES, help="a phase; may be given several times")
    parser.add_argument("--out", type=Path, help="a results file of its own, and no page is written")
    options = parser.parse_args()
    out = options.out or RESULTS
    part = out.with_name(out.name + ".part")
    part.unlink(missing_ok=True)
    append(describe(quick=options.quick), part)
    for name in options.only or PHASES:
        say(f"phase {name}, seed {options.seed}")
        PHASES[name](Sizes(quick=options.quick), options.seed, part)
    lines: list[Line] = read(part)
    part.replace(out)
    page = render(lines)
    if options.out:
        sys.stdout.write(page)
    else:
        PAGE.write_text(page)
    return int("**no**" in page)


if __name__ == "__main__":
    raise SystemExit(main())
