"""What the readers of public sets share: finding files and columns whose names drift from copy to copy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from cxr_ray.data.decode import SUFFIXES
from cxr_ray.data.readers.csv_table import plain, read_table
from cxr_ray.errors import DataError
from cxr_ray.paths import Location

Row = dict[str, str]


def film_paths(src: Location) -> list[str]:
    """Paths of the files that are films by their suffix, in order."""
    return [entry.path for entry in src.walk() if PurePosixPath(entry.path).suffix.lower() in SUFFIXES]


def sheet_rows(location: Location) -> list[Row]:
    """Rows of a CSV by column, names reduced to small letters and digits: `` Patient ID`` is ``patientid``."""
    header, rows = read_table(location)
    names = [plain(name) for name in header]
    return [dict(zip(names, values, strict=False)) for _, values in rows]


def value(row: Row, *names: str) -> str | None:
    """The first of some columns that says something; placeholders for nothing count as nothing."""
    for name in names:
        text = row.get(plain(name), "").strip()
        if text and text.lower() not in ("nan", "none", "null", "n/a", "na", "unknown", "?"):
            return text
    return None


def number(text: str | None, low: float = 0, high: float = 150) -> float | None:
    """A number in a range, None for anything else."""
    try:
        found = float(text) if text else None
    except ValueError:
        return None
    return found if found is not None and low <= found <= high else None


def find_file(paths: Iterable[str], pattern: str) -> str | None:
    """The first path, shortest first, whose name matches a pattern, case ignored."""
    matching = [path for path in paths if re.fullmatch(pattern, PurePosixPath(path).name, re.IGNORECASE)]
    return min(matching, key=lambda path: (path.count("/"), path)) if matching else None


def not_this_set(src: Location, name: str, expected: str, found: Sequence[str]) -> DataError:
    """What to say of a folder that is not in a set's layout."""
    some = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return DataError(
        f"is not the set '{name}': expected {expected}; found {some or 'no such files'}",
        where=src,
        next_step=f"'cxr-ray data fetch {name}' tells where the set is; name the folder it was unpacked to",
    )
