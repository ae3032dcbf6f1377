"""Heatmaps as pictures: a map of evidence laid over the film it came from."""

from __future__ import annotations

import io

import cv2
import matplotlib
import numpy as np
from PIL import Image

_COLOURS = (matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)


def heatmap(attribution: np.ndarray, size: int) -> np.ndarray:
    """Positive evidence of a class map at the film's size.

    Args:
        attribution: float, (h, w), before the ReLU.
        size: Edge of the result.

    Returns:
        float32, (size, size), 0 to 1; all 0 where nothing speaks for the class.
    """
    positive = np.maximum(attribution, 0).astype(np.float32)
    large = cv2.resize(positive, (size, size), interpolation=cv2.INTER_CUBIC).clip(min=0)
    peak = large.max()
    return large / peak if peak > 0 else large


def overlay(pixels: np.ndarray, attribution: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """A film with its heatmap on top; opacity follows the heat, so that unmarked lung stays plain.

    Args:
        pixels: uint8, (S, S).
        attribution: float, (h, w).
        opacity: Of the hottest place, 0 to 1.

    Returns:
        uint8 RGB, (S, S, 3).
    """
    heat = heatmap(attribution, pixels.shape[0])
    colour = _COLOURS[(heat * 255).round().astype(np.uint8)].astype(np.float32)
    alpha = (opacity * np.sqrt(heat))[:, :, None]
    return (pixels[:, :, None] * (1 - alpha) + colour * alpha).round().astype(np.uint8)


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 (H, W) gray or (H, W, 3) RGB."""
    sink = io.BytesIO()
    # Level 1: an overlay compresses little better at 6, which takes five times as long.
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()
