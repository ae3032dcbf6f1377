"""Frontal or lateral: what the words for a projection mean."""

from __future__ import annotations

import re

# DICOM Code Strings (PS3.3 C.8.1.3, C.8.11.5: LL, RL, LLD, RLD, LLO ...) and what metadata sheets write.
_LATERAL = frozenset(
    {"L", "LL", "RL", "LAT", "LATERAL", "LEFT LATERAL", "RIGHT LATERAL", "LLD", "RLD", "L LAT", "R LAT"}
)


def is_lateral(view: str | None) -> bool:
    """Whether a view's name says that the film was not taken from the front or the back; False where unknown."""
    if not view:
        return False
    return re.sub(r"[^A-Z]+", " ", view.upper()).strip() in _LATERAL
