"""A simulated wrist: what accelerometer and gyroscope of a band would show. A simulation, not recordings.

The forearm is a rigid rod from elbow to wrist. Its orientation and the elbow's path are written down as functions of
time; what the sensor feels follows from them by kinematics alone: the specific force f = R'(a + g) and the angular
velocity from R'dR/dt, both in the sensor's frame (P. D. Groves, "Principles of GNSS, Inertial, and Multisensor
Integrated Navigation Systems", 2nd ed., 2013, chapter 2). World axes: x ahead, y left, z up. Arm axes: x from elbow
to hand, z out of the back of the hand when the palm is down.

Moves from pose to pose follow the minimum-jerk profile of T. Flash, N. Hogan, "The coordination of arm movements",
Journal of Neuroscience 5 (1985). A forearm is 0.146 of the body's height (R. Drillis, R. Contini, "Body segment
parameters", New York University report 1166.03, 1966). Noise and offset are those of a Bosch BMI270 (data sheet
BST-BMI270-DS000). Poses, tempi, sizes and the ringing of a knock are this file's own estimates, from no measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.records import Floats

Doubles = npt.NDArray[np.float64]
Triple = tuple[float, float, float]
Label = Literal["rest", "wave", "circle", "twist", "shake", "knock"]
Script = Sequence[tuple[Label, float]]

LABELS: tuple[Label, ...] = get_args(Label)
AXES = ("ax", "ay", "az", "gx", "gy", "gz")
UNITS = ("m/s2", "m/s2", "m/s2", "rad/s", "rad/s", "rad/s")
RATE_HZ = 50.0
SCALE = 0.0025  # of one count, m/s2 and rad/s alike: int16 then holds the sensor's whole range
GRAVITY = 9.80665

ACCEL_NOISE = 160e-6 * GRAVITY  # m/s2 per square root of Hz
GYRO_NOISE = np.radians(0.007)  # rad/s per square root of Hz
ACCEL_RANGE, GYRO_RANGE = 8 * GRAVITY, np.radians(2000)
BANDWIDTH_HZ = 20.0

_FINE = 4  # steps of the simulation for each sample
_STEP_S = 1 / (RATE_HZ * _FINE)
_TAPS = 65
_FADE_S = 0.3
_TREMOR_HZ, _SWAY_HZ = (8.0, 12.0), (0.1, 0.6)
_RING_HZ, _RING_S = 16.0, 0.03  # of a knock in hand and band

_POSES_DEG: dict[str, Triple] = {  # pitch (hand up), yaw (hand to the left), roll (thumb side up is -90)
    "hanging": (-72, 10, -80),
    "table": (0, 25, 0),
    "lap": (-25, 30, -20),
    "wave": (58, 0, 0),
    "circle": (15, 5, -30),
    "twist": (5, 10, -45),
    "shake": (20, 10, -40),
    "knock": (35, 5, -70),
}
_RESTING = ("hanging", "table", "lap")
_TEMPO_HZ = {"wave": 1.7, "circle": 1.2, "twist": 1.6, "shake": 3.2, "knock": 2.3}


class Wearer(msgspec.Struct, frozen=True):
    """One person, their habits and their band.

    tempo, size: of gestures, relative. habits: own offset to each pose, radians, by name of the pose. sloppiness:
    share of a swing that goes astray. clockwise: how they circle. strap: rotation vector of the band on the wrist,
    radians. The rest is of their sensor: offsets in m/s2 and rad/s, gains relative.
    """

    forearm_m: float
    left_handed: bool
    tempo: float
    size: float
    habits: dict[str, Triple]
    sloppiness: float
    clockwise: bool
    strap: Triple
    accel_offset: Triple
    gyro_offset: Triple
    accel_gain: Triple
    gyro_gain: Triple


class _Motion(NamedTuple):
    """Of one stretch of time. pose: pitch, yaw, roll in radians and the elbow's x, y, z in m, (n, 6).

    swing: rotations about the arm's z, -y and x on top of the pose, radians, (n, 3). elbow: its own motion on top,
    m, (n, 3). strike: acceleration of a knock in the arm's axes, m/s2, (n, 3).
    """

    pose: Doubles
    swing: Doubles
    elbow: Doubles
    strike: Doubles


def random_wearer(random: np.random.Generator) -> Wearer:
    """Somebody nobody has seen."""
    between, normal = random.uniform, random.normal
    return Wearer(
        forearm_m=0.146 * float(np.clip(normal(1.71, 0.095), 1.48, 2.0)),
        left_handed=bool(random.random() < 0.1),
        tempo=float(np.exp(between(np.log(0.7), np.log(1.4)))),
        size=float(np.exp(between(np.log(0.5), np.log(1.5)))),
        habits={name: _triple(np.radians(normal(0, (10, 12, 15)))) for name in _POSES_DEG},
        sloppiness=between(0.05, 0.35),
        clockwise=bool(random.random() < 0.5),
        strap=_triple(np.radians(normal(0, (18, 6, 6)))),
        accel_offset=_triple(normal(0, 0.02 * GRAVITY, 3)),
        gyro_offset=_triple(np.radians(normal(0, 0.5, 3))),
        accel_gain=_triple(normal(1, 0.004, 3)),
        gyro_gain=_triple(normal(1, 0.004, 3)),
    )


def random_script(random: np.random.Generator, *, seconds: float) -> list[tuple[Label, float]]:
    """Gestures of 2 to 6 s in any order, mostly with a rest of 1.5 to 4 s between them."""
    script: list[tuple[Label, float]] = [("rest", float(random.uniform(1.5, 4)))]
    while sum(length for _, length in script) < seconds:
        script.append((LABELS[int(random.integers(1, len(LABELS)))], float(random.uniform(2, 6))))
        if random.random() < 0.75:
            script.append(("rest", float(random.uniform(1.5, 4))))
    return script


def perform(wearer: Wearer, script: Script, *, seed: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """What the band measures while its wearer does what the script says, and the label of each sample.

    Returns ((n, 6) m/s2 and rad/s at RATE_HZ, (n,)). A gesture's label begins as the arm leaves its pose for it.
    """
    random = np.random.default_rng(seed)
    pose = _pose(wearer, str(random.choice(_RESTING)), random)
    motions, labels = [], []
    for label, seconds in script:
        motion = (
            _rest(wearer, pose, seconds, random) if label == "rest" else _gesture(wearer, pose, label, seconds, random)
        )
        pose = motion.pose[-1]
        motions.append(motion)
        labels += [LABELS.index(label)] * len(motion.pose)
    whole = _Motion(*(np.concatenate(parts) for parts in zip(*motions, strict=True)))
    return _sensed(wearer, _felt(wearer, whole), random), np.array(labels, np.int64)[::_FINE]


def to_int16(values: Floats) -> npt.NDArray[np.int16]:
    """Counts as the band sends them. values: (n, 6) in m/s2 and rad/s."""
    counts: npt.NDArray[np.int16] = np.clip(np.rint(values / SCALE), -32768, 32767).astype("<i2")
    return counts


def _gesture(wearer: Wearer, before: Doubles, label: Label, seconds: float, random: np.random.Generator) -> _Motion:
    """Raise the arm into the gesture's pose and repeat the movement until the time is over."""
    n = _steps(seconds)
    move_s = random.uniform(0.6, 1.1) / wearer.tempo
    still = _moved(before, _pose(wearer, label, random), n, move_s, random)
    size = wearer.size * random.uniform(0.8, 1.2) * (1 + _wobble(n, _SWAY_HZ, 0.1, random)) * _envelope(n, move_s / 2)
    tempo_hz = _TEMPO_HZ[label] * wearer.tempo * random.uniform(0.9, 1.1)
    start = random.uniform(0, 2 * np.pi)
    phase = start + 2 * np.pi * tempo_hz * np.arange(n) * _STEP_S + _wobble(n, _SWAY_HZ, 0.3, random)
    swing_deg, elbow_m = _movement(label, phase, -1.0 if wearer.clockwise else 1.0)
    astray = np.eye(3) + wearer.sloppiness * random.normal(0, 0.5, (3, 3))
    swing = np.radians(swing_deg) @ astray * size[:, None]
    strike = _knocks(phase, random) * size[:, None] if label == "knock" else np.zeros((n, 3))
    return _Motion(still.pose, still.swing + swing, still.elbow + elbow_m * size[:, None], strike)


