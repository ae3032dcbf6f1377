"""Augmentation on one dial a family; the only module that touches albumentations.

albumentations is frozen at 2.0.8, its last release under the MIT licence. Its import asks the network for a
newer version unless told not to.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field


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
    """A reproducible random transform of one image at a time.

    Args:
        config: The dials.
    """

    def __init__(self, config: AugmentConfig) -> None:
        import albumentations as A

        transforms: list[Any] = []  # albumentations wants an invariant union
        if config.geometry > 0:
            dial = config.geometry
            transforms.append(
                A.Affine(
                    scale=(1 - 0.2 * dial, 1 + 0.2 * dial),
                    translate_percent=(-0.12 * dial, 0.12 * dial),
                    rotate=(-15 * dial, 15 * dial),
                    interpolation=cv2.INTER_LINEAR,
                    border_mode=cv2.BORDER_CONSTANT,
                    fill=0,
                    p=1.0,
                )
            )
        if config.exposure > 0:
            dial = config.exposure
            transforms.append(
                A.RandomBrightnessContrast(
                    brightness_limit=(-0.4 * dial, 0.4 * dial),
                    contrast_limit=(-0.4 * dial, 0.4 * dial),
                    p=1.0,
                )
            )
        if config.horizontal_flip:
            transforms.append(A.HorizontalFlip(p=0.5))
        self._compose = A.Compose(transforms) if transforms else None

    def __call__(self, pixels: np.ndarray, seed: int) -> np.ndarray:
        """Transform one image.

        Args:
            pixels: uint8, (S, S).
            seed: The same seed gives the same transform, whatever came before.

        Returns:
            uint8, (S, S).
        """
        if self._compose is None:
            return pixels
        self._compose.set_random_seed(seed)
        return self._compose(image=pixels[:, :, None])["image"][:, :, 0]
