from __future__ import annotations

import fcntl
import struct
from pathlib import Path

import pytest

from edge_runtime.device import board
from edge_runtime.device.board import ask_firmware
from edge_runtime.device.heat import Heat, heat

JETSON, PI = "NVIDIA Jetson Orin Nano", "Raspberry Pi 5 Model B Rev 1.0\x00"


def silent() -> str:
    return ""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def board_of(root: Path, model: str) -> Path:
    write(root / "proc/device-tree/model", model)
    return root


def thermal(root: Path, *zones: tuple[str, str]) -> Path:
    """zones: type and temp as the kernel has them."""
    for number, (kind, temp) in enumerate(zones):
        write(root / f"sys/class/thermal/thermal_zone{number}/type", f"{kind}\n")
        write(root / f"sys/class/thermal/thermal_zone{number}/temp", f"{temp}\n")
    return root


def coolers(root: Path, *found: tuple[str, str]) -> Path:
    """found: type and cur_state as the kernel has them."""
    for number, (kind, state) in enumerate(found):
        write(root / f"sys/class/thermal/cooling_device{number}/type", f"{kind}\n")
        write(root / f"sys/class/thermal/cooling_device{number}/cur_state", f"{state}\n")
    return root


@pytest.mark.parametrize(
    ("zones", "celsius"),
    [
        ([("cpu-thermal", "54321")], 54.321),
        ([("acpitz", "99000"), ("x86_pkg_temp", "41000"), ("iwlwifi_1", "88000")], 41.0),
        ([("CPU-therm", "50500"), ("soc0-thermal", "51500"), ("GPU-therm", "70000")], 51.5),
        ([("acpitz", "27800"), ("pch_skylake", "39000")], 39.0),
        ([("cpu-thermal", "-5000")], -5.0),
        ([("cpu-thermal", "-274000"), ("acpitz", "40000")], 40.0),
        ([("cpu-thermal", "149999")], 149.999),
        ([("cpu-thermal", "150000"), ("acpitz", "40000")], 40.0),
        ([("cpu-thermal", "-40000")], -40.0),
        ([("cpu-thermal", "-40001")], None),
        ([("cpu-thermal", "")], None),
        ([("cpu-thermal", "n/a")], None),
        ([], None),
    ],
)
def test_the_temperature_is_that_of_the_processor(
    tmp_path: Path, zones: list[tuple[str, str]], celsius: float | None
) -> None:
    assert heat(root=thermal(tmp_path, *zones), ask=silent).temperature_c == celsius


def test_a_zone_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    root = thermal(tmp_path, ("cpu-thermal", "50000"), ("soc-thermal", "60000"))
    (root / "sys/class/thermal/thermal_zone1/temp").unlink()

    assert heat(root=root, ask=silent).temperature_c == 50.0


@pytest.mark.parametrize(
    ("printed", "throttled"),
    [
        ("throttled=0x0", ()),
        ("throttled=0xf0000", ()),
        ("throttled=0x50005", ("undervoltage", "throttled")),
        ("throttled=0x8", ("soft temperature limit",)),
        ("throttled=0x2", ("frequency capped",)),
        ("", None),
        ("error=1", None),
    ],
)
def test_a_raspberry_pi_says_what_slows_it_down_now(
    tmp_path: Path, printed: str, throttled: tuple[str, ...] | None
) -> None:
    root = coolers(board_of(tmp_path, PI), ("cpufreq-cpu0", "0"))

    assert heat(root=root, ask=lambda: printed).throttled == throttled


@pytest.mark.parametrize(("alarm", "throttled"), [("1\n", ("undervoltage",)), ("0\n", None)])
def test_a_raspberry_pi_whose_firmware_is_silent_knows_undervoltage_alone(
    tmp_path: Path, alarm: str, throttled: tuple[str, ...] | None
) -> None:
    write(tmp_path / "sys/class/hwmon/hwmon1/name", "rpi_volt\n")
    write(tmp_path / "sys/class/hwmon/hwmon1/in0_lcrit_alarm", alarm)

    assert heat(root=board_of(tmp_path, PI), ask=silent).throttled == throttled


@pytest.mark.parametrize(
    ("found", "throttled"),
    [
        ([("cpufreq-cpu0", "0"), ("pwm-fan", "3")], ()),
        ([("cpufreq-cpu0", "0"), ("cpufreq-cpu4", "2")], ("throttled",)),
        ([("thermal-cpufreq-0", "1")], ("throttled",)),
        ([("pwm-fan", "3"), ("Processor", "0")], None),
        ([("cpufreq-cpu0", "")], None),
        ([], None),
    ],
)
def test_elsewhere_the_kernel_says_whether_it_limits_the_processor_for_its_heat(
    tmp_path: Path, found: list[tuple[str, str]], throttled: tuple[str, ...] | None
) -> None:
    root = coolers(board_of(tmp_path, JETSON), *found)

    assert heat(root=root, ask=lambda: "throttled=0x50005").throttled == throttled


def test_of_a_machine_that_shows_nothing_nothing_is_known(tmp_path: Path) -> None:
    assert heat(root=tmp_path, ask=silent) == Heat(None, None)


def test_this_machine_can_be_asked() -> None:
    found = heat()

    assert found.temperature_c is None or -40 < found.temperature_c < 150


@pytest.mark.parametrize("device", ["/dev/null", "/no/such/device", "/"])
def test_what_is_no_mailbox_of_a_firmware_says_nothing(device: str) -> None:
    assert ask_firmware(device=Path(device)) == ""


@pytest.mark.parametrize(("error", "answer"), [(0, "throttled=0x50005"), (1, "")])
def test_the_firmware_is_asked_as_vcgencmd_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: int, answer: str
) -> None:
    def firmware(_file: object, request: int, message: bytearray) -> int:
        """vcgencmd.c of raspberrypi/utils: 6 words, 1024 bytes of text, an end tag; ioctl _IOWR(100, 0, char *)."""
        assert request == {8: 0xC008_6400, 4: 0xC004_6400}[struct.calcsize("P")]
        words = struct.unpack_from("=6I", message)
        assert words == (1052, 0, 0x0003_0080, 1024, 0, 0)
        assert message[24:38] == b"get_throttled\0"
        assert message[-4:] == bytes(4)
        struct.pack_into("=I", message, 20, error)
        message[24:42] = b"throttled=0x50005\0"
        return 0

    device = tmp_path / "vcio"
    device.touch()
    monkeypatch.setattr(fcntl, "ioctl", firmware)

    assert board.ask_firmware(device=device) == answer
