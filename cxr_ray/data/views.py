"""Frontal or lateral: what the words for a projection mean."""

from __future__ import annotations

import re

# DICOM Code Strings (PS3.3 C.8.1.3, C.8.11.5: LL, RL, LLD, RLD, LLO ...) and what metadata sheets write.
_LATERAL = frozenset({"L", "LL", "RL", "LLD", "RLD"})
_LATERAL_WORDS = frozenset({"LAT", "LATERAL"})
# Beside these the word tells how the patient lies, or a second film.
_OTHER_WORDS = frozenset({"DECUB", "DECUBITUS", "OBLIQUE", "PA", "AP"})


def is_lateral(view: str | None) -> bool:
    """Whether a view's name says that the film was not taken from the front or the back; False where unknown."""
    if not view:
        return False
    words = re.sub(r"[^A-Z]+", " ", view.upper()).split()
    return " ".join(words) in _LATERAL or (not _LATERAL_WORDS.isdisjoint(words) and _OTHER_WORDS.isdisjoint(words))
