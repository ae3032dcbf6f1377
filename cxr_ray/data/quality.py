"""What can be measured on films without knowing their labels: exposure, sharpness, borders, orientation.

`measure_quality` sees one film and runs where it is decoded; `measure_orientation` needs all films of a dataset.
cleanvision was tried and is not used: made for photographs, it calls none of 2,007 real films dark, light or of odd
aspect, and 141 blurred that are as sharp as the others but low in contrast.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import cv2
import numpy as np

from cxr_ray.data.phantom import PHANTOM_CLASSES, draw_phantom

MEASURES = ("brightness", "contrast", "sharpness", "saturated", "border")
ORIENTATION_MEASURES = ("inversion", "upside_down", "sideways")

_LARGEST = 224  # pixels; sharpness is that of a film seen by a network, whatever larger size is stored
_BLACK, _WHITE = 2, 253  # JPEG compression moves clipped pixels by a gray level or two
_ENDS = (20, 235)  # gray levels; beyond them a border is a blade or paper, and its noise no anatomy
_MARKERS = 0.03  # share of a line at either end of its gray levels: letters on a border
_EDGE = 16  # of the thumbnails that orientation is told from
_COARSE = 56  # of the squares that a thumbnail's border is found on
_PHANTOMS = 40
_SHRINKAGE = 0.1
_CERTAIN = 0.1  # of the mean film's likeness to itself


def measure_quality(square: np.ndarray) -> dict[str, float]:
    """Measures of one film; letter-boxes, blank strips and collimator blades count as border and in nothing else.

    Brightness, contrast and saturation are those of the central part (two thirds each way) of what is inside the
    border, as the air beside a patient is black and the marker letters white on the best of films.

    Sharpness compares two octaves of detail, so that neither exposure nor contrast changes it, and looks at no more
    than 224 pixels a side, so that datasets of other sizes agree. A film smaller than that is enlarged, looks
    blurred, and is. Reduction hides blur: what is narrower than a pixel here cannot be told any more, so a film of
    4 megapixels may be blurred by nine of its own pixels and still count as sharp.

    Args:
        square: uint8, (size, size), 8-bit luminance, size 16 or more.

    Returns:
        ``brightness``: mean, 0 black to 1 white.
        ``contrast``: from the 5th to the 95th percentile, 0 to 1.
        ``sharpness``: mean magnitude of detail between 0.8 and 1.6 pixels (difference of Gaussians) over that
        between 1.6 and 3.2; 0 where there is no detail, about 0.6 for a film, below 0.4 for a blurred one.
        ``saturated``: share of pixels that are black or white altogether, 0 to 1: burnt out, crushed, painted over.
            Only patches of at least a thirtieth of the square each way count, as grain reaches white here and there.
        ``border``: share of the square outside the film, 0 to 1; 1 where less than an eighth of its height or width
            shows anything, and the other measures are those of the whole square.
    """
    found = _inside(square)
    top, bottom, left, right = found or (0, len(square), 0, len(square))
    height, width = bottom - top, right - left
    center = square[top + height // 6 : bottom - height // 6, left + width // 6 : right - width // 6]
    low, high = _percentiles(center, (5, 95))
    return {
        "brightness": float(center.mean() / 255.0),
        "contrast": float(high - low) / 255.0,
        "sharpness": _sharpness(square, (top, bottom, left, right)),
        "saturated": _saturated(center, patch=max(3, round(len(square) / 32))),
        "border": 1.0 - height * width / square.size if found else 1.0,
    }


def measure_orientation(blocks: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """How far each film looks like an inverted, upside-down or lying one of its own dataset.

    Every film is compared with the dataset's mean film, turned in all eight ways and in both polarities. The
    comparison is a matched filter, the mean film divided by the films' covariance (Fisher 1936), made the same
    for all turns: of 2,007 real films, all upright, 13 are above 0 in one of the three, where plain correlation
    leaves 88. Forty phantoms count as films of the dataset, so that five films can be judged as well as thousands,
    and a dataset that is inverted throughout is seen as such.

    Args:
        blocks: uint8, (films, size, size) each: the dataset's films in pieces, read once.

    Returns:
        float64, (films,) each, in units of the mean film's likeness to itself, above 0 suspicious:
        ``inversion`` (dark bone on bright air), ``upside_down`` (turned by 180 degrees or flipped vertically),
        ``sideways`` (turned by 90 degrees either way, flipped or not).
    """
    # As bytes, a quarter of a kilobyte a film, and normalised some at a time, so that memory hardly grows with them.
    films = [np.stack([_thumbnail(square) for square in block]) for block in blocks]
    phantoms = _moments(_normalised(_phantom_thumbnails()))
    as_they_lie = sum((_moments(_normalised(part)) for part in films), phantoms)
    template = _matched_filter(phantoms)
    for _ in range(2):
        # A film that is certainly turned helps to describe the others once it is turned back.
        moments = as_they_lie.copy()
        for part in films:
            turned, back = _turned_back(_normalised(part), template)
            moments += _moments(back) - _moments(turned)
        template = _matched_filter(moments)
    found = [_suspicions(_normalised(part), template) for part in [*films, _NO_THUMBNAILS]]
    return {name: np.concatenate([part[name] for part in found]) for name in ORIENTATION_MEASURES}


def difference_hash(pixels: np.ndarray) -> int:
    """64-bit difference hash (Krawetz 2013): signs of horizontal steps on a 9x8 thumbnail, row by row.

    Args:
        pixels: uint8, (height, width).

    Returns:
        An unsigned 64-bit integer; a small Hamming distance makes a near-duplicate candidate, no more.
    """
    thumbnail = cv2.resize(pixels, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = (thumbnail[:, 1:] > thumbnail[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _inside(square: np.ndarray) -> tuple[int, int, int, int] | None:
    """Top, bottom, left and right of what is inside the border; None where next to nothing is."""
    height, width = square.shape
    top, bottom, left, right = 0, height, 0, width
    before = None
    while before != (top, bottom, left, right):
        before = top, bottom, left, right
        rows = square[:, left:right]
        top, bottom = top + _border_lines(rows[top:bottom]), bottom - _border_lines(rows[top:bottom][::-1])
        if bottom - top < height / 8:
            return None
        columns = square[top:bottom].T
        left, right = left + _border_lines(columns[left:right]), right - _border_lines(columns[left:right][::-1])
        if right - left < width / 8:
            return None
    # The line next to a border is a mixture of both.
    return top + (top > 0), bottom - (bottom < height), left + (left > 0), right - (right < width)


def _border_lines(lines: np.ndarray) -> int:
    """How many of the first rows show one gray level, marker letters aside."""
    for start in range(0, len(lines), 8):  # a few at a time, as most films have no border
        ordered = np.sort(lines[start : start + 8], axis=1)
        length = ordered.shape[1]
        low, high = ordered[:, int(_MARKERS * length)].astype(int), ordered[:, int((1 - _MARKERS) * length)].astype(int)
        middle = ordered[:, length // 2]
        at_an_end = (middle <= _ENDS[0]) | (middle >= _ENDS[1])
        flat = high - low <= np.where(at_an_end, 12, 3)
        if not flat.all():
            return start + int(np.argmin(flat))
    return len(lines)


def _percentiles(pixels: np.ndarray, wanted: tuple[float, ...]) -> np.ndarray:
    """As `np.percentile`, of uint8: counted instead of sorted."""
    below = np.cumsum(cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel())
    positions = np.array(wanted) / 100 * (pixels.size - 1)
    lower, upper = (np.searchsorted(below, edge(positions), side="right") for edge in (np.floor, np.ceil))
    return lower + (upper - lower) * (positions % 1)


def _saturated(center: np.ndarray, patch: int) -> float:
    kernel = np.ones((patch, patch), np.uint8)
    ends = (center <= _BLACK, center >= _WHITE)
    clipped = (cv2.morphologyEx(end.view(np.uint8), cv2.MORPH_OPEN, kernel) for end in ends if end.any())
    return sum(cv2.countNonZero(pixels) for pixels in clipped) / center.size


def _sharpness(square: np.ndarray, inside: tuple[int, int, int, int]) -> float:
    size = len(square)
    scale = min(1.0, _LARGEST / size)
    if scale < 1:
        square = cv2.resize(square, (_LARGEST, _LARGEST), interpolation=cv2.INTER_AREA)
    top, bottom, left, right = (round(line * scale) for line in inside)
    values = square[top:bottom, left:right].astype(np.float32) / 255.0
    first, second, third = (cv2.GaussianBlur(values, (0, 0), sigma) for sigma in (0.8, 1.6, 3.2))
    # Edges of what is burnt out or painted over are sharp on the most blurred of films.
    exposed = cv2.inRange(square[top:bottom, left:right], _ENDS[0] / 2 + 1, 255 - _ENDS[0] / 2 - 1)
    if cv2.countNonZero(exposed) < 0.1 * exposed.size:
        exposed[:] = 255
    fine, coarse = (cv2.mean(cv2.absdiff(*pair), exposed)[0] for pair in ((first, second), (second, third)))
    return fine / coarse if coarse > 1e-4 else 0.0


def _turns() -> np.ndarray:
    """int, (8, _EDGE * _EDGE): the eight ways to turn and flip a thumbnail, as indices into it.

    The first two keep top and bottom, the next two exchange them, the last four lay the film on its side.
    """
    grid = np.arange(_EDGE * _EDGE).reshape(_EDGE, _EDGE)
    upright = [grid, grid[:, ::-1], grid[::-1], grid[::-1, ::-1]]
    return np.stack([turned.ravel() for turned in [*upright, *(turned.T for turned in upright)]])


_NO_THUMBNAILS = np.zeros((0, _EDGE * _EDGE), np.uint8)
_TURNS = _turns()
_TURNS_BACK = np.argsort(_TURNS, axis=1)


def _thumbnail(square: np.ndarray) -> np.ndarray:
    """uint8, (_EDGE * _EDGE,): the film inside its border."""
    coarse = cv2.resize(square, (_COARSE, _COARSE), interpolation=cv2.INTER_AREA)
    top, bottom, left, right = _inside(coarse) or (0, _COARSE, 0, _COARSE)
    return cv2.resize(coarse[top:bottom, left:right], (_EDGE, _EDGE), interpolation=cv2.INTER_AREA).ravel()


def _normalised(thumbnails: np.ndarray) -> np.ndarray:
    """float32, (films, _EDGE * _EDGE): each of mean 0 and length 1; zeros where a film shows nothing."""
    values = thumbnails.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    shows_something = length > _EDGE  # a standard deviation of one gray level
    return np.where(shows_something, values / np.where(shows_something, length, 1), 0)


@functools.cache
def _phantom_thumbnails() -> np.ndarray:
    labels = [PHANTOM_CLASSES[number % len(PHANTOM_CLASSES)] for number in range(_PHANTOMS)]
    films = (draw_phantom(label, seed=0, index=number, size=64) for number, label in enumerate(labels))
    return np.stack([_thumbnail(film.pixels) for film in films])


def _moments(films: np.ndarray) -> np.ndarray:
    """float64, (_EDGE**2 + 1, _EDGE**2 + 1): sums of products; the last row and column are sums and the number."""
    sums = films.sum(axis=0, dtype=np.float64)[:, None]
    return np.block([[films.T @ films, sums], [sums.T, np.full((1, 1), float(len(films)))]])


def _matched_filter(moments: np.ndarray) -> np.ndarray:
    """float64, (_EDGE**2,): what to multiply a thumbnail with to tell how upright it is; 1 for the mean film."""
    moments = moments / moments[-1, -1]
    mean = moments[-1, :-1]
    mean = (mean + mean[_TURNS[1]]) / 2  # hearts lie on either side once films are flipped
    scatter = moments[:-1, :-1] - np.outer(mean, mean)
    covariance = np.mean([scatter[np.ix_(turn, turn)] for turn in _TURNS], axis=0)
    covariance += _SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    template = np.linalg.solve(covariance, mean)
    return template / (template @ mean)


def _likeness(films: np.ndarray, template: np.ndarray) -> np.ndarray:
    """float64, (films, 8): how much each film is like the mean film turned in each way."""
    return films @ template[_TURNS].T.astype(np.float32)


def _suspicions(films: np.ndarray, template: np.ndarray) -> dict[str, np.ndarray]:
    likeness = _likeness(films, template)
    inversion = -likeness.min(axis=1) - likeness.max(axis=1)
    likeness = np.where(inversion[:, None] > 0, -likeness, likeness)
    upright, upside_down, sideways = (part.max(axis=1) for part in np.split(likeness, (2, 4), axis=1))
    return {
        "inversion": inversion.astype(np.float64),
        "upside_down": (upside_down - np.maximum(upright, sideways)).astype(np.float64),
        "sideways": (sideways - np.maximum(upright, upside_down)).astype(np.float64),
    }


def _turned_back(films: np.ndarray, template: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The films that are certainly not upright, as they lie and upright."""
    likeness = _likeness(films, template)
    best = np.abs(likeness).argmax(axis=1)
    strength = np.take_along_axis(likeness, best[:, None], axis=1)
    certain = strength[:, 0] - np.abs(likeness[:, :2]).max(axis=1) > _CERTAIN
    certain |= -strength[:, 0] > _CERTAIN
    turned = films[certain]
    back = np.take_along_axis(turned, _TURNS_BACK[best[certain]], axis=1) * np.sign(strength[certain])
    return turned, back
