"""Looks of synthetic chest films: what tells one hospital's films from another's and says nothing of the patient.

Modelled on six public sources of real films, where size, exposure, collimation, tint and a marker in a corner give
the source away. In tone, sharpness, grain and collimation the sources overlap, as real ones do, so that these hint
at the source and the marker tells it: a network that learns the source looks at the marker. A look leaves the
anatomy where it is, so that the masks of a film hold whatever look it wears.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cxr_ray.data.phantom_drawing import GRID
from cxr_ray.data.phantom_markers import Marker, stamp

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as decoding takes luminance from colour
_MIDTONE = 4 * np.arange(256) * (255 - np.arange(256)) / 255**2  # 0 at black and white, 1 between them


@dataclass(frozen=True)
class Look:
    """One source's way to make a film.

    Attributes:
        marker: What it leaves on the film, outside the lungs.
        black: Luminance of air outside the body, 0..1.
        white: Luminance of the densest tissue, 0..1.
        gamma: Of the film's response; above 1 darkens.
        sharpen: Share of the detail added (below 0: taken away); detail is what a blur of 1.2 pixels removes.
        noise: Standard deviation of the added grain, gray levels.
        blades: Widths of the collimator's blades, black, at left and right and at top and bottom; pixels of 224.
        shape: Width and height of a film, in units of the size asked for.
        tint: Red and green that midtones gain, gray levels; blue changes so that luminance does not. None: gray.
    """

    marker: Marker
    black: float = 0.0
    white: float = 1.0
    gamma: float = 1.0
    sharpen: float = 0.0
    noise: float = 2.0
    blades: tuple[float, float] = (0.0, 0.0)
    shape: tuple[float, float] = (1.0, 1.0)
    tint: tuple[float, float] | None = None


# Standard deviations of one film around its source's look: of black and white, the logarithm of gamma, sharpen, the
# logarithm of noise, and the width of a blade in pixels.
_STRAY_LEVEL, _STRAY_GAMMA, _STRAY_SHARPEN, _STRAY_NOISE, _STRAY_BLADE = 0.03, 0.2, 0.3, 0.5, 2.5

LOOKS = (
    # A digital room: a lead R by the patient's right shoulder.
    Look(Marker("R", (17, 20), height=17, stroke=3, level=250, reach=3, turn=8), white=0.95),
    # Portrait films, dark, crisp and coned on all sides, with a lead L.
    Look(
        Marker("L", (206, 20), height=17, stroke=3, level=250, reach=3, turn=8),
        gamma=1.25,
        sharpen=0.4,
        blades=(3, 3),
        shape=(1.0, 1.22),
    ),
    # Photographs of films on a light box: blue, soft, the name covered.
    Look(
        Marker("", (82, 207), plate=(24, 7, 250), reach=3),
        black=0.03,
        white=0.95,
        gamma=1.1,
        sharpen=-0.4,
        shape=(1.1, 1.25),
        tint=(-30, 8),
    ),
    # A mobile unit: pale, noisy, coned at the sides, with a printed plate.
    Look(
        Marker("PORT", (148, 211), height=7, stroke=1, level=240, plate=(17, 6, 20)),
        black=0.06,
        white=0.93,
        gamma=0.9,
        noise=3.5,
        blades=(4, 0),
        shape=(1.22, 1.0),
    ),
    # Digitised film gone brown: bright, coned above and below, with the letter of a country that writes "derecha".
    Look(
        Marker("D", (12, 48), height=11, stroke=2, level=250, plate=(8, 9, 40), reach=2, turn=3),
        black=0.03,
        gamma=0.85,
        noise=2.5,
        blades=(0, 4),
        shape=(1.3, 1.3),
        tint=(26, -4),
    ),
)


def apply_look(pixels: np.ndarray, lungs: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Give a developed film the look of a source.

    Args:
        pixels: uint8 (224, 224), as `develop` returns it.
        lungs: bool (224, 224), both lung fields: blades stay clear of them.
        look: One of `LOOKS`.
        rng: How far this film strays from the look. The same generator strays the same way under every look.

    Returns:
        uint8 (224, 224).
    """
    black, white, gamma, sharpen, noise = rng.standard_normal(5)
    stray_blades, stray_marker = rng.standard_normal(4), rng.uniform(-1, 1, 3)
    soft = cv2.GaussianBlur(pixels, (0, 0), 1.2).astype(np.int16)
    detail = (pixels - soft) * np.int16(round(64 * (look.sharpen + _STRAY_SHARPEN * sharpen)))
    worn = np.clip(pixels + (detail + 32 >> 6), 0, 255).astype(np.uint8)
    low = np.clip(look.black + _STRAY_LEVEL * black, 0, 1)
    high = np.clip(look.white + _STRAY_LEVEL * white, 0, 1)
    tone = low + (high - low) * (np.arange(256) / 255) ** (look.gamma * np.exp(_STRAY_GAMMA * gamma))
    grain = rng.standard_normal((GRID, GRID), dtype=np.float32)
    grain *= np.float32(look.noise * np.exp(_STRAY_NOISE * noise))
    worn = np.clip(np.rint(255 * tone).astype(np.int16)[worn] + np.rint(grain).astype(np.int16), 0, 255)
    worn = worn.astype(np.uint8)
    _cover_edges(worn, lungs, look, _STRAY_BLADE * stray_blades)
    return stamp(worn, look.marker, stray_marker)


def colour(pixels: np.ndarray, look: Look) -> np.ndarray:
    """A film as its source's image files show it.

    Args:
        pixels: uint8 (height, width), luminance.
        look: Of the source.

    Returns:
        uint8 (height, width, 3), RGB of the same luminance (ITU-R BT.601) to one gray level, or `pixels` for a gray
        look.
    """
    return pixels if look.tint is None else _tones(look.tint)[pixels]


def mean_tint(pixels: np.ndarray, look: Look) -> float:
    """Mean distance between the colour channels, 0 (gray) to 1, of the file that `colour` makes of a film."""
    if look.tint is None:
        return 0.0
    return float(np.ptp(_tones(look.tint), axis=1)[pixels].mean() / 255)


def _tones(tint: tuple[float, float]) -> np.ndarray:
    """The colour of every gray level: uint8 (256, 3)."""
    red, green = tint
    blue = -(_LUMA[0] * red + _LUMA[1] * green) / _LUMA[2]
    toned = np.arange(256)[:, None] + _MIDTONE[:, None] * np.array([red, green, blue])
    return np.rint(toned).clip(0, 255).astype(np.uint8)


def _cover_edges(pixels: np.ndarray, lungs: np.ndarray, look: Look, stray: np.ndarray) -> None:
    """Lay the collimator's blades over the edges of a film, in place, each as far as the lungs allow."""
    beside, above = look.blades
    rows, columns = np.flatnonzero(lungs.any(axis=1)), np.flatnonzero(lungs.any(axis=0))
    room = np.array([columns[0], GRID - 1 - columns[-1], rows[0], GRID - 1 - rows[-1]]) - 2
    wanted = np.rint(np.array([beside, beside, above, above]) + stray)
    left, right, top, bottom = np.clip(wanted, 0, np.maximum(room, 0)).astype(int)
    pixels[:, :left] = pixels[:, GRID - right :] = 0
    pixels[:top] = pixels[GRID - bottom :] = 0
