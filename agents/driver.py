"""A driver for CarRacing that looks at the picture and nothing else, so it drives in the dream as it does in reality.

It asks rings of growing radius ahead of the car where the road crosses them, follows the crossings outwards from the
car, steers at one of them and chooses a speed by how far the outer ones bend away: pure pursuit (Coulter, 1992) on
pixels. The speed is read off the white bar below the picture. Off the road, it turns towards the nearest road in sight.

Numbers of CarRacing-v3: 96x96 pixels, the car at (48, 72), 1.555 x 1.944 pixels a metre, a road 13.3 m wide, the
bottom 12 rows for the instruments. Knows that picture; does not know envs, engines or worlds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CAR, SCALE, FIELD = (48.0, 72.0), (1.555, 1.944), 84
RADII = np.arange(6.0, 37.0, 2.0)
ANGLES = np.radians(np.arange(-120, 121, 4))
BAR, BAR_WIDTH, BAR_RISE = slice(12, 15), 2.65, 0.048
"""Columns of the speed bar, its width, and its height a metre a second, in pixels."""


def road(frame: np.ndarray) -> np.ndarray:
    """Where a frame uint8 [96, 96, 3] shows tarmac, bool [84, 96]: grey, but not a kerb's white or a tyre's black."""
    r, g, b = (frame[:FIELD, :, i].astype(np.int16) for i in range(3))
    grey = (np.abs(r - g) < 30) & (np.abs(g - b) < 30)
    return grey & (r > 60) & (r < 170)


def speed(frame: np.ndarray) -> float:
    """Metres a second, off the white bar of a frame uint8 [96, 96, 3]."""
    bar = frame[FIELD:, BAR].astype(np.float32).min(-1) / 255
    return float(bar.sum() / BAR_WIDTH / BAR_RISE)


def ring_pixels() -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each ring's points, int [rings, angles], and nothing outside the picture but its edge."""
    x = CAR[0] + SCALE[0] * RADII[:, None] * np.sin(ANGLES)
    y = CAR[1] - SCALE[1] * RADII[:, None] * np.cos(ANGLES)
    return np.round(y).astype(int), np.round(x).astype(int)


ROWS, COLUMNS = ring_pixels()
INSIDE = (ROWS >= 0) & (ROWS < FIELD) & (COLUMNS >= 0) & (COLUMNS < 96)


def arcs(line: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def centre_line(tarmac: np.ndarray, heading: float) -> np.ndarray:
    """The angle (radians, right is positive) at which the road crosses each ring, NaN from where it is lost.

    Args:
        heading: where the innermost crossing is looked for.
    """
    seen = np.zeros(ROWS.shape, bool)
    seen[INSIDE] = tarmac[ROWS[INSIDE], COLUMNS[INSIDE]]
    crossings, before = np.full(len(RADII), np.nan), heading
    for i, radius in enumerate(RADII):
        found = [(ANGLES[a], ANGLES[b]) for a, b in arcs(seen[i]) if (b - a + 1) * np.radians(4) * radius > 3]
        if not found:
            if i < 4:
                continue
            break
        low, high = min(found, key=lambda arc: abs(np.clip(before, *arc) - before) + 0.1 * abs(np.mean(arc) - before))
        crossings[i] = before = (low + high) / 2
    return crossings


class Driver:
    """Drives: a frame uint8 [96, 96, 3] -> action float32 [3], steer in [-1, 1], gas and brake in [0, 1].

    Args:
        space: the env's action space, if it is to be checked.
        cruise: metres a second on a straight.
        caution: how much a bend slows it down.

    Raises:
        ValueError: the actions are not a car's.
    """

    def __init__(self, space: Any = None, cruise: float = 56.0, caution: float = 1.0):
        if space is not None and getattr(space, "shape", None) != (3,):
            raise ValueError(
                f"the driver steers CarRacing's car, Box [steer, gas, brake]: this env's actions are {space}"
            )
        self.cruise, self.caution = cruise, caution
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Begin an episode; nothing here is random."""
        self.steer, self.side = 0.0, 1.0

    def __call__(self, observation: Any, rng: np.random.Generator | None = None) -> np.ndarray:
        """The next action; `rng` is what behaviours are given, and is not drawn from."""
        frame = np.asarray(observation)
        if frame.shape != (96, 96, 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"a frame {frame.dtype} {list(frame.shape)}: the driver reads CarRacing's, uint8 [96, 96, 3]"
            )
        tarmac, now = road(frame), speed(frame)
        line = centre_line(tarmac, 0.3 * self.steer)
        seen = np.flatnonzero(~np.isnan(line))
        if len(seen) < 3:
            return self.recover(tarmac, now)
        ahead = float(np.clip(8.0 + 0.24 * now, 8, 24))
        near = float(np.interp(ahead, RADII[seen], line[seen]))
        far = float(line[seen[-1]])
        bend = abs(far) + 1.2 * max(0.0, (34 - RADII[seen[-1]]) / 34)
        self.side = np.sign(near) or self.side
        return self.act(1.5 * near, self.cruise / (1 + self.caution * bend), now)

    def act(self, steer: float, wanted: float, now: float) -> np.ndarray:
        """The action that steers so far and comes nearer to a speed; little gas where the wheels are turned."""
        self.steer = float(np.clip(steer, -1, 1))
        gas = np.clip((wanted - now) / 12, 0, 1) * (1 - 0.6 * abs(self.steer))
        brake = np.clip((now - wanted - 4) / 30, 0, 0.6) * (1 - 0.5 * abs(self.steer))
        return np.array([self.steer, gas, brake], np.float32)

    def recover(self, tarmac: np.ndarray, now: float) -> np.ndarray:
        """Turn towards the nearest tarmac in sight, slowly; in circles where there is none."""
        rows, columns = np.nonzero(tarmac)
        if not len(rows):
            return self.act(0.6 * self.side, 15.0, now)
        x, y = (columns - CAR[0]) / SCALE[0], (CAR[1] - rows) / SCALE[1]
        nearest = np.argmin(np.hypot(x, y) + 0.5 * np.maximum(0, -y))
        angle = float(np.arctan2(x[nearest], y[nearest]))
        self.side = np.sign(angle) or self.side
        return self.act(angle, 18.0, now)


class Reckless(Driver):
    """Too fast for most bends, so that it slides, leaves the road and comes back."""

    def __init__(self, space: Any = None, cruise: float = 86.0, caution: float = 0.7):
        super().__init__(space, cruise, caution)
