"""Every error the package raises on purpose.

    EdgeRuntimeError
    ├── ConfigError          the configuration file says something impossible
    ├── DecodeError          a payload does not have the form its stream promises
    ├── BundleError          a bundle is truncated, corrupt, or does not do what it says
    ├── ModelError           ONNX Runtime refuses the model or returns what the manifest rules out
    │   └── ProviderError    an execution provider that was asked for is not to be had
    ├── DependencyError      an optional package is needed and absent, or the platform has none
    ├── RecordingError       a file is no recording, or one cannot be written
    ├── LatencyLogError      a file is no HdrHistogram interval log, or of another version
    ├── StoreBusyError       another process holds the store
    ├── TransportError       the broker cannot be reached or refuses us
    └── ExportError          a model cannot be exported, quantized or proven equal

Anything else that escapes is a bug and ends the process.
"""

from __future__ import annotations

import msgspec

DETAIL_CHARACTERS = 300
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be: a text in them need not be UTF-8."""


class EdgeRuntimeError(Exception):
    """Base of every error raised on purpose; its text is one line for the operator."""


class ConfigError(EdgeRuntimeError):
    """The configuration names something impossible."""

    def __init__(self, path: str, key: str, problem: str) -> None:
        super().__init__(f"{path}: {key}: {problem}" if key else f"{path}: {problem}")
        self.path = path
        self.key = key
        self.problem = problem


class DecodeError(EdgeRuntimeError):
    """A payload does not have the form its stream promises; reason is one word, for counting."""

    def __init__(self, topic: str, reason: str, detail: str) -> None:
        super().__init__(f"{topic}: {reason}: {detail[:DETAIL_CHARACTERS]}")
        self.topic = topic
        self.reason = reason
        self.detail = detail[:DETAIL_CHARACTERS]


class BundleError(EdgeRuntimeError):
    """A bundle is truncated, corrupt, or does not do what its manifest says."""

    def __init__(self, path: str, fact: str) -> None:
        super().__init__(f"{path}: {fact}")
        self.path = path
        self.fact = fact


class ModelError(EdgeRuntimeError):
    """ONNX Runtime refuses the model, or its outputs are not what the manifest says."""


class ProviderError(ModelError):
    """An execution provider that was asked for is not to be had."""

    def __init__(self, wanted: str, available: list[str], hint: str = "") -> None:
        super().__init__(f"execution provider {wanted} is not available; available: {', '.join(available)}{hint}")
        self.wanted = wanted
        self.available = available


class DependencyError(EdgeRuntimeError):
    """An optional package is needed and absent; the text says what to install."""


class RecordingError(EdgeRuntimeError):
    """A file is no recording, of a newer format, or cannot be written."""

    def __init__(self, path: str, fact: str) -> None:
        super().__init__(f"{path}: {fact}")
        self.path = path
        self.fact = fact


class LatencyLogError(EdgeRuntimeError):
    """A file is no HdrHistogram interval log with V2 histograms; line: from 1, 0 when it is about the whole file."""

    def __init__(self, path: str, line: int, fact: str) -> None:
        super().__init__(f"{path}, line {line}: {fact}" if line else f"{path}: {fact}")
        self.path = path
        self.line = line
        self.fact = fact


class StoreBusyError(EdgeRuntimeError):
    """Another process holds the store."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: another process holds it; only one edge-runtime may use a state_dir")
        self.path = path


class TransportError(EdgeRuntimeError):
    """The broker cannot be reached or refuses the connection."""


class ExportError(EdgeRuntimeError):
    """A model cannot be exported, quantized or proven equal; the text names the operator or the figure."""
