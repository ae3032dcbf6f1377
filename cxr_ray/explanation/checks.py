"""Checks of heatmaps against what is known to be true."""

from __future__ import annotations

import numpy as np


def cells_with(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Which cells of a heatmap's grid hold any pixel of a mask.

    Args:
        mask: bool, (H, W).
        grid: Rows and columns of the heatmap's grid.

    Returns:
        bool, (rows, columns).
    """
    rows, columns = np.nonzero(mask)
    held = np.zeros(grid, bool)
    held[rows * grid[0] // mask.shape[0], columns * grid[1] // mask.shape[1]] = True
    return held


def points_at(attribution: np.ndarray, finding: np.ndarray) -> bool:
    """The pointing game (Zhang et al. 2016, arXiv 1608.00507) at the grid's resolution.

    Args:
        attribution: float, (h, w): a class map before the ReLU.
        finding: bool, (H, W): where the finding truly is.

    Returns:
        Whether the strongest cell holds any pixel of the finding.
    """
    held = cells_with(finding, (attribution.shape[0], attribution.shape[1]))
    return bool(held.ravel()[int(attribution.argmax())])
