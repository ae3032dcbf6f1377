"""Films that lie as arrays in a file that holds many, to 8-bit luminance."""

from __future__ import annotations

import numpy as np

from cxr_ray.data.decode import DecodedImage
from cxr_ray.data.decode_image import luminance_of
from cxr_ray.data.resize import Fit, fit_square
from cxr_ray.errors import DecodeError


def decode_frame(frame: np.ndarray, size: int, fit: Fit) -> tuple[np.ndarray, DecodedImage]:
    """An array to the square that is stored, as `cxr_ray.data.decode.decode_square` does it with a file's bytes.

    Args:
        frame: (H, W), (H, W, 1) or (H, W, 3); uint8, or floating point from 0 to 1.
        size: Edge of the square in pixels.
        fit: How a film becomes a square.

    Returns:
        uint8, (size, size), and what is known of the film.

    Raises:
        DecodeError: Another shape, type or range.
    """
    if frame.ndim == 3 and frame.shape[2] == 1:
        frame = frame[:, :, 0]
    if frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] != 3) or min(frame.shape[:2]) < 2:
        raise DecodeError(f"is an array of shape {frame.shape}, no film", code="unsupported")
    if np.issubdtype(frame.dtype, np.floating):
        if not np.isfinite(frame).all() or frame.min() < 0 or frame.max() > 1:
            raise DecodeError("has values outside 0 to 1", code="unsupported")
        frame = (frame * 255).round().astype(np.uint8)
    elif frame.dtype != np.uint8:
        raise DecodeError(f"has values of type {frame.dtype}, neither uint8 nor floating point", code="unsupported")
    tint = 0.0
    if frame.ndim == 3:
        tint = float((frame.max(axis=2) - frame.min(axis=2)).mean() / 255.0)
        frame = luminance_of(np.ascontiguousarray(frame))
    height, width = frame.shape
    return fit_square(frame, size, fit), DecodedImage(pixels=frame, bit_depth=8, tint=tint, width=width, height=height)
