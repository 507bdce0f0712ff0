"""ONNX Runtime as it is installed here, tried in a child process: a wrong build kills who imports it."""

from __future__ import annotations

import importlib.metadata
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from edge_runtime.device.ort_child import Failed, Imported, Ran, Step
from edge_runtime.findings import Finding, fail, ok, warn
from edge_runtime.model.session import SessionSettings

CHILD = (sys.executable, "-m", "edge_runtime.device.ort_child")
CHILD_S = 120.0
NOT_STARTED = "could not be started"
MODULE = "onnxruntime/__init__.py"
STDERR_CHARACTERS = 300
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


def attempt(
    bundle: Path | None = None,
    settings: SessionSettings = SessionSettings(),  # noqa: B008  immutable
    *,
    command: Sequence[str] = CHILD,
    timeout_s: float = CHILD_S,
) -> Tried:
    """Import ONNX Runtime in a child process, and run a bundle's golden vectors there when one is given."""
    arguments = [] if bundle is None else [str(bundle), settings.provider]
    arguments += [] if bundle is None else [str(settings.intra_op_threads), str(settings.max_batch)]
    try:
        done = subprocess.run([*command, *arguments], capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        return _tried(error.stdout or b"", f"did not end within {timeout_s:g} s")
    except OSError as error:
        return Tried(ended=f"{NOT_STARTED}: {error.strerror}")
    return _tried(done.stdout, _ending(done.returncode, done.stderr))


def _tried(stdout: bytes, ended: str) -> Tried:
    """What others print between the steps is passed over."""
    tried = Tried(ended=ended)
    for line in stdout.splitlines():
        try:
            step = msgspec.json.decode(line, type=Step)
        except msgspec.DecodeError:
            continue
        match step:
            case Imported():
                tried = msgspec.structs.replace(tried, imported=step)
            case Ran():
                tried = msgspec.structs.replace(tried, ran=step)
            case Failed():
                tried = msgspec.structs.replace(tried, error=step.error)
    return tried


def _ending(code: int, stderr: bytes) -> str:
    if code == 0:
        return ""
    if code < 0:
        try:
            return f"died with {signal.Signals(-code).name}"
        except ValueError:
            return f"died with signal {-code}"
    last = (stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
    return f"ended with code {code}: {last[:STDERR_CHARACTERS]}"


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
