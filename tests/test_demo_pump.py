from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.demo.pump import (
    BEARING_6205,
    FAULTS,
    LABELS,
    PUMPS,
    RATE_HZ,
    SCALE_G,
    Bearing,
    Fault,
    Pump,
    to_int16,
)
from edge_runtime.model import bundle
from edge_runtime.model.session import Session, SessionSettings
from edge_runtime.records import Floats

BUNDLE = Path(__file__).parents[1] / "edge_runtime" / "demo" / "pump-vibration.edge"
SECOND = int(RATE_HZ)
RING_SAMPLES = 192
NAMES = sorted(PUMPS)


def spectrum(values: Floats) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in Hz and amplitudes of one axis, Hann window."""
    tapered = (values - values.mean()) * np.hanning(len(values))
    return np.fft.rfftfreq(len(values), 1 / RATE_HZ), np.abs(np.fft.rfft(tapered)) * 4 / len(values)


def envelope_spectrum(values: Floats) -> tuple[np.ndarray, np.ndarray]:
    """Of the part above 600 Hz, where the structure rings."""
    lines = np.fft.rfft(values)
    lines[np.fft.rfftfreq(len(values), 1 / RATE_HZ) < 600] = 0
    return spectrum(np.abs(np.fft.irfft(lines)))


def peak(frequencies: np.ndarray, amplitudes: np.ndarray, low_hz: float, high_hz: float) -> tuple[float, float]:
    inside = np.flatnonzero((frequencies >= low_hz) & (frequencies <= high_hz))
    at = inside[np.argmax(amplitudes[inside])]
    return float(frequencies[at]), float(amplitudes[at])


def failing(name: str, fault: Fault, severity: float = 1.0) -> Pump:
    pump = Pump(PUMPS[name], seed=1)
    pump.fail(fault, severity=severity)
    pump.chunk(SECOND)
    return pump


def test_defect_frequencies_of_a_6205_are_the_published_ones() -> None:
    found = [BEARING_6205.bpfo, BEARING_6205.bpfi, BEARING_6205.ftf, 2 * BEARING_6205.bsf]

    assert found == pytest.approx([3.5848, 5.4152, 0.39828, 4.7135], rel=1e-3)


@given(balls=st.integers(6, 14), ball_mm=st.floats(4, 20), ratio=st.floats(0.1, 0.35), contact=st.floats(0, 40))
def test_every_ball_passes_either_race_once_a_turn_of_the_cage(
    balls: int, ball_mm: float, ratio: float, contact: float
) -> None:
    bearing = Bearing(balls, ball_mm, ball_mm / ratio, contact)

    assert bearing.bpfo == pytest.approx(balls * bearing.ftf)
    assert bearing.bpfi == pytest.approx(balls * (1 - bearing.ftf))


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 700), min_size=1, max_size=8))
def test_the_signal_does_not_depend_on_how_it_is_cut(cuts: list[int]) -> None:
    whole, parts = failing("pump-1", "ball"), failing("pump-1", "ball")

    assert np.array_equal(whole.chunk(sum(cuts)), np.concatenate([parts.chunk(n) for n in cuts]))


def test_a_chunk_is_float32_with_a_column_for_each_axis() -> None:
    chunk = Pump(PUMPS["pump-1"], seed=0).chunk(320)

    assert (chunk.shape, chunk.dtype) == ((320, 2), np.dtype(np.float32))


def test_equal_seeds_give_equal_signals_and_others_do_not() -> None:
    first, again, other = (Pump(PUMPS["pump-2"], seed).chunk(1000) for seed in (5, 5, 6))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_the_strongest_line_of_an_unbalanced_pump_is_its_speed(name: str) -> None:
    values = failing(name, "imbalance").chunk(10 * SECOND)[:, 0]
    frequency, amplitude = peak(*spectrum(values), 5, 1500)

    assert frequency == pytest.approx(PUMPS[name].speed_hz, rel=0.02)
    assert 0.2 < amplitude < 0.8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", ["outer race", "inner race", "ball"])
def test_a_bearing_fault_shows_in_the_envelope_at_its_defect_frequency(name: str, fault: Fault) -> None:
    spec = PUMPS[name]
    order = {"outer race": spec.bearing.bpfo, "inner race": spec.bearing.bpfi, "ball": 2 * spec.bearing.bsf}[fault]
    wanted_hz = order * spec.speed_hz
    lines = envelope_spectrum(failing(name, fault).chunk(10 * SECOND)[:, 0])
    healthy = envelope_spectrum(Pump(spec, seed=1).chunk(10 * SECOND)[:, 0])
    around = (wanted_hz - 0.3 * spec.speed_hz, wanted_hz + 0.3 * spec.speed_hz)

    assert peak(*lines, *around)[0] == pytest.approx(wanted_hz, rel=0.02)
    assert peak(*lines, *around)[1] > 8 * peak(*healthy, *around)[1]


def test_only_a_spot_that_turns_through_the_load_zone_is_modulated_by_the_shaft() -> None:
    speed_hz = PUMPS["pump-1"].speed_hz
    lines = {
        fault: peak(
            *envelope_spectrum(failing("pump-1", fault).chunk(10 * SECOND)[:, 0]), 0.9 * speed_hz, 1.1 * speed_hz
        )
        for fault in ("inner race", "outer race")
    }

    assert lines["inner race"][0] == pytest.approx(speed_hz, rel=0.02)
    assert lines["inner race"][1] > 3 * lines["outer race"][1]


def test_severity_ramps_linearly_and_then_stays() -> None:
    pump = Pump(PUMPS["pump-1"], seed=0)
    pump.fail("outer race", severity=0.8, ramp_s=0.4)
    found = []
    for _ in range(6):
        pump.chunk(320)
        found.append(pump.severity)

    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_the_impacts_grow_with_severity() -> None:
    peaks_g = [np.abs(failing("pump-3", "outer race", severity).chunk(SECOND)).max() for severity in (0.1, 0.5, 1.0)]

    assert peaks_g == sorted(peaks_g)
    assert peaks_g[2] > 2 * peaks_g[0]


def test_a_repaired_pump_sounds_as_if_nothing_had_happened() -> None:
    pump, twin = Pump(PUMPS["pump-2"], seed=4), Pump(PUMPS["pump-2"], seed=4)
    pump.fail("inner race")
    assert not np.array_equal(pump.chunk(3200), twin.chunk(3200))
    pump.repair()

    assert np.array_equal(pump.chunk(3200)[RING_SAMPLES:], twin.chunk(3200)[RING_SAMPLES:])


def test_an_unknown_fault_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="wanted one of imbalance, outer race, inner race, ball"):
        Pump(PUMPS["pump-1"], seed=0).fail("cavitation")  # type: ignore[arg-type]


def test_counts_are_rounded_clipped_and_little_endian() -> None:
    values = np.array([[0.0, 3.4 * SCALE_G], [100.0, -100.0]], np.float32)
    counts = to_int16(values)

    assert counts.tolist() == [[0, 3], [32767, -32768]]
    assert counts.tobytes() == b"\x00\x00\x03\x00\xff\x7f\x00\x80"


def test_no_pump_reaches_the_end_of_the_sensors_range() -> None:
    for name in NAMES:
        for fault in FAULTS:
            assert np.abs(failing(name, fault).chunk(5 * SECOND)).max() < 0.5 * 32767 * SCALE_G


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(bundle.read(BUNDLE), SessionSettings())


def scores_of(session: Session, pump: Pump, seconds: int) -> Floats:
    """Scores of the windows that would be cut from what the sensor sends: (windows, labels)."""
    spec = session.manifest.input
    values = to_int16(pump.chunk(seconds * SECOND)) * np.float32(SCALE_G)
    starts = range(0, len(values) - spec.length + 1, spec.hop)
    return session.predict(np.ascontiguousarray([values[i : i + spec.length].T for i in starts]))


def alarms(scores: Floats) -> int:
    """Windows at which 3 of the last 5 have "not ok" at 0.9 or above, as the example's config asks."""
    bad = 1 - scores[:, LABELS.index("ok")] >= 0.9
    return int(sum(bad[max(0, i - 4) : i + 1].sum() >= 3 for i in range(len(bad))))


def test_the_committed_bundle_fits_this_simulation_and_200_kilobytes(session: Session) -> None:
    spec = session.manifest.input

    assert session.manifest.labels == LABELS
    assert (len(spec.channels), spec.rate_hz) == (2, RATE_HZ)
    assert BUNDLE.stat().st_size <= 200_000


@pytest.mark.parametrize("name", NAMES)
def test_a_healthy_pump_does_not_alarm(session: Session, name: str) -> None:
    assert alarms(scores_of(session, Pump(PUMPS[name], seed=2), 60)) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_developed_fault_alarms_and_is_named(session: Session, name: str, fault: Fault) -> None:
    scores = scores_of(session, failing(name, fault), 5)

    assert alarms(scores) >= len(scores) - 2
    assert np.mean(scores.argmax(axis=1) == LABELS.index(fault)) > 0.9
