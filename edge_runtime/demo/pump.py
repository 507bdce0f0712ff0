"""Simulated pumps: what two accelerometer axes on a bearing housing would show. A simulation, not recordings.

Sources: shaft harmonics and vane passing, broadband noise, flow noise and stray knocks ringing in the
structure's resonance; with a fault, more unbalance or the impact train of a damaged bearing. The impacts follow
P. D. McFadden, J. D. Smith, "Model for the vibration produced by a single point defect in a rolling element
bearing", Journal of Sound and Vibration 96 (1984): each strike rings the resonance, as hard as the load where it
happens. Slip makes the time between strikes random: D. Ho, R. B. Randall, "Optimisation of bearing diagnostic
techniques using simulated and actual bearing fault signals", Mechanical Systems and Signal Processing 14 (2000).
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.records import Floats

Doubles = npt.NDArray[np.float64]
Fault = Literal["imbalance", "outer race", "inner race", "ball"]

FAULTS: tuple[Fault, ...] = ("imbalance", "outer race", "inner race", "ball")
LABELS: tuple[str, ...] = ("ok", *FAULTS)
AXES = ("horizontal", "vertical")
RATE_HZ = 3200.0
SCALE_G = 0.000488  # of one count: a 16-bit accelerometer with a range of 16 g

_BLOCK = 320  # samples made at once; a fault begins and ramps at block borders
_RING = 192  # samples until a knock has died away
_SLOW_S = 2.0  # correlation time of speed wander and load changes
_SPEED, _LOAD, _HARMONICS = 0, 1, slice(2, 6)  # columns of the slow random changes


class Bearing(msgspec.Struct, frozen=True):
    """Geometry of a ball bearing whose inner race turns with the shaft. Lengths in mm, contact angle in degrees.

    Defect frequencies as multiples of the shaft's speed, after R. B. Randall, J. Antoni, "Rolling element bearing
    diagnostics - a tutorial", Mechanical Systems and Signal Processing 25 (2011), with r = ball / pitch * cos(contact):
    BPFO = n / 2 * (1 - r); BPFI = n / 2 * (1 + r); FTF = (1 - r) / 2; BSF = pitch / (2 * ball) * (1 - r**2).
    """

    balls: int
    ball_mm: float
    pitch_mm: float
    contact_deg: float = 0.0

    @property
    def ratio(self) -> float:
        return self.ball_mm / self.pitch_mm * math.cos(math.radians(self.contact_deg))

    @property
    def bpfo(self) -> float:
        """Balls passing a point of the outer race, per revolution of the shaft."""
        return self.balls / 2 * (1 - self.ratio)

    @property
    def bpfi(self) -> float:
        """Balls passing a point of the inner race, per revolution of the shaft."""
        return self.balls / 2 * (1 + self.ratio)

    @property
    def ftf(self) -> float:
        """Revolutions of the cage, per revolution of the shaft."""
        return (1 - self.ratio) / 2

    @property
    def bsf(self) -> float:
        """Spins of one ball, per revolution of the shaft; a spot on it strikes both races, so twice a spin."""
        return self.pitch_mm / (2 * self.ball_mm) * (1 - self.ratio**2)


class PumpSpec(msgspec.Struct, frozen=True):
    """One machine. Frequencies in Hz, amplitudes in g, pairs are (horizontal, vertical).

    wander: standard deviation of the speed, relative. slip: of the time between strikes, relative.
    shaft_g: amplitude at 1, 2 and 3 times the shaft's speed. noise_g, flow_g: rms of the white noise and of the
    flow noise that rings in the structure. knock_g: mean peak of knocks_hz stray knocks a second.
    imbalance_g, strike_g: added by a fault of severity 1, at 1 times the speed and as the peak of a strike.
    load_zone: Stribeck's load distribution factor, below 0.5 with clearance.
    """

    speed_hz: float
    bearing: Bearing
    shaft_g: tuple[float, float, float]
    resonance_hz: tuple[float, float]
    coupling: tuple[float, float]
    wander: float = 0.005
    slip: float = 0.015
    vanes: int = 6
    vane_g: float = 0.04
    noise_g: float = 0.03
    flow_g: float = 0.03
    knocks_hz: float = 1.0
    knock_g: float = 0.05
    damping: float = 0.035
    imbalance_g: float = 0.5
    strike_g: float = 1.0
    load_zone: float = 0.45


BEARING_6203 = Bearing(balls=8, ball_mm=6.746, pitch_mm=28.5)
BEARING_6205 = Bearing(balls=9, ball_mm=7.94, pitch_mm=39.04)
BEARING_6206 = Bearing(balls=9, ball_mm=9.525, pitch_mm=46.0)

PUMPS: dict[str, PumpSpec] = {
    "pump-1": PumpSpec(
        speed_hz=24.6,
        bearing=BEARING_6205,
        shaft_g=(0.07, 0.03, 0.015),
        resonance_hz=(1050.0, 930.0),
        coupling=(1.0, 0.7),
    ),
    "pump-2": PumpSpec(
        speed_hz=29.3,
        bearing=BEARING_6206,
        shaft_g=(0.09, 0.025, 0.02),
        resonance_hz=(880.0, 990.0),
        coupling=(0.8, 1.0),
        vanes=5,
        noise_g=0.04,
    ),
    "pump-3": PumpSpec(
        speed_hz=48.4,
        bearing=BEARING_6203,
        shaft_g=(0.1, 0.05, 0.02),
        resonance_hz=(1180.0, 1090.0),
        coupling=(1.0, 0.9),
        vanes=7,
        flow_g=0.04,
    ),
}


def to_int16(values: Floats) -> npt.NDArray[np.int16]:
    """Counts as the sensor sends them: SCALE_G g each, clipped to the range. values: (n, axes) in g."""
    counts: npt.NDArray[np.int16] = np.clip(np.rint(values / SCALE_G), -32768, 32767).astype("<i2")
    return counts


class Pump:
    """One running pump; chunk after chunk continues the same signal, however it is cut."""

    def __init__(self, spec: PumpSpec, seed: int) -> None:
        self.spec = spec
        self._random = np.random.default_rng((seed, 0))
        self._strike_random = np.random.default_rng((seed, 1))
        self._slow = self._random.standard_normal(6)
        self._phases = _phases(self._random)
        self._revolutions = float(self._random.uniform())
        self._resonance = _Resonance(spec)
        self._flow = _FlowNoise(spec, self._random)
        self._fault: Fault | None = None
        self._severity = self._target = self._step = 0.0
        self._next_strike = 0.0
        self._strikes = 0
        self._ready: Floats = np.empty((0, len(AXES)), np.float32)

    def chunk(self, n: int) -> Floats:
        """The next n samples, (n, axes) in g."""
        parts = [self._ready]
        have = len(self._ready)
        while have < n:
            parts.append(self._block())
            have += _BLOCK
        joined: Floats = np.concatenate(parts)
        self._ready = joined[n:]
        return joined[:n]

    def fail(self, fault: Fault, *, severity: float = 1.0, ramp_s: float = 0.0) -> None:
        """Begin a fault within 0.1 s; its severity (1 is well developed) grows linearly over ramp_s."""
        if fault not in FAULTS:
            raise ValueError(f"fault {fault!r}, wanted one of {', '.join(FAULTS)}")
        if fault != self._fault:
            self._severity = 0.0
            self._next_strike = self._revolutions
        self._fault, self._target = fault, severity
        blocks = max(ramp_s * RATE_HZ / _BLOCK, 1.0)
        self._step = (severity - self._severity) / blocks

    def repair(self) -> None:
        """End the fault within 0.1 s."""
        self._fault = None
        self._severity = self._target = self._step = 0.0

    @property
    def severity(self) -> float:
        """Of the fault as the newest block has it; 0 when there is none."""
        return self._severity

    def _block(self) -> Floats:
        slow = self._slow_changes()
        speed_hz = self.spec.speed_hz * (1 + self.spec.wander * slow[:, _SPEED])
        turned = np.concatenate([[0.0], np.cumsum(speed_hz / RATE_HZ)])
        revolutions = self._revolutions + turned
        self._revolutions = float(revolutions[-1])
        if self._fault is not None:
            self._severity = _toward(self._severity, self._target, self._step)
        load = 1 + 0.15 * slow[:, _LOAD]
        values = self._shaft(revolutions[1:], slow[:, _HARMONICS])
        values += self._flow.block(self._random) * load[:, None]
        values += self.spec.noise_g * self._random.standard_normal(values.shape)
        values += self._resonance.ring(*self._knocks(), *self._fault_strikes(revolutions, float(load.mean())))
        return values.astype(np.float32)

    def _slow_changes(self) -> Doubles:
        """Random walks with a standard deviation of 1 that forget after _SLOW_S: (block, 6)."""
        keep = math.exp(-_BLOCK / RATE_HZ / _SLOW_S)
        before = self._slow
        self._slow = keep * before + math.sqrt(1 - keep**2) * self._random.standard_normal(len(before))
        along = np.linspace(0, 1, _BLOCK, endpoint=False)[:, None]
        return before + (self._slow - before) * along

    def _shaft(self, revolutions: Doubles, changes: Doubles) -> Doubles:
        """Harmonics of the shaft and vane passing, amplitude modulated: (block, axes) in g."""
        spec = self.spec
        unbalance_g = spec.imbalance_g * self._severity if self._fault == "imbalance" else 0.0
        amplitudes_g = np.array([spec.shaft_g[0] + unbalance_g, *spec.shaft_g[1:], spec.vane_g])
        orders = np.array([1, 2, 3, spec.vanes])
        angles = 2 * np.pi * revolutions[:, None, None] * orders[:, None] + self._phases
        waves = (amplitudes_g * (1 + 0.1 * changes))[:, :, None] * np.cos(angles)
        total: Doubles = waves.sum(axis=1)
        return total

    def _knocks(self) -> tuple[Doubles, Doubles]:
        """Stray knocks of a healthy pump: sample times within the block and peaks in g."""
        count = int(self._random.poisson(self.spec.knocks_hz * _BLOCK / RATE_HZ))
        return self._random.uniform(0, _BLOCK, count), self._random.exponential(self.spec.knock_g, count)

    def _fault_strikes(self, revolutions: Doubles, load: float) -> tuple[Doubles, Doubles]:
        """Strikes of a damaged bearing: sample times within the block and peaks in g."""
        orders = {
            "outer race": self.spec.bearing.bpfo,
            "inner race": self.spec.bearing.bpfi,
            "ball": 2 * self.spec.bearing.bsf,
        }
        order = orders.get(self._fault or "")
        if order is None:
            return np.empty(0), np.empty(0)
        at = []
        while self._next_strike < revolutions[-1]:
            at.append(self._next_strike)
            self._next_strike += (1 + self.spec.slip * self._strike_random.standard_normal()) / order
        strikes = np.array(at)
        jitter = np.clip(1 + 0.15 * self._strike_random.standard_normal(len(at)), 0, None)
        peaks_g = self.spec.strike_g * self._severity * load * jitter * self._strike_load(strikes)
        return np.interp(strikes, revolutions, np.arange(_BLOCK + 1)), peaks_g

    def _strike_load(self, revolutions: Doubles) -> Doubles:
        """Load where each strike happens, relative to the middle of the load zone.

        A spot on the outer race stays in the load zone, one on the inner race turns through it with the shaft, one
        on a ball with the cage, and hits the races in turn.
        """
        index = self._strikes + np.arange(len(revolutions))
        self._strikes += len(revolutions)
        if self._fault == "outer race":
            return 1 + 0.1 * np.cos(2 * np.pi * revolutions)
        if self._fault == "inner race":
            return _stribeck(revolutions, self.spec.load_zone)
        return _stribeck(self.spec.bearing.ftf * revolutions, self.spec.load_zone) * np.where(index % 2, 0.7, 1.0)


class _Resonance:
    """The structure between bearing and sensor: a decaying ring per axis, carried on from block to block."""

    def __init__(self, spec: PumpSpec) -> None:
        self._poles = _poles(spec)
        self._powers = np.exp(self._poles * np.arange(_RING)[:, None])
        self._coupling = np.array(spec.coupling)
        self._tail = np.zeros((_RING, len(AXES)))

    def ring(self, knocks: Doubles, knocks_g: Doubles, strikes: Doubles, strikes_g: Doubles) -> Doubles:
        """The block's ringing, (block, axes) in g, of knocks and strikes at sample times with peaks in g."""
        times = np.concatenate([knocks, strikes])
        peaks_g = np.concatenate([knocks_g, strikes_g])[:, None] * self._coupling
        first = np.ceil(times).astype(np.intp)
        starts = peaks_g * np.exp(self._poles * (first - times)[:, None])
        waves = (starts[:, None, :] * self._powers).imag
        total = np.zeros((_BLOCK + _RING + 1, len(AXES)))
        np.add.at(total, first[:, None] + np.arange(_RING), waves)
        total[:_RING] += self._tail
        self._tail = total[_BLOCK : _BLOCK + _RING].copy()
        return total[:_BLOCK]


