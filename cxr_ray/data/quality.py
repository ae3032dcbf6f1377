"""What can be measured on one film without knowing its label."""

from __future__ import annotations

import cv2
import numpy as np

MEASURES = ("brightness", "contrast", "sharpness", "saturated", "border")


def measure_quality(pixels: np.ndarray) -> dict[str, float]:
    """Measures of one film, each about 0 to 1.

    Args:
        pixels: uint8, (height, width), 8-bit luminance.

    Returns:
        ``brightness`` (mean), ``contrast`` (standard deviation), ``sharpness`` (standard deviation of the
        Laplacian), ``saturated`` (share of pixels at 0 or 255), ``border`` (share of whole rows and columns
        at the edges that are nearly constant: collimator blades, letter-boxing).
    """
    values = pixels.astype(np.float32) / 255.0
    laplacian = cv2.Laplacian(values, cv2.CV_32F, ksize=1)
    return {
        "brightness": float(values.mean()),
        "contrast": float(values.std()),
        "sharpness": float(laplacian.std()),
        "saturated": float(((pixels == 0) | (pixels == 255)).mean()),
        "border": _border_share(pixels),
    }


def difference_hash(pixels: np.ndarray) -> int:
    """64-bit difference hash (Krawetz 2013): signs of horizontal steps on a 9x8 thumbnail, row by row.

    Args:
        pixels: uint8, (height, width).

    Returns:
        An unsigned 64-bit integer; a small Hamming distance makes a near-duplicate candidate, no more.
    """
    thumbnail = cv2.resize(pixels, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = (thumbnail[:, 1:] > thumbnail[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _border_share(pixels: np.ndarray) -> float:
    flat = 3  # gray levels; JPEG noise on a constant border stays below it
    rows = pixels.max(axis=1).astype(int) - pixels.min(axis=1) <= flat
    columns = pixels.max(axis=0).astype(int) - pixels.min(axis=0) <= flat
    height = _leading(rows) + _leading(rows[::-1])
    width = _leading(columns) + _leading(columns[::-1])
    kept = max(0.0, 1 - height / len(rows)) * max(0.0, 1 - width / len(columns))
    return 1.0 - kept


def _leading(flags: np.ndarray) -> int:
    return int(np.argmin(flags)) if not flags.all() else len(flags)
