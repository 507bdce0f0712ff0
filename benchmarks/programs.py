"""The C programs, built with the machine's own compiler when the benchmarks run."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec

SOURCES = Path(__file__).parent
FOLDER = SOURCES.parent / "build" / "benchmarks" / "bin"
COMPILE = ("cc", "-std=gnu11", "-O2", "-Wall", "-Wextra")


class CompilerError(Exception):
    """There is no C compiler, or it refuses a source."""


class Programs(msgspec.Struct, frozen=True):
    """Where the built programs lie."""

    loadgen: Path
    httpgen: Path
    echo: Path


def build(folder: Path = FOLDER) -> Programs:
    """Compile what is older than its sources. Raises CompilerError."""
    folder.mkdir(parents=True, exist_ok=True)
    return Programs(*(_built(folder, name) for name in Programs.__struct_fields__))


def words(options: Mapping[str, object]) -> tuple[str, ...]:
    """Options and their values as a command line has them."""
    return tuple(str(word) for option in options.items() for word in option)


def compiler() -> str:
    """Name and version. Raises CompilerError."""
    return _cc("--version").splitlines()[0].removeprefix("cc ")


def _built(folder: Path, name: str) -> Path:
    program, sources = folder / name, [SOURCES / f"{name}.c", *SOURCES.glob("*.h")]
    if not program.exists() or program.stat().st_mtime <= max(path.stat().st_mtime for path in sources):
        _cc(*COMPILE[1:], "-o", str(program), str(sources[0]))
    return program


def _cc(*words: str) -> str:
    try:
        done = subprocess.run([COMPILE[0], *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompilerError(
            f"cc cannot be run ({error.strerror}); install it: sudo apt-get install gcc libc6-dev"
        ) from error
    if done.returncode:
        raise CompilerError(f"cc {' '.join(words)} failed: {done.stderr.strip()[-800:]}")
    return done.stdout
