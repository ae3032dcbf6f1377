"""Synthetic frontal chest films ("phantoms") with a known finding, for the demo, tests and benchmarks.

A person (`phantom_anatomy`) comes from one generator and the finding from another, so that nothing but the
finding tells the classes apart, and every film with a finding has a twin without it. Findings lie where
radiology describes them and only replace air in the lungs, as disease does: ribs and vessels show through.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cxr_ray.data.phantom_anatomy import Anatomy, develop, draw_anatomy, pleura
from cxr_ray.data.phantom_drawing import GRID, blank, fill, grain, mirror, smooth, soften, trace
from cxr_ray.data.phantom_looks import Look, apply_look
from cxr_ray.errors import DataError, did_you_mean

PHANTOM_CLASSES = ("normal", "covid", "lung_opacity", "viral_pneumonia", "tuberculosis")

_SMALLEST = 64  # pixels a side; below this a nodule is less than a pixel
_LOOK_STREAM = 101  # of random numbers, beside the person's and those of the labels
_HARD_SHARE = 0.1  # of the films with a finding: so faint that a reader may miss it
_SIDES = (-1, 1)  # the patient's right (image left) and left


@dataclass(frozen=True)
class Phantom:
    """A synthetic frontal chest film.

    Attributes:
        pixels: uint8 (size, size), luminance 0..255, bone bright and air dark (MONOCHROME2).
        finding_mask: bool (size, size), where the finding is; all False for `normal`.
        lung_mask: bool (size, size), both lung fields, without heart, mediastinum and what the domes hide.
        label: One of `PHANTOM_CLASSES`.
        sex: "F" or "M".
        age: Years, 18..90.
        view: "PA", or "AP" (wider heart, scapulae over the lungs, shallower breath).
    """

    pixels: np.ndarray
    finding_mask: np.ndarray
    lung_mask: np.ndarray
    label: str
    sex: str
    age: int
    view: str


def draw_phantom(label: str, *, seed: int, index: int, size: int = GRID, look: Look | None = None) -> Phantom:
    """Draw one film.

    The same arguments give the same bytes in any order and process. The same `seed` and `index` give the same
    person, pose and exposure whatever the label and size: `draw_phantom("normal", ...)` is the film before
    the disease, equal to the diseased one away from the finding and its soft edge. So give each film of a
    data set an index of its own, or one person appears under several labels. About one finding in ten is
    hard to see.

    Args:
        label: One of `PHANTOM_CLASSES`.
        seed: 0 or more; one a data set.
        index: 0 or more; one a film.
        size: Pixels a side, 64 or more. Drawn at 224 and resampled.
        look: Of the source the film comes from; it changes the pixels, never the person, the finding or the masks.
            None leaves the film as it was developed.

    Returns:
        The film, its masks and the person's data.

    Raises:
        DataError: The label is unknown or the size too small.
    """
    if label not in PHANTOM_CLASSES:
        hint = did_you_mean(label, PHANTOM_CLASSES)
        raise DataError(f"phantom label {label!r} is not one of {', '.join(PHANTOM_CLASSES)}{hint}")
    if size < _SMALLEST:
        raise DataError(f"phantom size {size} is too small; {_SMALLEST} or more is allowed")
    person_rng = np.random.default_rng([seed, index])
    # Counted from 1: numpy takes [seed, index, 0] for [seed, index].
    finding_rng = np.random.default_rng([seed, index, 1 + PHANTOM_CLASSES.index(label)])
    anatomy = draw_anatomy(person_rng)
    lungs = np.logical_or(*anatomy.lungs)
    attenuation, mask = anatomy.attenuation, np.zeros_like(lungs)
    if label != "normal":
        hard = finding_rng.random() < _HARD_SHARE
        severity = finding_rng.uniform(0.2, 0.35) if hard else finding_rng.uniform(0.6, 1.0)
        opacity, extent = _FINDINGS[label](anatomy, finding_rng)
        attenuation = attenuation + anatomy.air * np.clip(severity * opacity, 0, 1).astype(np.float32)
        mask = np.logical_and(extent, lungs)
    pixels = develop(attenuation, person_rng)
    if look is not None:
        pixels = apply_look(pixels, lungs, look, np.random.default_rng([seed, index, _LOOK_STREAM]))
    return Phantom(
        pixels=_resample(pixels, size),
        finding_mask=_resample_mask(mask, size),
        lung_mask=_resample_mask(lungs, size),
        label=label,
        sex=anatomy.sex,
        age=anatomy.age,
        view=anatomy.view,
    )


def _resample(image: np.ndarray, size: int) -> np.ndarray:
    """Resize a uint8 (GRID, GRID) image; in integers, so that every processor gives the same bytes."""
    if size == GRID:
        return image
    if size < GRID:  # bilinear reading skips pixels when it shrinks: blur away what the new grid cannot hold
        image = cv2.GaussianBlur(image, (0, 0), 0.45 * ((GRID / size) ** 2 - 1) ** 0.5)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)


def _resample_mask(mask: np.ndarray, size: int) -> np.ndarray:
    return _resample(np.where(mask, np.uint8(255), np.uint8(0)), size) > 127


def _blob(
    rng: np.random.Generator, center: tuple[float, float], radius: tuple[float, float], rough: float
) -> np.ndarray:
    """An irregular closed outline around `center`, float64 (n, 2), in the units of its arguments."""
    angle = np.linspace(0, 2 * np.pi, 9, endpoint=False)
    reach = rng.uniform(1 - rough, 1 + rough, 9)[:, None]
    unit = np.column_stack([np.cos(angle), np.sin(angle)])
    return smooth(np.array(center) + unit * reach * np.array(radius), closed=True)


# Each finding below returns its opacity, float32 (GRID, GRID), the share of the air it replaces at full severity
# (0..1, clipped by the caller), and its extent, bool (GRID, GRID), not yet cut to the lungs.


def _ground_glass(anatomy: Anatomy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """COVID-19 pneumonia: patchy ground-glass, bilateral, peripheral, mid to lower zones.

    Placement after the "classic" pattern of the BSTI and the Fleischner Society's descriptions: multiple hazy
    subpleural opacities on both sides that do not hide the vessels.
    """
    layer = blank()
    for side in _SIDES:
        for height in rng.permutation(np.linspace(0.42, 0.88, 5))[: rng.integers(2, 5)]:
            y = height + rng.uniform(-0.05, 0.05)
            x = float(pleura(y)) - rng.uniform(0.05, 0.2)
            radius = (rng.uniform(0.12, 0.24), rng.uniform(0.06, 0.12))
            outline = mirror(_blob(rng, (x, y), radius, 0.35), side)
            fill(layer, anatomy.frame.place(outline), int(rng.integers(170, 256)))
    haze = soften(layer, 3.5)
    return haze * (0.62 + 0.16 * grain(rng, 2.2)), haze > 0.3


def _consolidation(anatomy: Anatomy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lobar or segmental consolidation: one lung, dense, often bounded by a fissure.

    Placement after textbook lobar pneumonia: a straight edge where a fissure bounds the lobe, bronchi that may
    stay open as air bronchograms, and at times a small effusion that blunts the costophrenic angle.
    """
    side, upper = int(rng.choice(_SIDES)), rng.random() < 0.4
    center = (rng.uniform(0.5, 0.72), rng.uniform(0.26, 0.38) if upper else rng.uniform(0.58, 0.72))
    outline = _blob(rng, center, (rng.uniform(0.3, 0.42), rng.uniform(0.17, 0.24)), 0.25)
    body, fissure, bronchi, effusion = blank(), blank(), blank(), blank()
    fill(body, anatomy.frame.place(mirror(outline, side)))
    level, tilt = center[1] + (0.07 if upper else -0.07), rng.uniform(-0.08, 0.08)
    beyond = -1.0 if upper else 2.0
    if rng.random() < 0.75:
        half_plane = np.array([(0.0, level - tilt), (1.2, level + tilt), (1.2, beyond), (0.0, beyond)])
        fill(fissure, anatomy.frame.place(mirror(half_plane, side)))
    else:
        fissure[:] = 255
    ends = np.array(center) + rng.uniform(-1, 1, (4, 2)) * (0.22, 0.1)
    start = np.full((4, 2), (0.2, 0.44))
    paths = np.stack([start, start + (ends - start) * (0.5, 0.6), ends], axis=1)
    trace(bronchi, anatomy.frame.place(mirror(paths, side)), int(rng.integers(0, 200)), 2)
    lobe = soften(body, 3) * soften(fissure, 0.8)
    opacity = lobe * (0.95 + 0.08 * grain(rng, 2.5)) * (1 - 0.5 * soften(bronchi, 0.8))
    if not upper and rng.random() < 0.5:
        # Fluid climbs the chest wall: a meniscus from the wall down to the dome.
        angle, depth = anatomy.frame.costophrenic[(side + 1) // 2], rng.uniform(0.1, 0.2)
        meniscus = smooth([(1.0, angle - depth), (0.9, angle - 0.6 * depth), (0.7, angle - 0.45 * depth)])
        floor = [(0.6, angle - 0.3 * depth), (0.6, angle + 0.1), (1.1, angle + 0.1), (1.1, angle - depth)]
        fill(effusion, anatomy.frame.place(mirror(np.vstack([meniscus, floor]), side)))
    fluid = soften(effusion, 1.2)
    return np.maximum(opacity, 1.1 * fluid), np.maximum(lobe, fluid) > 0.4


def _interstitial(anatomy: Anatomy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Viral pneumonia: a fine net of lines and hazy peribronchial bands through both lungs.

    Placement after textbook viral (atypical) pneumonia: diffuse and bilateral, densest around the hila.
    """
    region, bands = blank(), blank()
    for side in _SIDES:
        center = (rng.uniform(0.42, 0.52), rng.uniform(0.44, 0.58))
        outline = _blob(rng, center, (rng.uniform(0.38, 0.52), rng.uniform(0.36, 0.48)), 0.15)
        fill(region, anatomy.frame.place(mirror(outline, side)))
        heading = np.deg2rad(rng.uniform(-75, 80, 7))
        length = rng.uniform(0.25, 0.5, (7, 1))
        start = np.full((7, 2), (0.22, 0.43))
        ends = start + np.column_stack([np.cos(heading), 0.7 * np.sin(heading)]) * length
        trace(bands, anatomy.frame.place(mirror(np.stack([start, ends], axis=1), side)), 255, 5)
    extent = soften(region, 8)
    # Zero crossings of smooth noise form a net of closed cells: the reticulation of thickened septa.
    net = np.clip(1 - np.abs(grain(rng, 2.1)) / np.float32(0.65), 0, 1)
    net *= np.clip(0.75 + 0.45 * grain(rng, 6), 0, 1.5)  # here and there, not like a sieve
    return extent * (0.42 * net + 0.28 * soften(bands, 2.5) + 0.05), extent > 0.4


def _nodules(anatomy: Anatomy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Post-primary tuberculosis: apical and upper-zone nodules, often with a cavity, on one side or both.

    Placement after textbook post-primary disease: apical and posterior segments of the upper lobes; a cavity
    is a thick-walled ring with air inside.
    """
    solid, extent, rings = blank(), blank(), rng.random() < 0.5
    both, first = rng.random() < 0.4, int(rng.choice(_SIDES))
    for side in (first, -first) if both else (first,):
        for _ in range(rng.integers(5, 12)):
            y = rng.uniform(0.07, 0.36)
            x = rng.uniform(0.34, float(pleura(y)) - 0.07)
            radius = rng.uniform(0.02, 0.06)
            nodule = mirror(_blob(rng, (x, y), (radius, 0.6 * radius), 0.2), side)
            fill(solid, anatomy.frame.place(nodule), int(rng.integers(170, 256)))
            fill(extent, anatomy.frame.place(nodule))
        if rings and side == first:
            y = rng.uniform(0.14, 0.28)
            radius = rng.uniform(0.1, 0.16)
            center = (rng.uniform(0.42, float(pleura(y)) - radius), y)
            wall = mirror(_blob(rng, center, (radius, 0.6 * radius), 0.18), side)
            middle = mirror(np.array([center]), side)
            fill(extent, anatomy.frame.place(wall))
            fill(solid, anatomy.frame.place(wall), 220)
            fill(solid, anatomy.frame.place(middle + (wall - middle) * rng.uniform(0.55, 0.7)), 0)
    opacity = 0.66 * soften(solid, 1.1) * (1 + 0.2 * grain(rng, 2.2)) + 0.25 * soften(extent, 4)
    return opacity, soften(extent, 1.2) > 0.35


_FINDINGS = {
    "covid": _ground_glass,
    "lung_opacity": _consolidation,
    "viral_pneumonia": _interstitial,
    "tuberculosis": _nodules,
}