def _movement(label: Label, phase: Doubles, turn: float) -> tuple[Doubles, Doubles]:
    """Swing to the side, up and about the arm in degrees, and the elbow's path in m, of size 1: (n, 3) each."""
    sine, cosine, none = np.sin(phase), np.cos(phase), np.zeros_like(phase)
    columns = {
        "wave": ((24 * sine, 3 * cosine, 8 * sine), (none, none, none)),
        "circle": ((15 * cosine, 15 * turn * sine, none), (none, 0.05 * cosine, 0.05 * turn * sine)),
        "twist": ((3 * sine, none, 40 * sine), (none, none, none)),
        "shake": ((none, 7 * sine, none), (none, 0.01 * cosine, 0.02 * sine)),
        "knock": ((3 * sine, 13 * sine, none), (0.02 * sine, none, none)),
    }
    swing, elbow = columns[label]
    return np.stack(swing, axis=1), np.stack(elbow, axis=1)


def _knocks(phase: Doubles, random: np.random.Generator) -> Doubles:
    """The hand is stopped once a cycle, on its way down, and rings: (n, 3) in m/s2."""
    struck = np.flatnonzero(np.diff(np.floor((phase - np.pi) / (2 * np.pi))) > 0)
    seconds = np.arange(_steps(6 * _RING_S)) * _STEP_S
    ring = np.exp(-seconds / _RING_S) * np.sin(2 * np.pi * _RING_HZ * seconds)
    strike = np.zeros((len(phase) + len(ring), 3))
    for at in struck:
        strike[at : at + len(ring)] += ring[:, None] * random.uniform(10, 30) * np.array([0.3, 0.0, 1.0])
    return strike[: len(phase)]


