"""The tuberculosis sets of the National Library of Medicine: Montgomery County and Shenzhen."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from cxr_ray.data.listing import LUNG_MASK, Listing, SetFacts, SourceFile
from cxr_ray.data.readers.common import film_paths, not_this_set, number
from cxr_ray.errors import DataError
from cxr_ray.paths import Location

_LICENCE = (
    "for research; the NLM asks to be named as the source, to cite Jaeger et al. 2014, and not to pass the set on"
)
_PAGE = "https://lhncbc.nlm.nih.gov/LHC-downloads/dataset.html"

MONTGOMERY = SetFacts(
    name="montgomery",
    title="Montgomery County chest X-ray set (NLM)",
    page=_PAGE,
    licence=_LICENCE,
    population="mixed",
    sources=["Department of Health and Human Services, Montgomery County, Maryland"],
    defects=[
        "138 films only (80 normal, 58 tuberculosis): intervals are wide.",
        "The set 'tb' names the NLM's films among its sources: merging the two duplicates films.",
    ],
)
SHENZHEN = SetFacts(
    name="shenzhen",
    title="Shenzhen chest X-ray set (NLM)",
    page=_PAGE,
    licence=_LICENCE,
    population="mixed",
    sources=["Shenzhen No. 3 People's Hospital"],
    defects=[
        "662 films (326 normal, 336 tuberculosis) of one hospital.",
        "The files tell it from Montgomery: about 3,000 x 3,000 pixels with a palette, there 4,020 x 4,892 in gray.",
        "The set 'tb' names the NLM's films among its sources: merging the two duplicates films.",
    ],
)


def read_montgomery(src: Location) -> Listing:
    """List ``MCUCXR_0001_0.png`` ... (0 normal, 1 tuberculosis), with lung masks, sex and age where they are there.

    Raises:
        DataError: There are no such films.
    """
    return _read(src, MONTGOMERY, "MCUCXR")


def read_shenzhen(src: Location) -> Listing:
    """List ``CHNCXR_0001_0.png`` ... (0 normal, 1 tuberculosis), with sex and age where they are there.

    Raises:
        DataError: There are no such films.
    """
    return _read(src, SHENZHEN, "CHNCXR")


def _read(src: Location, facts: SetFacts, prefix: str) -> Listing:
    paths = film_paths(src)
    masks: dict[str, list[str]] = {}
    films: dict[str, str] = {}
    for path in paths:
        stem = PurePosixPath(path).stem
        in_masks = any("mask" in part.lower() for part in PurePosixPath(path).parts[:-1]) or stem.endswith("_mask")
        match = re.fullmatch(rf"({prefix}_\d+_[01])(_mask)?", stem, re.IGNORECASE)
        if match and in_masks:
            masks.setdefault(match[1], []).append(path)
        elif match and not (match[1] in films and "CXR_png" in films[match[1]]):  # a copy of the set has some twice
            films[match[1]] = path
    if not films:
        raise not_this_set(src, facts.name, f"films named like {prefix}_0001_0.png", paths)
    readings = {
        PurePosixPath(entry.path).stem: entry.path for entry in src.walk() if entry.path.lower().endswith(".txt")
    }
    files, untold = [], 0
    for name, path in films.items():
        sex, age = _sex_and_age(src, readings.get(name))
        untold += sex is None or age is None
        files.append(
            SourceFile(
                path,
                "tuberculosis" if name.endswith("1") else "normal",
                source=facts.name,
                patient_id=f"{facts.name}-{name.split('_')[1]}",
                sex=sex,
                age=age,
                extra={LUNG_MASK: "|".join(masks[name])} if name in masks else {},
            )
        )
    notes = [f"the readings of {untold} of {len(files)} films tell no sex or no age"] if untold else []
    return Listing(files, notes, facts=facts)


def _sex_and_age(src: Location, path: str | None) -> tuple[str | None, float | None]:
    """From a clinical reading: ``Patient's Sex: F``, ``Patient's Age: 027Y``, or ``male 45yrs``."""
    if path is None:
        return None, None
    try:
        text = src.child(path).read_bytes().decode("latin-1")
    except OSError as error:
        raise DataError(f"cannot be read ({error})", where=src.child(path)) from error
    sex = re.search(r"sex:\s*([MF])|\b(fe)?male\b", text, re.IGNORECASE)
    age = re.search(r"age:\s*(\d+)\s*Y|(\d+)\s*(?:yrs?|years?)\b", text, re.IGNORECASE)
    letter = None if sex is None else (sex[1] or ("F" if sex[2] else "M")).upper()
    return letter, number((age[1] or age[2]) if age else None)
