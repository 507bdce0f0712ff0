"""What may go wrong with one measurement, and how the others go on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks.broker import BrokerError
from benchmarks.generator import GeneratorError
from benchmarks.processes import SubjectError
from benchmarks.programs import CompilerError
from benchmarks.results import Failed, Line, Machine

FAILURES = (BrokerError, CompilerError, GeneratorError, SubjectError)


def guarded(what: str, lines: Iterable[Line], machine: Machine) -> Iterator[Line]:
    """The lines; if making them fails, a last one that says so."""
    try:
        yield from lines
    except FAILURES as error:
        yield Failed(device=machine.device, git=machine.git, what=what, reason=str(error))
