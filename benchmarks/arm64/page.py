"""docs/arm64.md, from lines. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.arm64.hot_path import PerMessage
from benchmarks.arm64.inference import Inference
from benchmarks.arm64.records import Line, Where
from benchmarks.arm64.variants import VARIANTS
from benchmarks.tables import table
from export.arm64.cores import CORES

HEAD = """# Arm, without a board

Made by `make bench-arm64`, not by hand. `make check-arm64` counts anew, and fails where a count is more than 1 % off.

"""
AIM = 3.0
MEANING = """
## What the figures say, and what not

They are **instructions**, counted by QEMU in an emulated user mode: each translated block adds its length. They are no
time. They know nothing of caches, memory, pipelines that take two instructions at once, clocks or heat; a ratio between
int8 and float32 here may be another one on a board. They are what noise cannot touch: a change of 1 % is seen, on a
machine that does other things, and it is a change of the code or of a library. Two runs differ by a few instructions in
100,000, and where a kernel of ONNX Runtime minds how its memory is aligned by up to 1 in 1,000.

- A count holds for the versions above. Int8 needs fewer instructions where the processor has the dot product (A76).
- voice_activity is a recurrent net of somebody else's, its state carried from run to run, in float32 alone.
- int8, pruned and chosen are the fastest of their kind by time **on x86**, which has VNNI, int8 without regard to
  accuracy; a search with `--target emulated:a72` may choose others. Of accuracy each bundle's card tells.
- One inference is `Session.predict` of one window as the daemon calls it, Python included: of small models that is the
  greater part, and no quantization makes it less.
- Golden: how far the outputs of the golden windows are from those of x86, by the same rule as the tests: bits equal,
  steps of the last quantization (2 are allowed), or a share of the largest output (1e-5 is allowed).
