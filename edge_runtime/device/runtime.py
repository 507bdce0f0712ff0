"""ONNX Runtime as it is installed here, tried in a child process: a wrong build kills who imports it."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edge_runtime.device.ort_child import Failed, Imported, Ran, Step
from edge_runtime.findings import Finding, fail, ok, warn
from edge_runtime.model import child

CHILD = ("-m", "edge_runtime.device.ort_child")
CHILD_S = 120.0
NOT_STARTED = "could not be started"
MODULE = "onnxruntime/__init__.py"
INSTALL = "pip install 'edge-runtime[cpu]' (or [gpu] on a machine with an NVIDIA GPU, not both)"
OTHER_VERSION = "install another version of onnxruntime, newer or older, and run doctor again"
MEMORY_ADVICE = "the kernel ended it, most likely for want of memory (see dmesg): free some, or use a smaller model"
KNOWN_FAULTS = {
    "1.21.0": ("aarch64", "dies with SIGILL on a Raspberry Pi 4", "microsoft/onnxruntime#23957"),
    "1.23.0": ("aarch64", "dies with SIGSEGV in its KleidiAI code", "birdnet-team/birdnet-live-app#200"),
}


class Tried(msgspec.Struct, frozen=True):
    """How far the child came, and how it ended. ended: "" when as it should."""

    imported: Imported | None = None
    ran: Ran | None = None
    error: str = ""
    ended: str = ""


def attempt(bundle: Path | None = None, *, timeout_s: float = CHILD_S) -> Tried:
    """Import ONNX Runtime in a child process, and run the golden vectors there of a bundle that is known to be good."""
    arguments = [] if bundle is None else [str(bundle.absolute())]
    try:
        ended = child.run(CHILD, *arguments, timeout_s=timeout_s)
    except OSError as error:
        return Tried(ended=f"{NOT_STARTED}: {error.strerror}")
    tried = Tried(ended=_ending(ended, timeout_s))
    for line in ended.report.splitlines():
        match msgspec.json.decode(line, type=Step):
            case Imported() as imported:
                tried = msgspec.structs.replace(tried, imported=imported)
            case Ran() as ran:
                tried = msgspec.structs.replace(tried, ran=ran)
            case Failed() as failed:
                tried = msgspec.structs.replace(tried, error=failed.error)
    return tried


def _ending(ended: child.Ended, timeout_s: float) -> str:
    if ended.timed_out:
        return f"did not end within {timeout_s:g} s"
    if ended.signal_name:
        return f"died with {ended.signal_name}"
    return f"ended with code {ended.code}: {ended.last_line or 'no message'}" if ended.code else ""


def installed(path: Iterable[str] | None = None) -> dict[str, str]:
    """Distributions that bring the module `onnxruntime`, name to version. path: folders to look in, else sys.path."""
    found = importlib.metadata.distributions() if path is None else importlib.metadata.distributions(path=list(path))
    versions = {}
    for distribution in found:
        facts = distribution.metadata
        name = facts["Name"].lower().replace("_", "-") if "Name" in facts else ""
        if name.startswith("onnxruntime") and MODULE in map(str, distribution.files or ()):
            versions[name] = distribution.version
    return versions


def judge(tried: Tried, distributions: dict[str, str], machine: str) -> list[Finding]:
    """What importing it, and running a model on it, came to. distributions: as `installed` has them."""
    names = ", ".join(f"{name} {version}" for name, version in sorted(distributions.items()))
    fault = _known_fault(distributions, machine)
    findings = [_judge_run(tried, names, fault)]
    if len(distributions) > 1:
        found = f"{names}: they overwrite each other's files, and what runs is a mixture"
        findings.append(fail("onnxruntime.twice", found, f"uninstall them all, then: {INSTALL}"))
    return findings


def _judge_run(tried: Tried, names: str, fault: str) -> Finding:
    advice = f"{OTHER_VERSION}; this one {fault}" if fault else OTHER_VERSION
    if problem := trouble(tried):
        if "SIGKILL" in problem:
            advice = MEMORY_ADVICE
        elif NOT_STARTED in problem:
            advice = f"see that this user may run {sys.executable}"
        elif not names:
            advice = INSTALL
        return fail("onnxruntime", f"{names or 'not installed'}: {problem}", advice)
    imported, ran = tried.imported, tried.ran
    found = names or "not installed by pip"
    found += f": imported; {', '.join(imported.providers)}" if imported else ""
    found += f"; {ran.model} runs, golden error {ran.golden_error:.2g}" if ran else ""
    return warn("onnxruntime", f"{found}; this version {fault}", advice) if fault else ok("onnxruntime", found)


def trouble(tried: Tried) -> str:
    """Why the child did not do what it was asked, "" when it did."""
    if tried.ended:
        doing = "leaving the process" if tried.ran else "running a model" if tried.imported else "the import"
        return f"{doing} {tried.ended}"
    return tried.error or ("" if tried.imported else "said nothing")


def _known_fault(distributions: dict[str, str], machine: str) -> str:
    for version in distributions.values():
        where, what, source = KNOWN_FAULTS.get(version, ("", "", ""))
        if where == machine:
            return f"{what} ({source})"
    return ""