def _rest(wearer: Wearer, before: Doubles, seconds: float, random: np.random.Generator) -> _Motion:
    """No gesture: the arm comes to rest, or goes on to another place, or swings while its wearer walks."""
    n = _steps(seconds)
    kind = random.choice(["still", "moving", "walking"], p=[0.5, 0.25, 0.25])
    place = "hanging" if kind == "walking" else str(random.choice(_RESTING))
    first = _moved(before, _pose(wearer, place, random), n, random.uniform(0.7, 1.3) / wearer.tempo, random)
    if kind == "walking":
        return _walking(wearer, first, random)
    if kind == "still" or seconds < 2:
        return first
    half = n // 2
    onward = _pose(wearer, str(random.choice(_RESTING)), random)
    second = _moved(first.pose[half - 1], onward, n - half, random.uniform(0.7, 1.3) / wearer.tempo, random)
    return first._replace(pose=np.concatenate([first.pose[:half], second.pose]))


def _walking(wearer: Wearer, standing: _Motion, random: np.random.Generator) -> _Motion:
    """The arm swings once a stride, the body goes up and down once a step, two steps a stride."""
    n = len(standing.pose)
    fade = _envelope(n, 0.3)
    stride = 2 * np.pi * random.uniform(0.8, 1.05) * np.arange(n) * _STEP_S + random.uniform(0, 2 * np.pi)
    swing, elbow = standing.swing.copy(), standing.elbow.copy()
    swing[:, 1] += fade * np.radians(random.uniform(8, 20)) * np.sin(stride)
    elbow[:, 0] += fade * 0.3 * wearer.forearm_m * np.sin(stride)
    elbow[:, 2] += fade * random.uniform(0.015, 0.03) * np.sin(2 * stride)
    return standing._replace(swing=swing, elbow=elbow)


def _pose(wearer: Wearer, name: str, random: np.random.Generator) -> Doubles:
    """The named pose as this wearer takes it this time: (6,)."""
    angles = np.radians(np.array(_POSES_DEG[name]) + random.normal(0, 5, 3)) + wearer.habits[name]
    raised = name not in _RESTING
    elbow_m = np.array([0.12, 0.05, 0.12]) * raised + random.normal(0, 0.02, 3)
    return np.concatenate([angles, elbow_m])


def _moved(before: Doubles, after: Doubles, n: int, seconds: float, random: np.random.Generator) -> _Motion:
    """From pose to pose along the minimum-jerk profile 10 s^3 - 15 s^4 + 6 s^5; then held, with sway and tremor."""
    done = np.clip(np.arange(n) * _STEP_S / seconds, 0, 1)[:, None]
    pose = before + (after - before) * done**3 * (10 - 15 * done + 6 * done**2)
    sway = [_wobble(n, _SWAY_HZ, np.radians(0.6), random) for _ in range(3)]
    tremor = [_wobble(n, _TREMOR_HZ, 1e-4, random) for _ in range(3)]
    swing = (np.stack(sway, axis=1) + np.stack(tremor, axis=1)) * _envelope(n, 0)[:, None]
    return _Motion(pose, swing, np.zeros((n, 3)), np.zeros((n, 3)))


