"""The healthy person on a synthetic chest film: build, bones, heart, lungs and vessels, from one generator.

Everything is a thickness map: tissue adds attenuation, air takes it away, and `develop` turns the sum into
luminance. Shapes are written in the thorax coordinates of `Frame` and placed by its one affine map, so that
pose and build vary without touching a shape. Proportions are those of textbook frontal films: cardiothoracic
ratio near 0.45 (PA) and 0.53 (AP), the right dome half a rib space higher, the left hilum above the right one.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cxr_ray.data.phantom_drawing import GRID, Frame, blank, ellipse, fill, grain, mirror, smooth, soften, trace

# The lateral pleura of one lung, from the apex down the chest wall.
_PLEURA_Y = np.array([0.0, 0.03, 0.1, 0.2, 0.35, 0.55, 0.75, 1.0])
_PLEURA_X = np.array([0.36, 0.52, 0.66, 0.77, 0.87, 0.94, 0.975, 0.98])


@dataclass(frozen=True)
class Anatomy:
    """One healthy person, before the film is developed.

    Attributes:
        sex: "F" or "M".
        age: Years, 18..90.
        view: "PA" or "AP".
        frame: Where the thorax lies.
        attenuation: float32 (GRID, GRID), about 0 (air) to 1.3 (spine behind the heart).
        air: float32 (GRID, GRID), the attenuation that the air in the visible lungs takes away: what a finding
            that fills the air can add back. Nothing behind the heart, where no mask could show it.
        lungs: bool (2, GRID, GRID), the right and the left lung field as seen: without heart, mediastinum and
            what the domes hide.
    """

    sex: str
    age: int
    view: str
    frame: Frame
    attenuation: np.ndarray
    air: np.ndarray
    lungs: np.ndarray


def pleura(y: np.ndarray | float) -> np.ndarray:
    """Distance of the lateral pleura from the midline at the heights y; in thorax units, of one shape."""
    return np.asarray(np.interp(y, _PLEURA_Y, _PLEURA_X))


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one healthy person.

    Args:
        rng: The person's own generator; sex, age, view, build, pose and every vessel come from it.

    Returns:
        The person.
    """
    sex = "F" if rng.random() < 0.48 else "M"
    age = int(rng.integers(18, 91))
    view = "AP" if rng.random() < 0.35 else "PA"
    build = float(np.clip(rng.normal(0.0 if sex == "F" else 0.25, 0.6), -1.3, 1.6))  # thin .. stout
    frame = _frame(rng, sex=sex, view=view, build=build)
    body, arms = blank(), blank()
    _fill_body(body, arms, frame, rng, build)
    lung_layers = [_lung(frame, side) for side in (-1, 1)]
    heart = _heart(frame, rng, view=view, age=age)
    ribs = _ribs(frame, rng)
    bones = _shoulders_and_spine(frame, rng, view)
    markings = _vessels(frame, rng)

    # Thickness: full at the midline, thinner towards the silhouette; what lies below the domes is solid.
    trunk = soften(body, 1.2)
    thickness = trunk * (0.52 + 0.06 * build + 0.42 * soften(body, 22)) + 0.3 * soften(arms, 4)
    lungs_u8 = cv2.max(*lung_layers)
    inner = soften(lungs_u8, 7)
    hidden = soften(heart, 1.2)
    aerated = soften(lungs_u8, 0.9) * (0.45 + 0.55 * inner) * (1 - 0.86 * hidden)
    air = (thickness * rng.uniform(0.78, 0.88) * aerated).astype(np.float32)

    attenuation = thickness - air * (1 - rng.uniform(0.3, 0.55) * soften(markings, 0.65))
    attenuation += 0.2 * hidden * inner
    calcium = 1.15 - 0.004 * age  # bone thins with age
    # Ribs stand out against air and drown in the belly.
    contrast = (0.3 + 0.7 * inner) * (1 - 0.45 * hidden)
    attenuation += calcium * rng.uniform(0.2, 0.3) * soften(ribs, 0.7) * contrast
    attenuation += calcium * 0.16 * soften(bones, 0.9)
    attenuation -= 0.17 * _airway(frame, rng)
    attenuation += _abdomen(frame, rng) * thickness
    if sex == "F":
        attenuation += rng.uniform(0.06, 0.14) * _breasts(frame, rng, build) * trunk
    # Vessels and acini too small to be seen one by one leave a fine mottle.
    attenuation += air * (0.05 * grain(rng, 1.3) + 0.05 * grain(rng, 7))
    visible = [(layer > 127) & (heart < 128) for layer in lung_layers]
    return Anatomy(
        sex=sex,
        age=age,
        view=view,
        frame=frame,
        attenuation=np.maximum(attenuation, 0).astype(np.float32),
        air=air * (1 - hidden),
        lungs=np.stack(visible),
    )


