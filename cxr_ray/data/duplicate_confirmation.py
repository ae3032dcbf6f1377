"""Whether two films show the same: aligned, and compared in their detail.

Chest films of one framing correlate above 0.97 whoever they show, because lungs are dark and the rest is bright. What
tells them apart is the detail within these areas. So the correlation that counts is that of locally normalised
films: each pixel less the mean around it, over the standard deviation around it.

Measured on 2,007 real films: 99.6 % of 2,002 planted copies reach 0.93, and so do two pairs of the films themselves,
both of which are copies. Consecutive films of one patient reach 0.92, films of different people stay below 0.85.
"""

from __future__ import annotations

import cv2
import numpy as np

from cxr_ray.data.duplicate_candidates import THUMBNAIL

CONFIRMED = 0.93  # correlation of detail from which on two films show the same; see `find_near_duplicates`

_COARSE = 16  # pixels a side of the first two looks
_FIRST_LOOK = 0.93  # correlation below which no copy was seen, where the films are compared as they lie ...
_SECOND_LOOK = 0.99  # ... and where the second is moved onto the first
_DETAIL = 4.0  # pixels: standard deviation of the Gaussian that "around" means
_NOISE = 1e-3  # variance below which an area counts as flat, for films of range 0 to 1
_LEAST_OVERLAP = 0.5  # of a film
# Iterations of the alignment: after the first few a copy's detail is beyond this (0.868 the least of 1,795), and on
# different films the others would be spent in vain.
_ITERATIONS = ((4, 0.8), (50, CONFIRMED))


def confirm(pairs: np.ndarray) -> np.ndarray:
    """Compare pairs of films.

    Two looks at 16 pixels a side, for all pairs at once, leave a few pairs in a hundred for the full comparison,
    which costs 20 times as much.

    Args:
        pairs: uint8, (2, n, 64, 64): thumbnails (see `duplicate_candidates.thumbnail`), the first and the second of
            each pair.

    Returns:
        float64, (n,), rounded to 4 digits: the correlation of their detail after alignment, or 0 where the first
        looks show different films or no alignment is found.
    """
    first, second = pairs
    correlations = np.zeros(len(first))
    alike, movements = coarse_correlation(first, second)
    left = np.flatnonzero(alike >= _FIRST_LOOK)
    if not len(left):
        return correlations
    moved = [_moved(second[i], movements[i], cv2.BORDER_REPLICATE) for i in left]
    # By now a margin of what the second film may lack can be left out.
    alike, _ = coarse_correlation(first[left], np.stack(moved), margin=3)
    for i in left[alike >= _SECOND_LOOK]:
        correlations[i] = round(detail_correlation(first[i], second[i], movements[i]), 4)
    return correlations


