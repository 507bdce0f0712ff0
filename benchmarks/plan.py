"""Which subjects are put under which loads, on which workloads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from benchmarks.generator import Load

WARM_UP_S = 0.25
BROKER, BARE = "broker", "bare"

MOST = Load("closed", 100, 1.0, WARM_UP_S)
ONE = Load("closed", 1, 0.5, WARM_UP_S)
HTTP_MOST = Load("closed", 32, 1.0, WARM_UP_S)
AT_1000 = Load("open", 1000, 1.5, WARM_UP_S)
AT_100 = Load("open", 100, 2.0, WARM_UP_S)
AT_50 = Load("open", 50, 4.0, WARM_UP_S)


class Case(msgspec.Struct, frozen=True):
    """One workload at one QoS over one kind of broker. loads: of each subject, in the order they are run."""

    workload: str
    qos: int
    broker: str
    loads: Mapping[str, Sequence[Load]]

    @property
    def key(self) -> tuple[str, int, str]:
        return self.workload, self.qos, self.broker

    @property
    def name(self) -> str:
        return f"{self.workload}, QoS {self.qos}, {self.broker}"


def _all(names: str, *loads: Load) -> dict[str, tuple[Load, ...]]:
    return dict.fromkeys(names.split(), loads)


PLAN = (
    Case(
        "feat64",
        0,
        "nodelay",
        _all("echo naive callbacks lane", MOST, ONE, AT_1000, AT_100)
        | _all("normal", MOST, AT_1000)
        | _all("broker echo-batch", MOST)
        | _all("on off", MOST, MOST, MOST)
        | _all("http", HTTP_MOST, ONE),
    ),
    Case(
        "win",
        0,
        "nodelay",
        _all("echo naive callbacks lane", MOST, ONE, AT_1000)
        | _all("broker echo-batch", MOST)
        | _all("http", HTTP_MOST, ONE),
    ),
    Case("win-raw", 0, "nodelay", _all("echo naive callbacks lane", MOST, AT_1000)),
    Case("samp-1", 0, "nodelay", _all("echo naive callbacks lane", MOST, AT_1000)),
    Case("samp-16", 0, "nodelay", _all("naive callbacks lane", MOST)),
    Case(
        "feat64",
        1,
        "nodelay",
        _all("echo naive callbacks lane normal", MOST, AT_1000) | _all("broker echo-batch full", MOST),
    ),
    Case("pump", 1, "nodelay", _all("echo naive callbacks lane", MOST, AT_100)),
    Case("feat64", 0, "stock", _all("echo naive lane", MOST, AT_1000)),
    Case("samp-16", 0, "stock", _all("naive lane", MOST)),
    Case("feat64", 1, "stock", _all("echo naive callbacks lane", ONE, AT_50)),
)
BARE_OF = {"feat64": "feat64", **dict.fromkeys(("win", "win-raw", "samp-1", "samp-16"), "win")}


class Selection(msgspec.Struct, frozen=True):
    """What of the plan is run; empty = all of it."""

    workloads: Collection[str] = ()
    subjects: Collection[str] = ()
    qos: Collection[int] = ()
    brokers: Collection[str] = ()

    def __bool__(self) -> bool:
        return any((self.workloads, self.subjects, self.qos, self.brokers))

    def cases(self) -> list[Case]:
        """The cases that are left, each with the subjects that are left."""
        wanted = [
            msgspec.structs.replace(
                case, loads={name: loads for name, loads in case.loads.items() if _asked(name, self.subjects)}
            )
            for case in PLAN
            if _asked(case.workload, self.workloads)
            and _asked(case.qos, self.qos)
            and _asked(case.broker, self.brokers)
        ]
        return [case for case in wanted if case.loads]

    def bare(self) -> list[str]:
        """Workloads whose model is measured alone; others have the same one."""
        wanted = [model for name, model in BARE_OF.items() if _asked(name, self.workloads)]
        return list(dict.fromkeys(wanted)) if _asked(BARE, self.subjects) else []


def _asked(value: object, wanted: Collection[object]) -> bool:
    return not wanted or value in wanted


def names() -> list[str]:
    """Of everything that can be measured."""
    return [*dict.fromkeys(name for case in PLAN for name in case.loads), BARE]
