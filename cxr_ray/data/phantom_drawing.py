"""Pencil and brush for synthetic chest films: curves, filled shapes and blurs on one pixel grid.

Every step on pixels works on integers or is a single float operation, so that a film has the same bytes on every
processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

GRID = 224  # films are drawn at this many pixels a side; `draw_phantom` resamples

_SUBPIXEL = 4  # bits of sub-pixel position that cv2's drawing functions take as `shift`


@dataclass(frozen=True)
class Frame:
    """Where the thorax lies on the grid.

    Thorax coordinates: x from -1 (the patient's right chest wall, image left) over 0 (midline) to 1, y from 0
    (apices) to 1 (costophrenic angles).

    Attributes:
        matrix: float64 (2, 2), thorax units to pixels (columns: x axis, y axis).
        origin: float64 (2,), the pixel (x, y) of the thorax point (0, 0.5).
        costophrenic: The y of the right and the left costophrenic angle.
        dome: The y of the right and the left diaphragm dome.
    """

    matrix: np.ndarray
    origin: np.ndarray
    costophrenic: tuple[float, float]
    dome: tuple[float, float]

    def place(self, points: np.ndarray) -> np.ndarray:
        """Thorax points, float (..., 2) as (x, y), to pixels, float64 of the same shape."""
        return points @ self.matrix.T + (self.origin - 0.5 * self.matrix[:, 1])


@lru_cache(maxsize=32)
def _spline(n: int, closed: bool) -> np.ndarray:
    """Catmull-Rom weights, float64 (samples, n): samples @ control points is the curve through them."""
    t = np.linspace(0, 1, 8, endpoint=False)[:, None]
    basis = np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]) / 2
    rows = np.zeros(((n if closed else n - 1), 8, n))
    for i in range(len(rows)):
        for j in range(4):
            k = i + j - 1
            rows[i, :, k % n if closed else min(max(k, 0), n - 1)] += basis[:, j]
    weights = rows.reshape(-1, n)
    return weights if closed else np.vstack([weights, np.eye(n)[-1]])


def smooth(points: Sequence[tuple[float, float]] | np.ndarray, *, closed: bool = False) -> np.ndarray:
    """A smooth curve through float (n, 2) control points: float64 (samples, 2)."""
    return _spline(len(points), closed) @ np.asarray(points, np.float64)


def ellipse(x: float, y: float, wide: float, tall: float) -> np.ndarray:
    """Outline of an ellipse around (x, y) with the half axes `wide` and `tall`: float64 (24, 2)."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.column_stack([x + wide * np.cos(angle), y + tall * np.sin(angle)])


def mirror(points: np.ndarray | Sequence[tuple[float, float]], side: int) -> np.ndarray:
    """Float (..., 2) points written for x > 0, put on the side -1 (patient's right, image left) or 1."""
    return np.asarray(points, np.float64) * np.array([side, 1.0])


def fill(layer: np.ndarray, outlines: np.ndarray, value: int = 255) -> None:
    """Fill pixel outlines, float (n, 2) or (outlines, n, 2), on a uint8 layer."""
    shapes = outlines if outlines.ndim == 3 else outlines[None]
    cv2.fillPoly(layer, list(_fixed(shapes)), (value,), cv2.LINE_AA, _SUBPIXEL)


def trace(layer: np.ndarray, paths: np.ndarray, value: int, width: int) -> None:
    """Draw open pixel paths, float (paths, n, 2), on a uint8 layer, `width` pixels wide."""
    cv2.polylines(layer, list(_fixed(paths)), False, (value,), width, cv2.LINE_AA, _SUBPIXEL)


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.rint(points * (1 << _SUBPIXEL)).astype(np.int32)


def blank() -> np.ndarray:
    """An empty uint8 (GRID, GRID) layer."""
    return np.zeros((GRID, GRID), np.uint8)


def soften(layer: np.ndarray, sigma: float) -> np.ndarray:
    """A uint8 layer blurred by `sigma` pixels: float32 (GRID, GRID), 0..1."""
    shrink = _shrink(sigma)
    if shrink == 1:
        return _blur(layer, sigma) * np.float32(1 / 255)
    small = cv2.resize(layer, (GRID // shrink, GRID // shrink), interpolation=cv2.INTER_AREA)
    # A wide blur spreads one step of 8 bits into a visible band: give it 16.
    return _blur(small.astype(np.uint16) * np.uint16(256), sigma / shrink) * np.float32(1 / (255 * 256))


def grain(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Smooth noise, float32 (GRID, GRID), mean 0, standard deviation near 1, `sigma` pixels fine."""
    shrink = _shrink(sigma)
    raw = rng.integers(0, 256, (GRID // shrink, GRID // shrink), dtype=np.uint8)
    deviation = 256 / 12**0.5 / (2 * (sigma / shrink) * np.pi**0.5)
    return (_blur(raw, sigma / shrink) - np.float32(127.5)) * np.float32(1 / deviation)


def _shrink(sigma: float) -> int:
    # A wide blur loses nothing on a coarser grid.
    return 8 if sigma >= 16 else 4 if sigma >= 5 else 2 if sigma >= 2 else 1


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur a square uint8 or uint16 image and bring it to the grid: the same type, (GRID, GRID).

    On integers, because OpenCV's integer Gaussian is the same on every processor and its float one is not.
    """
    blurred = cv2.GaussianBlur(image, (0, 0), sigma)
    if len(image) == GRID:
        return blurred
    return cv2.resize(blurred, (GRID, GRID), interpolation=cv2.INTER_LINEAR_EXACT)
