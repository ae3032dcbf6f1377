"""Class names: one slug for each, whatever the public sets call it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

STANDARD = ("normal", "covid", "lung_opacity", "viral_pneumonia", "tuberculosis")

# Every spelling seen in the public sets of this task, reduced by `_plain`.
_ALIASES = {
    "healthy": "normal",
    "nofinding": "normal",
    "covid19": "covid",
    "sarscov2": "covid",
    "covid19pneumonia": "covid",
    "lungopacity": "lung_opacity",
    "opacity": "lung_opacity",
    "viralpneumonia": "viral_pneumonia",
    "pneumoniaviral": "viral_pneumonia",
    "tb": "tuberculosis",
    "ptb": "tuberculosis",
}


def label_slug(name: str) -> str:
    """The slug of a class name: ``"COVID-19"`` becomes ``covid``, ``"Pleural Effusion"`` ``pleural_effusion``.

    Raises:
        ValueError: Nothing is left of the name, or something that tells it from other names would be lost.
    """
    lost = _lost(name)
    if lost:
        raise ValueError(f"'{name}' cannot name a class: '{lost}' has no place in a metric's key, only a-z and 0-9")
    plain = _plain(name)
    if plain in _ALIASES:
        return _ALIASES[plain]
    slug = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    if not slug:
        raise ValueError(f"'{name}' cannot name a class: it has no letter or digit")
    return slug


def class_order(labels: Iterable[str]) -> list[str]:
    """The distinct slugs in the project's order: the standard five first, then others by the alphabet."""
    present = set(labels)
    return [name for name in STANDARD if name in present] + sorted(present.difference(STANDARD))


def _lost(name: str) -> str:
    """What a slug would drop although it carries meaning: foreign letters, and the signs of ``TB+`` and ``TB-``."""
    text = unicodedata.normalize("NFC", name.strip())
    kinds = [(character, unicodedata.category(character)) for character in text]
    lost = [
        character
        for character, kind in kinds
        if character in "+<>=!~" or not (character.isascii() or kind[0] in "PZ" or kind == "Cf")
    ]
    if kinds and kinds[-1][1] == "Pd":
        lost.append(text[-1])
    return "".join(dict.fromkeys(lost))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