def develop(attenuation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Expose and develop the film: focal blur, quantum noise, contrast, gamma and brightness, all from rng.

    Args:
        attenuation: float32 (GRID, GRID), 0 or more.
        rng: The person's generator, as `draw_anatomy` left it: exposure and noise belong to the person too.

    Returns:
        uint8 (GRID, GRID), bone bright and air dark.
    """
    blur, noise = rng.uniform(0.3, 0.75), rng.uniform(0.008, 0.03)
    knee, gamma = rng.uniform(1.5, 4.0), rng.uniform(1.0, 1.5)
    black, white = rng.uniform(0.0, 0.05), rng.uniform(0.86, 1.0)
    coded = np.clip(attenuation * np.float32(16384), 0, 65535).astype(np.uint16)
    focal = cv2.GaussianBlur(coded, (0, 0), blur) * np.float32(1 / 16384)
    # Fewer photons reach the detector behind more tissue, so that relative noise grows with attenuation.
    speckle = rng.standard_normal((GRID, GRID), dtype=np.float32)
    focal += speckle * (np.float32(noise) * (np.float32(0.35) + focal))
    steps = 1024  # a table of the film's response: faster than its power at every pixel
    exposure = np.arange(3 * steps) / steps
    luminance = black + (white - black) * (exposure * (1.2 + knee) / 1.2 / (exposure + knee)) ** gamma
    response = np.clip(luminance * 255, 0, 255).round().astype(np.uint8)
    return response[np.clip(focal * np.float32(steps), 0, len(response) - 1).astype(np.intp)]


def _frame(rng: np.random.Generator, *, sex: str, view: str, build: float) -> Frame:
    zoom = rng.uniform(0.92, 1.07)
    breath = rng.uniform(0.9, 1.06) * (0.94 if view == "AP" else 1.0)
    half_width = 93 * zoom * (0.95 if sex == "F" else 1.0) * (1 + 0.03 * build)
    height = 160 * zoom * breath * (0.96 if sex == "F" else 1.0) * (1 - 0.02 * build)
    angle = np.deg2rad(rng.uniform(-4, 4))
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos * half_width, -sin * height], [sin * half_width, cos * height]])
    origin = np.array([GRID / 2 + rng.uniform(-8, 8), GRID * 0.5 + rng.uniform(-8, 8)])
    right_dome = rng.uniform(0.77, 0.82)
    left_dome = right_dome + rng.uniform(0.025, 0.055)
    return Frame(matrix, origin, (0.985, 1.0), (right_dome, left_dome))


def _fill_body(body: np.ndarray, arms: np.ndarray, frame: Frame, rng: np.random.Generator, build: float) -> None:
    """Neck, shoulders and trunk on one layer, the upper arms on another."""
    fat = 0.04 * build
    slope = rng.uniform(-0.03, 0.04)
    half = [(0.23 + fat, -0.6), (0.24 + fat, -0.24), (0.34 + fat, -0.15), (0.62, -0.1 + slope)]
    half += [(0.95, -0.06 + slope), (1.2, 0.02 + slope), (1.27 + fat, 0.2), (1.16 + fat, 0.42)]
    half += [(1.11 + fat, 0.6), (1.09 + fat, 0.85), (1.1 + 1.5 * fat, 1.1), (1.12 + 2 * fat, 1.6)]
    fill(body, frame.place(np.vstack([smooth(mirror(half, 1)), smooth(mirror(half, -1))[::-1]])))
    spread = rng.uniform(0.0, 0.14)  # arms held away from the chest
    upper_arm = [(1.1, 0.0), (1.3, 0.0), (1.5, 0.2), (1.7 + spread, 0.9), (1.75 + spread, 1.6)]
    upper_arm += [(1.32 + spread, 1.6), (1.3 + spread, 0.9), (1.2, 0.42)]
    for side in (-1, 1):
        fill(arms, frame.place(smooth(mirror(upper_arm, side), closed=True)))


def _lung(frame: Frame, side: int) -> np.ndarray:
    """One lung down to its dome, reaching behind heart and mediastinum: uint8 (GRID, GRID)."""
    index = (side + 1) // 2
    angle, dome = frame.costophrenic[index], frame.dome[index]
    y = np.array([0.04, 0.1, 0.2, 0.35, 0.55, 0.75, 0.9])
    wall = np.column_stack([pleura(y), y])
    upper = smooth(np.vstack([[(0.0, 0.2), (0.16, 0.05), (0.33, 0.0)], wall, [(0.975, angle)]]))
    lower = smooth([(0.975, angle), (0.9, angle - 0.085), (0.72, dome + 0.035), (0.48, dome), (0.15, dome + 0.05)])
    layer = blank()
    fill(layer, frame.place(mirror(np.vstack([upper, lower, [(0.0, dome + 0.06)]]), side)))
    return layer


def _heart(frame: Frame, rng: np.random.Generator, *, view: str, age: int) -> np.ndarray:
    """Heart, upper mediastinum and aortic knob: uint8 (GRID, GRID)."""
    layer = blank()
    size = rng.uniform(0.88, 1.1) * (1.17 if view == "AP" else 1.0)
    left, right = 0.6 * size, 0.3 * size
    sag = frame.dome[1] - 0.8
    outline = [(0.14, 0.34), (0.25, 0.4), (0.27, 0.48), (0.6 * left, 0.57), (0.87 * left, 0.68)]
    outline += [(left, 0.8 + sag), (0.9 * left, 0.9 + sag), (0.2, 0.95), (-0.18, 0.93)]
    outline += [(-0.82 * right, 0.86), (-right, 0.72), (-0.9 * right, 0.6), (-0.18, 0.48), (-0.12, 0.36)]
    heart = frame.place(smooth(outline, closed=True))
    wide = rng.uniform(0.85, 1.2) * (1.1 if view == "AP" else 1.0)
    column = [(0.2 * wide, -0.08), (0.17 * wide, 0.1), (0.16 * wide, 0.3), (0.17, 0.6), (0.15, 1.1)]
    column += [(-0.15, 1.1), (-0.16, 0.5), (-0.16 * wide, 0.3), (-0.17 * wide, 0.1), (-0.22 * wide, -0.08)]
    fill(layer, frame.place(smooth(column, closed=True)))
    bulge = rng.uniform(0.07, 0.1) + 0.0005 * (age - 50)  # the arch unfolds with age
    fill(layer, frame.place(ellipse(0.15, 0.25, 1.25 * bulge, bulge)))
    fill(layer, heart)
    return layer


def _ribs(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Ten pairs: posterior arcs fall gently outwards, fainter anterior ones steeply inwards: uint8."""
    spacing, tilt = rng.uniform(0.092, 0.1), rng.uniform(0.8, 1.25)
    number = np.arange(10)[:, None]
    t = np.linspace(0, 0.94, 8)
    start = spacing * number - 0.035
    fall = tilt * (0.085 + 0.014 * number)
    reach = pleura(np.minimum(start + fall, 1.0)) + 0.01
    x = 0.09 + (reach - 0.09) * np.sin(t * np.pi / 2)
    y = start + fall * t**1.8 - 0.03 * np.sin(np.pi * t)
    posterior = np.stack([x, y], axis=-1)
    x = reach - (reach - 0.36 - 0.035 * number) * (1 - np.cos(t * np.pi / 2))
    y = start + fall + (0.1 + 0.022 * number) * np.sin(t * np.pi / 2)
    anterior = np.stack([x, y], axis=-1)[:7]
    back, front = blank(), blank()
    # A rib is a tube of cortex: bright edges, paler marrow.
    for layer, arcs, edge, core in ((back, posterior, 190, 120), (front, anterior, 120, 85)):
        paths = frame.place(np.concatenate([mirror(arcs, -1), mirror(arcs, 1)]))
        trace(layer, paths, edge, 6)
        trace(layer, paths, core, 4)
    return cv2.add(back, front)


def _shoulders_and_spine(frame: Frame, rng: np.random.Generator, view: str) -> np.ndarray:
    """Vertebrae, clavicles, scapulae and humeri: uint8. An AP film leaves the scapulae over the lungs."""
    layer = blank()
    top = np.arange(-0.32, 1.35, 0.098)[:, None]
    wide = 0.095 + 0.02 * np.maximum(top, 0)
    # Vertebral bodies with darker discs between them, and their pedicles.
    corner = np.array([(-1, 0.0), (1, 0.0), (1, 0.078), (-1, 0.078)])
    body = np.stack([wide * corner[:, 0], top + corner[:, 1]], axis=-1)
    corner = np.array([(0.042, 0.015), (0.082, 0.015), (0.062, 0.06)])
    pedicle = np.stack([0 * top + corner[:, 0], top + corner[:, 1]], axis=-1)
    fill(layer, frame.place(body), 150)
    fill(layer, frame.place(np.concatenate([pedicle, mirror(pedicle, -1)])), 230)
    lift = rng.uniform(-0.035, 0.03)
    inwards = rng.uniform(0.14, 0.24) if view == "AP" else rng.uniform(-0.06, 0.02)
    for side in (-1, 1):
        blade = np.array([(0.98, 0.0), (0.93, 0.14), (0.93, 0.3), (0.99, 0.46), (1.1, 0.3), (1.2, 0.1)])
        outline = frame.place(mirror(smooth(blade - (inwards, 0.0), closed=True), side))
        fill(layer, outline, 90)
        trace(layer, outline[None], 150, 1)
        shaft = np.array([(1.14, 0.09), (1.36, 0.07), (1.6, 0.8), (1.48, 0.8)])
        fill(layer, frame.place(mirror(shaft, side)), 190)
        fill(layer, frame.place(mirror(ellipse(1.25, 0.07, 0.12, 0.075), side)), 200)
        collar = np.array([(0.1, 0.1), (0.22, 0.075), (0.45, 0.05), (0.7, -0.005), (0.95, -0.04), (1.15, -0.02)])
        path = frame.place(mirror(smooth(collar + np.array([0, lift])), side))[None]
        trace(layer, path, 235, 7)
        trace(layer, path, 185, 4)
    return layer


def _vessels(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Branching pulmonary vessels, finer and fainter towards the periphery, larger at the bases: uint8."""
    layer = blank()
    scale = np.array([1.0, 0.62])  # a thorax unit is longer across than down
    side = np.repeat([-1.0, 1.0], 8)
    heading = np.deg2rad(np.tile(np.linspace(-80, 84, 8), 2) + rng.normal(0, 9, 16))
    hilum = np.where(side < 0, 0.45, 0.42)
    start = np.column_stack([np.full(16, 0.17), hilum]) + rng.normal(0, 0.02, (16, 2))
    length = rng.uniform(0.2, 0.3, 16) * (1 + 0.2 * np.sin(heading))
    strokes: list[tuple[np.ndarray, int, int]] = []
    for value, width in ((230, 4), (170, 2), (150, 1), (85, 1)):
        step = np.column_stack([np.cos(heading), np.sin(heading)]) * length[:, None] * scale
        bend = rng.normal(0, 0.09, (len(step), 1)) * step[:, ::-1] * np.array([1.0, -1.0])
        paths = np.stack([start, start + step / 2 + bend, start + step], axis=1)
        paths[..., 0] *= side[:, None]
        strokes.append((frame.place(paths), value, width))
        fork = rng.uniform(0.15, 0.5, (2, len(heading)))
        start, side = np.tile(start + step, (2, 1)), np.tile(side, 2)
        heading = np.concatenate([heading - fork[0], heading + fork[1]])
        length = np.tile(length, 2) * rng.uniform(0.55, 0.9, len(heading))
    for paths, value, width in reversed(strokes):  # the trunks lie on top
        trace(layer, paths, value, width)
    return layer


def _airway(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Trachea and main bronchi: float32 (GRID, GRID), 0..1."""
    layer = blank()
    bow = rng.uniform(-0.03, 0.01)  # the arch pushes the trachea to the right
    trachea = np.array([(-0.06, -0.6), (0.06, -0.6), (0.055, 0.0), (0.05 + bow, 0.27), (-0.06 + bow, 0.27)])
    fill(layer, frame.place(trachea), 230)
    bronchi = np.array([[(bow, 0.265), (-0.17, 0.4)], [(bow, 0.265), (0.2, 0.38)]])
    trace(layer, frame.place(bronchi), 170, 5)
    return soften(layer, 1.3)


def _abdomen(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """What lies under the domes, relative to soft tissue: float32, liver above 0 and stomach gas below."""
    liver = blank()
    dome = frame.dome[0]
    edge = [(-1.0, 1.0), (-0.9, dome + 0.12), (-0.5, dome + 0.01), (-0.1, dome + 0.06), (0.2, dome + 0.14)]
    fill(liver, frame.place(np.vstack([smooth(edge), [(0.1, 1.15), (-0.5, 1.6), (-1.0, 1.6)]])))
    density = 0.12 * soften(liver, 5)
    if rng.random() < 0.45:
        gas = blank()
        x, wide, tall = rng.uniform(0.35, 0.6), rng.uniform(0.12, 0.24), rng.uniform(0.04, 0.08)
        fill(gas, frame.place(ellipse(x, frame.dome[1] + 0.05 + tall, wide, tall)))
        density -= 0.42 * soften(gas, 1.5)
    return density


def _breasts(frame: Frame, rng: np.random.Generator, build: float) -> np.ndarray:
    """Breast shadows over the lower zones: float32 (GRID, GRID), 0..1."""
    layer = blank()
    wide, tall, low = 0.4 + 0.05 * build, rng.uniform(0.17, 0.24), rng.uniform(0.66, 0.82)
    for side in (-1, 1):
        fill(layer, frame.place(mirror(ellipse(0.62, low, wide, tall), side)))
    return soften(layer, 2.5) * (0.35 + 0.65 * soften(layer, 10))