- A message is what the daemon does from the bytes of a read to the bytes of its write: cut frames, decode, window,
  infer, decide, count, time, store, acknowledge, publish. The kernel's work is not in it: a system call is one
  instruction. The same messages feed the script of an afternoon (`benchmarks/naive.py`, paho's own loop).
- The broker's end is played by the guest itself, uncounted, over TCP on loopback, since that is what paho connects to:
  MQTT 5 for the daemon, 3.1.1 for the script, each its default. At QoS 1 it acknowledges results at once, in a read of
  its own, as a broker with nothing else to say does; what that makes a subject do is counted. Under load a broker's
  acknowledgements come with the next messages, and cost the daemon less.
- 1 message a read is light load, 64 what has gathered while the device did something else; at most 100 KB are one read.
- To read a clock costs both next to nothing, and is no system call: a board's Linux answers without one, the emulator
  cannot. The clocks are played, and stand still but for 10 us a look: what is due every quarter second or more seldom
  (metrics, the latency log, deletions by age) never falls due.
- The daemon has no watchdog, and infers inline, whatever that takes under emulation: counts want one thread. It is not
  proven by the gate's child first. Garbage is collected before what is counted, so that no full collection falls into
  it; the daemon has frozen what its start has made, the script would have to look at it.
- "Without inference" takes off what the subject spends on it: the daemon its session's prediction of the batch it
  makes, the script ONNX Runtime's run of one window after the other.
- Not shown by emulation: time, heat, power, GPUs, faults of a CPU's revision or firmware. `edge-runtime doctor` and the
  gate look at those on the board.
"""


TESTS = """
## What is tested there

`make test` runs a short form, `make test-arm64` all of it: bookworm (Python 3.11) as on A53, A72 and A76, trixie
(Python 3.13) as on A72. Both install the project's own wheel on aarch64 wheels alone, and are skipped with the reason
where root, binfmt_misc, mmdebstrap or QEMU is missing. Run as root, they register qemu-aarch64 with the kernel
(binfmt_misc) until it restarts.

- `edge-runtime doctor`: nothing fails; the dot product is found on the A76 alone.
- The gate on every committed bundle: labels of the golden windows equal; outputs identical to the bit where the whole
  graph is static int8, within two steps of the last quantization where parts of it are float, 1e-5 of the largest
  output for float32 ([the rule](../benchmarks/arm64/arithmetic.py)). No committed bundle is static int8 as a whole;
  that is shown on a u8s8 product made in the test, whose sums need 32 bit.
- The demo over a mosquitto of the same userland: the alarm is raised, the ledger balances.
- The device package's unit tests, but for those that need what has no aarch64 wheel, and a few that the emulator itself
  fails, [each with its reason](../tests/arm64/unit_files.py).
- The same bundles on x86 without VNNI (emulated Haswell): `tests/test_committed_bundles.py`.

What the daemon needs of memory is in [memory](memory.md), measured on x86.
"""


def page(lines: Sequence[Line]) -> str:
    """Raises ValueError without the line that says where."""
    where = next((line for line in lines if isinstance(line, Where)), None)
    if where is None:
        raise ValueError("no results: run python -m benchmarks.arm64")
    return HEAD + _where(where) + models(lines) + messages(lines) + MEANING + TESTS


def _where(where: Where) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in where.versions.items())
    debian = ", ".join(f"{name} {version}" for name, version in where.debian.items())
    boards = "; ".join(f"{name.upper()} ({core.name}): {core.boards}" for name, core in CORES.items())
    return (
        f"- emulated: {where.qemu}, user mode, Debian {where.suite} ({debian})\n"
        f"- processors: {boards}\n- versions: {versions}\n"
        f"- commit {where.git}, {where.date}\n\n"
    )


def models(lines: Sequence[Line]) -> str:
    """One table an example: its variants, each core beside the others."""
    found = [line for line in lines if isinstance(line, Inference)]
    parts = ["## Instructions of one inference\n"]
    for example in dict.fromkeys(line.example for line in found):
        own = {(line.variant, line.core): line for line in found if line.example == example}
        head = [
            "",
            "precision",
            "ONNX KB",
            *(f"{core.upper()}" for core in CORES),
            *(f"golden {core.upper()}" for core in CORES),
        ]
        rows = [_variant(own, variant) for variant in VARIANTS if any(name == variant for name, _ in own)]
        parts.append(f"### {example}\n\n{table(head, rows)}")
    return "\n".join(parts)


def _variant(own: dict[tuple[str, str], Inference], variant: str) -> list[str]:
    found = {core: own.get((variant, core)) for core in CORES}
    one = next(line for line in found.values() if line)
    counts = [_count(line, own.get(("float32", core))) for core, line in found.items()]
    return [variant, one.precision, f"{one.onnx / 1000:.1f}", *counts, *(_golden(line) for line in found.values())]


def _count(line: Inference | None, float32: Inference | None) -> str:
    if line is None:
        return "-"
    if float32 is None or line.variant == "float32":
        return f"{line.median:,}"
    fewer = float32.median / line.median
    return f"{line.median:,} ({f'{fewer:.2f}x fewer' if fewer >= 1 else f'{1 / fewer:.2f}x as many'})"


def _golden(line: Inference | None) -> str:
    if line is None:
        return "-"
    return f"**no**: {line.proof.refused}" if line.proof.refused else line.proof.exactness


def messages(lines: Sequence[Line]) -> str:
    """The daemon beside the script: instructions a message, and without the model's own."""
    found = [line for line in lines if isinstance(line, PerMessage)]
    cells = {(line.workload, line.qos, line.read_messages, line.core, line.subject): line for line in found}
    rows = []
    for workload, qos, size in dict.fromkeys((line.workload, line.qos, line.read_messages) for line in found):
        row = [f"{workload}, QoS {qos}", str(size)]
        for core in CORES:
            naive, daemon = (cells.get((workload, qos, size, core, subject)) for subject in ("naive", "daemon"))
            row += _beside(naive, daemon)
        rows.append(row)
    head = ["", "messages a read"]
    for core in CORES:
        head += [f"{core.upper()} script", "daemon", "times fewer", "without inference", "system calls"]
    return f"\n## Instructions of one message\n\n{_aim(cells)}\n\n{table(head, rows)}"


def _aim(cells: Mapping[tuple[str, int, int, str, str], PerMessage]) -> str:
    """How many of the daemon's lines reach AIM."""
    ratios = [
        naive.instructions_per_message / daemon.instructions_per_message
        for (*key, subject), daemon in cells.items()
        if subject == "daemon" and (naive := cells.get((*key, "naive")))  # type: ignore[arg-type]
    ]
    reached = sum(ratio >= AIM for ratio in ratios)
    return f"The aim is {AIM:g} times fewer than the script: reached in {reached} of {len(ratios)} of these lines."


def _beside(naive: PerMessage | None, daemon: PerMessage | None) -> list[str]:
    if naive is None or daemon is None:
        return ["-"] * 5
    own = [line.instructions_per_message - line.inference_per_message for line in (naive, daemon)]
    wrong = "" if naive.is_right and daemon.is_right else " **wrong results**"
    return [
        f"{naive.instructions_per_message:,}",
        f"{daemon.instructions_per_message:,}{wrong}",
        f"{naive.instructions_per_message / daemon.instructions_per_message:.2f}x",
        f"{own[0] / own[1]:.2f}x",
        f"{naive.calls_per_message:g} / {daemon.calls_per_message:g}",
    ]
