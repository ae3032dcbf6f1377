"""From a film of any shape to the square the network sees; one code path for import, training and serving."""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np

Fit = Literal["squash", "pad", "crop"]
FITS: tuple[str, ...] = get_args(Fit)


def fit_square(pixels: np.ndarray, size: int, fit: Fit) -> np.ndarray:
    """Resize a film to a square.

    Args:
        pixels: uint8, (height, width), 8-bit luminance.
        size: Edge of the square in pixels.
        fit: ``squash`` ignores the aspect ratio, ``pad`` keeps the whole film and fills with black,
            ``crop`` keeps the largest centred square.

    Returns:
        uint8, (size, size), contiguous.
    """
    height, width = pixels.shape
    if fit == "crop":
        edge = min(height, width)
        top, left = (height - edge) // 2, (width - edge) // 2
        pixels = pixels[top : top + edge, left : left + edge]
    elif fit == "pad" and height != width:
        scale = size / max(height, width)
        inner = _resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
        square = np.zeros((size, size), np.uint8)
        top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
        square[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return square
    return _resize(pixels, size, size)


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if pixels.shape == (height, width):
        return np.ascontiguousarray(pixels)
    # Area averaging is the only OpenCV filter that does not alias when shrinking, where films of several
    # megapixels come from; it degenerates to nearest neighbour when enlarging, so that goes to cubic.
    shrinking = pixels.shape[0] * pixels.shape[1] > height * width
    method = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    return cv2.resize(pixels, (width, height), interpolation=method)
