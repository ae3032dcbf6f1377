"""Any number of films of which none is like another, quickly, for benchmarks of whole data sets.

Two people's phantoms, each warped smoothly, are blended and exposed anew: every film is of nobody else, yet all are
framed alike, as films are.
"""

from __future__ import annotations

import cv2
import numpy as np

from cxr_ray.data.phantom import PHANTOM_CLASSES, draw_phantom


def draw_people(count: int = 300) -> np.ndarray:
    """uint8, (count, 224, 224): the phantoms to blend, their classes in turn."""
    return np.stack([draw_phantom(PHANTOM_CLASSES[i % 5], seed=7, index=i).pixels for i in range(count)])


def draw_unlike(random: np.random.Generator, people: np.ndarray) -> np.ndarray:
    """uint8, (224, 224): a film of somebody new."""
    one, other = random.choice(len(people), 2, replace=False)
    share = random.uniform(0.3, 0.7)
    blend = share * _warped(people[one], random) + (1 - share) * _warped(people[other], random)
    blend += random.normal(0, 3, blend.shape)
    return expose(blend / 255, random, 0.15)


def expose(values: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """uint8: a film (0 to 1) with another gamma, contrast and brightness."""
    gamma = 2 ** random.uniform(-4 * strength, 4 * strength)
    contrast, light = random.uniform(1 - 2 * strength, 1 + 2 * strength), random.uniform(-strength, strength) / 2
    exposed = (np.clip(values, 0, 1) ** gamma - 0.5) * contrast + 0.5 + light
    return np.round(255 * np.clip(exposed, 0, 1)).astype(np.uint8)


def _warped(film: np.ndarray, random: np.random.Generator) -> np.ndarray:
    size = film.shape[0]
    field = random.normal(0, 0.03 * size, (2, 5, 5)).astype(np.float32)
    dx, dy = (cv2.resize(part, (size, size), interpolation=cv2.INTER_CUBIC) for part in field)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return cv2.remap(film, x + dx, y + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
