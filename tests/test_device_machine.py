from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.device.board import throttling
from edge_runtime.device.machine import architecture, c_library, processor, python

ARM = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: {features}
CPU part\t: 0xd0b

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""


@pytest.mark.parametrize(
    ("system", "machine", "bits", "status", "words"),
    [
        ("Linux", "x86_64", 64, "ok", "64-bit Python"),
        ("Linux", "aarch64", 64, "ok", "aarch64"),
        ("Linux", "aarch64", 32, "fail", "a 32-bit system on a 64-bit kernel"),
        ("Linux", "armv7l", 32, "fail", "a 32-bit system, for which there is no ONNX Runtime"),
        ("Linux", "riscv64", 64, "warn", "PyPI has no ONNX Runtime"),
        ("Darwin", "arm64", 64, "warn", "not tested"),
    ],
)
def test_only_64_bit_linux_on_x86_and_arm_is_ok(system: str, machine: str, bits: int, status: str, words: str) -> None:
    found = architecture(system, machine, bits)

    assert (found.status, words in found.found) == (status, True)
    assert bool(found.advice) == (status != "ok")


@pytest.mark.parametrize(
    ("version", "status"), [((3, 9, 2), "fail"), ((3, 10, 0), "ok"), ((3, 13, 9), "ok"), ((3, 14, 0), "warn")]
)
def test_python_3_10_to_3_13_is_ok(version: tuple[int, int, int], status: str) -> None:
    assert python(version).status == status


@pytest.mark.parametrize(
    ("name", "version", "musl", "status"),
    [
        ("glibc", "2.36", False, "ok"),
        ("glibc", "2.28", True, "ok"),
        ("glibc", "2.27", False, "fail"),
        ("", "", True, "fail"),
        ("libc", "", True, "fail"),
        ("", "", False, "warn"),
    ],
)
def test_musl_and_an_old_glibc_fail(tmp_path: Path, name: str, version: str, musl: bool, status: str) -> None:
    if musl:
        (tmp_path / "ld-musl-aarch64.so.1").touch()

    assert c_library(name, version, lib=tmp_path).status == status


def test_the_processor_tells_what_int8_will_gain(tmp_path: Path) -> None:
    for name, text in {
        "a72": ARM.format(features="fp asimd evtstrm crc32 cpuid"),
        "a76": ARM.format(features="fp asimd crc32 atomics fphp asimdhp asimddp"),
        "vnni": "model name\t: EPYC: a\nflags\t\t: fpu avx2 avx_vnni\n",
        "avx2": "model name\t: Old\nflags\t\t: fpu avx2\n",
    }.items():
        (tmp_path / name).write_text(text)

    def found(machine: str, name: str) -> str:
        finding = processor(machine, 4, cpuinfo=tmp_path / name)
        assert finding.status == "ok"
        return finding.found

    assert found("aarch64", "a72") == "Raspberry Pi 5 Model B Rev 1.0, 4 cores; no dot product: int8 gains less"
    assert found("aarch64", "a76").endswith("asimddp (dot product), asimdhp (float16)")
    assert found("x86_64", "vnni") == "EPYC: a, 4 cores; VNNI: int8 is exact and fast"
    assert "no VNNI" in found("x86_64", "avx2")


def test_a_hidden_cpuinfo_is_a_warning(tmp_path: Path) -> None:
    found = processor("aarch64", 4, cpuinfo=tmp_path / "none")

    assert (found.status, "No such file" in found.found) == ("warn", True)


def pi(root: Path, model: str = "Raspberry Pi 4 Model B Rev 1.4\x00") -> Path:
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/model").write_text(model)
    return root


def test_what_is_no_raspberry_pi_has_no_finding(tmp_path: Path) -> None:
    assert throttling(root=tmp_path, ask=lambda: "throttled=0x50005") == []
    assert throttling(root=pi(tmp_path, "NVIDIA Jetson Orin Nano"), ask=lambda: "throttled=0x50005") == []


@pytest.mark.parametrize(
    ("printed", "status", "words", "advice"),
    [
        ("throttled=0x0", "ok", "neither", ""),
        ("throttled=0x50005", "warn", "now: undervoltage, throttled; since the start: undervoltage, throttled", "5 V"),
        ("throttled=0x10000", "warn", "; since the start: undervoltage", "5 V"),
        ("throttled=0x80008", "warn", "now: soft temperature limit", "cool"),
        ("", "warn", "cannot be read", "video"),
        ("VCHI initialization failed", "warn", "cannot be read", "video"),
        ("throttled=zz", "warn", "cannot be read", "video"),
    ],
)
def test_a_raspberry_pi_says_what_it_suffered(
    tmp_path: Path, printed: str, status: str, words: str, advice: str
) -> None:
    (found,) = throttling(root=pi(tmp_path), ask=lambda: printed)

    assert (found.name, found.status) == ("board", status)
    assert words in found.found
    assert advice in found.advice


@pytest.mark.parametrize(("alarm", "status"), [("0\n", "ok"), ("1\n", "warn")])
def test_without_the_firmware_the_voltage_sensor_answers(tmp_path: Path, alarm: str, status: str) -> None:
    for number, name in enumerate(("cpu_thermal", "rpi_volt")):
        sensor = pi(tmp_path) / f"sys/class/hwmon/hwmon{number}" if not number else tmp_path / "sys/class/hwmon/hwmon1"
        sensor.mkdir(parents=True)
        (sensor / "name").write_text(f"{name}\n")
    (tmp_path / "sys/class/hwmon/hwmon1/in0_lcrit_alarm").write_text(alarm)
    (found,) = throttling(root=tmp_path, ask=lambda: "")

    assert found.status == status
    assert "undervoltage" in found.found