def coarse_correlation(first: np.ndarray, second: np.ndarray, *, margin: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Correlation after removing what a small affine movement could explain, for many pairs at once.

    This is the tangent distance (Simard et al. 1993) as a correlation: small movements of a film span, to first
    order, the space of its gradient times 1, x and y, and both films are compared outside that space.

    Args:
        first: uint8, (n, 64, 64).
        second: uint8, (n, 64, 64).
        margin: Pixels of the 16 at each edge that do not count.

    Returns:
        float32, (n,), -1 to 1: the correlation; and float64, (n, 2, 3): the affine map, from pixels of the first film
        to pixels of the second, that explains most.
    """
    a, b = _coarse(first), _coarse(second)
    dy, dx = np.gradient(a, axis=(1, 2))
    y, x = np.mgrid[-1 : 1 : _COARSE * 1j, -1 : 1 : _COARSE * 1j].astype(np.float32)
    movements = np.stack([dx, x * dx, y * dx, dy, x * dy, y * dy, np.ones_like(a)], axis=1)
    inner = slice(margin, _COARSE - margin)
    tangents = movements[:, :, inner, inner].reshape(len(a), 7, -1)
    films = np.stack([a, b], axis=1)[:, :, inner, inner].reshape(len(a), 2, -1)
    gram = tangents @ tangents.transpose(0, 2, 1) + 1e-4 * np.eye(7, dtype=np.float32)
    explained = np.linalg.solve(gram, tangents @ films.transpose(0, 2, 1)).transpose(0, 2, 1)
    rest_a, rest_b = (films - explained @ tangents).transpose(1, 0, 2)
    product, square = (rest_a * rest_b).sum(axis=1), (rest_a * rest_a).sum(axis=1)
    correlations = product / np.maximum(np.sqrt(square * (rest_b * rest_b).sum(axis=1)), 1e-9)
    # The second film is `gain` times the first, moved; different contrast must not pass for a different movement.
    gain = np.maximum(product / np.maximum(square, 1e-9), 0.2)
    shifts = (explained[:, 1] - gain[:, None] * explained[:, 0]) / gain[:, None]
    return correlations, _as_matrices(shifts[:, :6].reshape(-1, 2, 3).astype(np.float64))


def detail_correlation(first: np.ndarray, second: np.ndarray, start: np.ndarray) -> float:
    """Normalised correlation of two films' detail, after aligning the second with the first by an affine map.

    The alignment maximises the enhanced correlation coefficient (Evangelidis and Psarakis 2008). Pixels that only
    one film shows, or that are clipped to black or white in one, do not count.

    Args:
        first: uint8, (64, 64).
        second: uint8, (64, 64).
        start: (2, 3): about where the alignment lies, from pixels of the first film to pixels of the second.

    Returns:
        -1 to 1; 0 where no alignment is found or the films share less than half of their area.
    """
    a, b = (film.astype(np.float32) / 255 for film in (first, second))
    matrix, correlation = start.astype(np.float32), 0.0
    for iterations, enough in _ITERATIONS:
        stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, iterations, 1e-4)
        try:
            _, matrix = cv2.findTransformECC(a, b, matrix, cv2.MOTION_AFFINE, stop)
        except cv2.error:  # it does not converge: these are different films
            return 0.0
        correlation = _aligned_correlation(first, second, matrix)
        if correlation < enough:
            break
    return correlation


def _aligned_correlation(first: np.ndarray, second: np.ndarray, matrix: np.ndarray) -> float:
    """Of two films' detail; 0 where they share too little."""
    a, b = (film.astype(np.float32) / 255 for film in (first, second))
    shared = _moved(np.ones_like(b), matrix) > 0.99
    near_edge = cv2.erode(shared.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=1) == 0
    if 1 - near_edge.mean() < _LEAST_OVERLAP:
        return 0.0
    clipped = _clipped(first) | (_moved(_clipped(second).astype(np.float32), matrix) > 0.01)
    counted = ~near_edge & ~clipped
    if counted.mean() < _LEAST_OVERLAP / 2:
        return 0.0
    details = (_detail(a)[counted], _detail(np.where(shared, _moved(b, matrix), a))[counted])
    x, y = (detail - detail.mean() for detail in details)
    return float((x * y).sum() / max(np.sqrt((x * x).sum() * (y * y).sum()), 1e-9))


def _coarse(films: np.ndarray) -> np.ndarray:
    """float32, (n, 16, 16): films reduced by area, blurred a little, and with mean 0."""
    values = _REDUCE @ (films.astype(np.float32) @ _REDUCE.T)
    return values - values.mean(axis=(1, 2), keepdims=True)


def _reducer() -> np.ndarray:
    """float32, (16, 64): what reduces and blurs a line of pixels; also from 0..255 to 0..1, over two of them."""
    area = np.kron(np.eye(_COARSE), np.full((1, THUMBNAIL // _COARSE), _COARSE / THUMBNAIL))
    blurred = cv2.sepFilter2D(area, -1, np.ones(1), cv2.getGaussianKernel(7, 0.75))
    return (blurred / np.sqrt(255)).astype(np.float32)


_REDUCE = _reducer()


def _as_matrices(shifts: np.ndarray) -> np.ndarray:
    """Maps between thumbnails' pixels (n, 2, 3), from shifts in coarse pixels.

    Args:
        shifts: float64, (n, 2, 3): along x and y, each its constant and its slopes over x and y from -1 to 1.
    """
    scale = THUMBNAIL / _COARSE
    slope = 2 / (THUMBNAIL - scale)  # of the coordinate from -1 to 1, over pixels of the thumbnail
    constant = -1 - slope * (scale - 1) / 2
    matrices = np.empty_like(shifts)
    matrices[:, :, :2] = np.eye(2) - scale * slope * shifts[:, :, 1:]
    matrices[:, :, 2] = -scale * (shifts[:, :, 0] + constant * shifts[:, :, 1:].sum(axis=2))
    return matrices


def _moved(film: np.ndarray, matrix: np.ndarray, border: int = cv2.BORDER_CONSTANT) -> np.ndarray:
    return cv2.warpAffine(film, matrix, film.shape, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=border)


def _detail(film: np.ndarray) -> np.ndarray:
    mean = cv2.GaussianBlur(film, (0, 0), _DETAIL)
    variance = cv2.GaussianBlur(film * film, (0, 0), _DETAIL) - mean * mean
    return (film - mean) / np.sqrt(np.maximum(variance, 0) + _NOISE)


def _clipped(film: np.ndarray) -> np.ndarray:
    """bool, (64, 64): inside areas of the film's darkest or brightest value."""
    extreme = (film == film.min()) | (film == film.max())
    return cv2.erode(extreme.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) > 0
