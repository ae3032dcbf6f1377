"""How strongly two columns of names hang together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def crosstab(rows: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, int]]:
    """Counts of every pair: by the first's values, then the second's, both sorted, zeros included."""
    pairs = Counter(zip(rows, columns, strict=True))
    names = sorted(set(columns))
    return {row: {column: pairs[row, column] for column in names} for row in sorted(set(rows))}


def cramers_v(rows: Sequence[str], columns: Sequence[str]) -> float | None:
    """Cramér's V with the bias correction of Bergsma (2013): 0 for independent columns, 1 if each tells the other.

    Args:
        rows: One value a film.
        columns: One value a film.

    Returns:
        0 to 1; None where a column has one value only, so that there is nothing to hang together, or a value of its own
        for every film, so that nothing can be told.
    """
    table = np.array([list(counts.values()) for counts in crosstab(rows, columns).values()], float)
    n, (r, c) = table.sum(), table.shape
    if r < 2 or c < 2:
        return None
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / n
    phi2 = ((table - expected) ** 2 / expected).sum() / n
    phi2 = max(0.0, phi2 - (r - 1) * (c - 1) / (n - 1))
    r, c = r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)
    if min(r, c) - 1 < 1e-9:
        return None
    return float(min(1.0, np.sqrt(phi2 / (min(r, c) - 1))))
