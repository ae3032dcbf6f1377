"""Markers on synthetic chest films: lead letters and printed plates, outside the lungs, as hospitals leave them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cxr_ray.data.phantom_drawing import blank, fill, trace

# Pen strokes of the letters that markers use, in units of the letter's height: x to the right, y down from the top.
_STROKES: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "D": (((0, 0), (0.32, 0), (0.6, 0.25), (0.6, 0.75), (0.32, 1), (0, 1), (0, 0)),),
    "L": (((0, 0), (0, 1), (0.6, 1)),),
    "O": (((0.2, 0), (0.42, 0), (0.62, 0.25), (0.62, 0.75), (0.42, 1), (0.2, 1), (0, 0.75), (0, 0.25), (0.2, 0)),),
    "P": (((0, 1), (0, 0), (0.42, 0), (0.6, 0.13), (0.6, 0.4), (0.42, 0.53), (0, 0.53)),),
    "R": (((0, 1), (0, 0), (0.4, 0), (0.6, 0.12), (0.6, 0.38), (0.4, 0.5), (0, 0.5)), ((0.3, 0.5), (0.62, 1))),
    "T": (((0, 0), (0.62, 0)), ((0.31, 0), (0.31, 1))),
}
_LETTER_WIDTH, _GAP = 0.62, 0.24  # of the letter's height


@dataclass(frozen=True)
class Marker:
    """What a hospital leaves on its films, at 224 pixels a side.

    Attributes:
        text: Letters of D, L, O, P, R and T; none for a blank plate.
        center: The pixel (x, y) it lies around.
        height: Of the letters, pixels.
        stroke: Width of the letters' lines, pixels.
        level: Luminance of the letters, 0..255.
        plate: Half width, half height (pixels) and luminance of the plate behind the letters; None for lead letters
            that lie on the film itself.
        reach: How far it strays from its center, pixels each way.
        turn: How far it turns, degrees each way: a hand places lead letters, a machine prints straight.
    """

    text: str
    center: tuple[float, float]
    height: float = 0.0
    stroke: int = 1
    level: int = 255
    plate: tuple[float, float, int] | None = None
    reach: float = 1.0
    turn: float = 0.0


def stamp(pixels: np.ndarray, marker: Marker, stray: np.ndarray) -> np.ndarray:
    """Put a marker on a film.

    Args:
        pixels: uint8 (224, 224).
        marker: What to put there.
        stray: float (3,), -1..1: how much of its reach to the right and down, and of its turn, it takes.

    Returns:
        uint8 (224, 224), a new film.
    """
    angle = np.deg2rad(marker.turn * stray[2])
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    center = np.array(marker.center) + marker.reach * stray[:2]
    if marker.plate is not None:
        half_width, half_height, level = marker.plate
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (half_width, half_height)
        layer = blank()
        fill(layer, corners @ rotation + center)
        pixels = _paint(pixels, layer, level)
    layer = blank()
    for path in _outlines(marker):
        trace(layer, (path @ rotation + center)[None], 255, marker.stroke)
    return _paint(pixels, layer, marker.level)


def _outlines(marker: Marker) -> list[np.ndarray]:
    """The text's strokes around the point (0, 0): float64 (n, 2) each, pixels."""
    step = _LETTER_WIDTH + _GAP
    middle = np.array([(step * len(marker.text) - _GAP) / 2, 0.5])
    return [
        (np.array(stroke) + (step * number, 0) - middle) * marker.height
        for number, letter in enumerate(marker.text)
        for stroke in _STROKES[letter]
    ]


def _paint(pixels: np.ndarray, layer: np.ndarray, level: int) -> np.ndarray:
    """Cover a film with one luminance as far as a layer says, both uint8 (GRID, GRID); in integers."""
    rows, columns = np.flatnonzero(layer.any(axis=1)), np.flatnonzero(layer.any(axis=0))
    if not len(rows):
        return pixels
    where = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    cover, below = layer[where].astype(np.int32), pixels[where].astype(np.int32)
    painted = pixels.copy()
    painted[where] = (below * (255 - cover) + level * cover + 127) // 255
    return painted