class _FlowNoise:
    """White noise through the resonance, with an rms of flow_g on each axis."""

    def __init__(self, spec: PumpSpec, random: np.random.Generator) -> None:
        rings = np.exp(_poles(spec) * np.arange(_RING)[:, None]).imag
        self._kernels = spec.flow_g * rings / np.sqrt(np.square(rings).sum(axis=0))
        self._past = random.standard_normal((_RING - 1, len(AXES)))

    def block(self, random: np.random.Generator) -> Doubles:
        white = np.concatenate([self._past, random.standard_normal((_BLOCK, len(AXES)))])
        self._past = white[-(_RING - 1) :]
        columns = [np.convolve(white[:, i], self._kernels[:, i], mode="valid") for i in range(len(AXES))]
        return np.stack(columns, axis=1)


def _poles(spec: PumpSpec) -> npt.NDArray[np.complex128]:
    """Per axis, the resonance's pole per sample: decay and rotation."""
    poles = 2 * np.pi * np.array(spec.resonance_hz) / RATE_HZ * complex(-spec.damping, 1)
    return np.asarray(poles, np.complex128)


def _phases(random: np.random.Generator) -> Doubles:
    """Phases of 1x, 2x, 3x and vane passing on both axes, (4, axes); the shaft's orbit is about a circle."""
    horizontal = random.uniform(0, 2 * np.pi, 4)
    between = np.pi / 2 + 0.4 * random.standard_normal(4)
    return np.stack([horizontal, horizontal + between], axis=1)


def _stribeck(revolutions: Doubles, load_zone: float) -> Doubles:
    """Radial load around the bearing, 1 in the middle of the load zone, 0 outside it."""
    inside = 1 - (1 - np.cos(2 * np.pi * revolutions)) / (2 * load_zone)
    load: Doubles = np.clip(inside, 0, None) ** 1.5
    return load


def _toward(value: float, target: float, step: float) -> float:
    moved = value + step
    return min(moved, target) if step >= 0 else max(moved, target)