def _felt(wearer: Wearer, motion: _Motion) -> Doubles:
    """Specific force and angular velocity in the band's axes at every step, (n, 6), noise of the sensor apart."""
    pitch, yaw, roll = motion.pose[:, :3].T
    side, up, about = motion.swing.T
    arm = _about(2, yaw) @ _about(1, -pitch) @ _about(0, roll) @ _about(2, side) @ _about(1, -up) @ _about(0, about)
    wrist = motion.pose[:, 3:] + motion.elbow + wearer.forearm_m * arm[:, :, 0]
    acceleration = np.pad(np.diff(wrist, 2, axis=0), ((1, 1), (0, 0)), mode="edge") / _STEP_S**2
    force = np.einsum("nji,nj->ni", arm, acceleration + np.array([0, 0, GRAVITY])) + motion.strike
    turned = np.einsum("nji,njk->nik", arm, np.gradient(arm, _STEP_S, axis=0))
    turning = np.stack([turned[:, 2, 1], turned[:, 0, 2], turned[:, 1, 0]], axis=1)
    if wearer.left_handed:  # the mirror image: y turns round, and so does every rotation but that about y
        force, turning = force * (1, -1, 1), turning * (-1, 1, -1)
    band = _rotation(np.array(wearer.strap))
    return np.concatenate([force @ band, turning @ band], axis=1)


def _sensed(wearer: Wearer, felt: Doubles, random: np.random.Generator) -> Floats:
    """What the sensor makes of it: low-pass at BANDWIDTH_HZ, gain, offset, noise, range; (n / _FINE, 6)."""
    times = (np.arange(_TAPS) - _TAPS // 2) * _STEP_S
    kernel = np.sinc(2 * BANDWIDTH_HZ * times) * np.hamming(_TAPS)
    padded = np.pad(felt, ((_TAPS // 2, _TAPS // 2), (0, 0)), mode="edge")
    smooth = np.stack([np.convolve(padded[:, i], kernel / kernel.sum(), mode="valid") for i in range(6)], axis=1)
    gain = np.array([*wearer.accel_gain, *wearer.gyro_gain])
    offset = np.array([*wearer.accel_offset, *wearer.gyro_offset])
    density = np.repeat([ACCEL_NOISE, GYRO_NOISE], 3)
    limit = np.repeat([ACCEL_RANGE, GYRO_RANGE], 3)
    sampled = smooth[::_FINE] * gain + offset
    noisy = sampled + density * np.sqrt(BANDWIDTH_HZ) * random.standard_normal(sampled.shape)
    values: Floats = np.clip(noisy, -limit, limit).astype(np.float32)
    return values


def _wobble(n: int, band_hz: tuple[float, float], rms: float, random: np.random.Generator) -> Doubles:
    """Smooth random changes with frequencies of one band: (n,)."""
    waves = 6
    frequencies, phases = random.uniform(*band_hz, waves), random.uniform(0, 2 * np.pi, waves)
    times = np.arange(n)[:, None] * _STEP_S
    total: Doubles = np.sin(2 * np.pi * frequencies * times + phases).sum(axis=1)
    scaled: Doubles = total * (rms * (2 / waves) ** 0.5)
    return scaled


def _envelope(n: int, late_s: float) -> Doubles:
    """0 at both ends, 1 between, with raised-cosine flanks; it begins to rise after late_s: (n,)."""
    times = np.arange(n) * _STEP_S
    inside = np.minimum(times - late_s, times[::-1]) / _FADE_S
    flanks: Doubles = (1 - np.cos(np.pi * np.clip(inside, 0, 1))) / 2
    return flanks


def _about(axis: int, angles: Doubles) -> Doubles:
    """Rotation matrices about one axis: (n, 3, 3)."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrices = np.zeros((len(angles), 3, 3))
    matrices[:, axis, axis] = 1
    matrices[:, first, first] = matrices[:, second, second] = np.cos(angles)
    matrices[:, second, first] = np.sin(angles)
    matrices[:, first, second] = -np.sin(angles)
    return matrices


def _rotation(vector: Doubles) -> Doubles:
    """The matrix of a rotation vector (Rodrigues): (3, 3)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / angle if angle else vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix: Doubles = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return matrix


def _steps(seconds: float) -> int:
    """Steps of the simulation, a whole number of samples."""
    return round(seconds * RATE_HZ) * _FINE


def _triple(values: npt.ArrayLike) -> Triple:
    x, y, z = (float(value) for value in np.asarray(values))
    return x, y, z
