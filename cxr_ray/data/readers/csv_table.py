"""A CSV that names path and label, and optionally what else is known of each film."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from pathlib import Path

from cxr_ray.data.decode_image import MAX_AGE
from cxr_ray.data.labels import label_slug
from cxr_ray.data.listing import Listing, SourceFile
from cxr_ray.data.split_strategies import GIVEN_COLUMN
from cxr_ray.data.splits import SPLITS
from cxr_ray.data.views import is_lateral
from cxr_ray.errors import DataError, did_you_mean
from cxr_ray.paths import Location, is_uri

METADATA_FILE = "metadata.csv"
_NAMED_COLUMNS = ("path", "label", "source", "patient_id", "split", "view", "sex", "age")
# By how they are written without case, spaces and signs: PatientID, Patient ID and patient_id are one column.
_SPELLINGS = {name.replace("_", ""): name for name in _NAMED_COLUMNS} | {
    "viewposition": "view",
    "subjectid": "patient_id",
    "gender": "sex",
}
# Measured by the import itself; a CSV's own figures describe other files (originals before conversion).
_MEASURED_COLUMNS = ("width", "height", "bit_depth")
SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "calib": "calibration",
    "testing": "test",
}


def read_csv_films(src: Location, metadata: Location) -> Listing:
    """List the films that a CSV names by their paths below a folder; lateral views are set aside.

    Args:
        src: The folder.
        metadata: The CSV: columns path and label, and optionally source, patient_id, split, view, sex, age; others
            become ``extra.<name>``. Case, spaces and signs in these names do not matter (``Patient ID``), and
            ViewPosition, SubjectID and Gender are understood. Commas, semicolons or tabs part them.

    Raises:
        DataError: With the line that is wrong.
    """
    header, rows = read_table(metadata)
    columns = _manifest_columns(header)
    _check_reserved(columns, metadata)
    for needed in ("path", "label"):
        if needed not in columns:
            raise DataError(
                f"has no column '{needed}'{did_you_mean(needed, header)}; it has {', '.join(header) or 'none'}",
                where=metadata,
                next_step="The columns path and label are needed; source, patient_id, split, view, sex, age are used; "
                "commas, semicolons or tabs part them",
            )
    twice = [name.removeprefix("extra.") for name, count in Counter(columns).items() if name and count > 1]
    if twice:
        raise DataError(
            f"has more than one column '{twice[0]}'", where=metadata, next_step="Rename or remove all but one"
        )
    if not rows:
        raise DataError("has a header, but names no images", where=metadata, next_step="Add a row for each image")
    files: dict[str, SourceFile] = {}
    for number, fields in rows:
        where = f"{metadata}, line {number}"
        if any(fields[len(columns) :]):
            raise DataError(
                f"has {len(fields)} values for {len(columns)} columns",
                where=where,
                next_step='Put values that hold a comma in quotes: "..."',
            )
        # Spreadsheets leave out empty values at the end of a row.
        values = dict.fromkeys(columns, "") | dict(zip(columns, fields, strict=False))
        file = _row_to_file(values, src, where)
        if file.path in files:
            raise DataError(f"names the image '{file.path}' twice", where=where, next_step="Remove one of the rows")
        files[file.path] = file
    wanted, set_aside = [], []
    for file in files.values():
        if is_lateral(file.view):
            set_aside.append({"path": file.path, "reason": f"is a lateral view ({file.view})"})
        else:
            wanted.append(file)
    return Listing(wanted, set_aside=set_aside)


def read_table(metadata: Location) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the rows that are not empty with the lines they end on.

    Raises:
        DataError: There is no such file, it is not UTF-8, or a quote is never closed.
    """
    if metadata.is_dir():
        raise DataError("is a folder, not a CSV", where=metadata, next_step="Name the CSV itself with --metadata")
    if not metadata.exists():
        raise DataError("there is no such file", where=metadata, next_step="Name the CSV with --metadata")
    try:
        text = metadata.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"is not a CSV in UTF-8 ({error})", where=metadata, next_step="Save it as CSV with the encoding UTF-8"
        ) from error
    rows: list[tuple[int, list[str]]] = []
    try:
        # Strict, because a quote that is never closed would silently swallow the rows behind it.
        for fields in (reader := csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)):
            stripped = [value.strip() for value in fields]
            if any(stripped):
                rows.append((reader.line_num, stripped))
    except csv.Error as error:
        after = rows[-1][0] if rows else 0
        raise DataError(
            f"is not a CSV behind line {after} ({error})", where=metadata, next_step="Check the quotes there"
        ) from error
    return (rows[0][1], rows[1:]) if rows else ([], [])


def _delimiter(text: str) -> str:
    """Comma, or the semicolon or tab of some spreadsheets: the one that parts the header into most names."""

    def names(delimiter: str) -> int:
        return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []))

    return max(",;\t", key=names)


def plain(name: str) -> str:
    """A name without case, spaces and signs."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _manifest_columns(header: list[str]) -> list[str]:
    """What the columns are called in a manifest; a name's own spelling goes before others of it."""
    columns = []
    for name in header:
        meant = _SPELLINGS.get(plain(name))
        if meant and (name == meant or (meant not in header and meant not in columns)):
            columns.append(meant)
        elif not name or name in _MEASURED_COLUMNS or name.startswith("extra."):
            columns.append(name)
        else:
            columns.append(f"extra.{name}")
    return columns


def _check_reserved(columns: list[str], metadata: Location) -> None:
    if GIVEN_COLUMN in columns:
        raise DataError(
            f"has a column '{GIVEN_COLUMN.removeprefix('extra.')}', which an import keeps for the set's own split",
            where=metadata,
            next_step="Name it 'split', or otherwise",
        )


def _row_to_file(values: dict[str, str], src: Location, where: str) -> SourceFile:
    if not values["path"]:
        raise DataError("names no path", where=where)
    if "\0" in values["path"]:
        raise DataError(f"path {values['path']!r} holds a zero byte", where=where, next_step="Correct the path")
    text = values["path"].removeprefix(f"{src.uri.rstrip('/')}/")
    path = Path(text)
    relative = path.relative_to(src.path) if path.is_absolute() and path.is_relative_to(src.path) else path
    if relative.is_absolute() or ".." in relative.parts or is_uri(text):
        raise DataError(f"path '{text}' leads out of the source folder {src}", where=where)
    if not values["label"]:
        raise DataError(f"names no label for '{path}'", where=where)
    try:
        label = label_slug(values["label"])
    except ValueError as error:
        raise DataError(f"label {error}", where=where, next_step="Give the class another name") from error
    split = values.get("split") or None
    if split is not None and split.lower() not in SPLIT_NAMES:
        hint = did_you_mean(split.lower(), SPLIT_NAMES)
        raise DataError(f"split '{split}' is not one of {', '.join(SPLITS)}{hint}", where=where)
    return SourceFile(
        path=relative.as_posix(),
        label=label,
        source=values.get("source") or src.name,
        patient_id=values.get("patient_id") or None,
        split=SPLIT_NAMES[split.lower()] if split else None,
        view=values.get("view") or None,
        sex=values.get("sex") or None,
        age=_age(values.get("age", ""), where),
        extra={key: value for key, value in values.items() if key.startswith("extra.") and value},
    )


def _age(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        years = float(text)
    except ValueError:
        years = float("nan")
    if not 0 <= years <= MAX_AGE:
        raise DataError(
            f"age '{text}' is not a number of years from 0 to {MAX_AGE}",
            where=where,
            next_step="Correct it, or leave it empty where the age is unknown",
        )
    return years
