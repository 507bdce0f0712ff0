"""A folder of files that are whole or not there: each begins with the digest of what follows.

Many may write at once, and a write may be cut short: what does not hold its digest counts as not kept.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from edge_runtime.errors import ExportError

DIGEST_BYTES = 32


def read(path: Path) -> bytes | None:
    """What was written, None when it was not, or not wholly. Raises ExportError when it cannot be read."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from error
    digest, content = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def write(path: Path, content: bytes) -> None:
    """Raises ExportError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            file.write(hashlib.sha256(content).digest() + content)
        Path(file.name).replace(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror}") from error
