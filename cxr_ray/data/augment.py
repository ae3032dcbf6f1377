"""Augmentation on one dial a family; the only module that touches albumentations (and albucore, its arithmetic).

albumentations is frozen at 2.0.8, its last release under the MIT licence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

_EXPOSURE = 0.4  # of contrast and brightness, at dial 1
_SCALE = 0.2
_ROTATION = 15.0  # degrees
_SHIFT = 0.12  # of an edge


class AugmentConfig(BaseModel):
    """How strongly training images are varied.

    Attributes:
        exposure: Dial for brightness and contrast, 0 (off) to 1 (far over- and under-exposed).
        geometry: Dial for shift, scale and rotation, 0 (off) to 1 (15 degrees, 20 % scale, 12 % shift).
        horizontal_flip: Mirror half of the images. Off by default: the heart lies on one side.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    exposure: float = Field(default=0.3, ge=0, le=1)
    geometry: float = Field(default=0.3, ge=0, le=1)
    horizontal_flip: bool = False


class Augmentation:
    """A reproducible random transform of one film at a time.

    Equal to albumentations' `Affine` and `RandomBrightnessContrast` with the same parameters, as a test holds it to.
    Their `Compose` took 190 of the 290 microseconds that a film of 224 pixels cost, and the functions under it 27 of
    the 120 that were left, so OpenCV is called here as they call it; exposure is albumentations' own arithmetic.

    Args:
        config: The dials.
    """

    def __init__(self, config: AugmentConfig) -> None:
        from albucore import multiply_add  # albumentations' arithmetic; it takes a third of a second to import

        self._config = config
        self._multiply_add = multiply_add

    def __call__(self, pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Transform one film.

        Args:
            pixels: uint8, (S, S).
            random: Five numbers are drawn for geometry, one for the flip and two for exposure, whichever are on, so
                that a film's exposure does not depend on the dial of its geometry.

        Returns:
            uint8, (S, S).
        """
        draws = random.uniform(-1, 1, 8).tolist()
        geometry, exposure = self._config.geometry, self._config.exposure
        flip = self._config.horizontal_flip and draws[5] < 0
        if geometry > 0 or flip:
            matrix = affine_matrix(len(pixels), [geometry * draw for draw in draws[:5]], flip=flip)
            pixels = cv2.warpAffine(pixels, matrix, pixels.shape)  # linear, black outside
        if exposure > 0:
            contrast, brightness = (_EXPOSURE * exposure * draw for draw in draws[6:])
            pixels = self._multiply_add(pixels, 1 + contrast, 255 * brightness)
        return pixels


def affine_matrix(size: int, dials: Sequence[float], *, flip: bool) -> np.ndarray:
    """Where the pixels of a film go: scaled along both axes, turned (counter-clockwise), shifted.

    Args:
        size: Edge of the film, pixels.
        dials: Five, -1 to 1: scale along x and y, rotation, shift along x and y.
        flip: Mirror it.

    Returns:
        float64, (2, 3), from pixels of the film to pixels of the film transformed.
    """
    scale_x, scale_y = 1 + _SCALE * dials[0], 1 + _SCALE * dials[1]
    if flip:
        scale_x = -scale_x
    angle = math.radians(_ROTATION * dials[2])
    cosine, sine = math.cos(angle), math.sin(angle)
    a, b, c, d = cosine * scale_x, sine * scale_y, -sine * scale_x, cosine * scale_y
    centre, shift = (size - 1) / 2, _SHIFT * size
    return np.array([[a, b, shift * dials[3] + centre * (1 - a - b)], [c, d, shift * dials[4] + centre * (1 - c - d)]])
