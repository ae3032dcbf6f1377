"""What there is to import: a folder of class folders, or a folder with a CSV, as a checked list of files."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cxr_ray.data.decode import SUFFIXES
from cxr_ray.data.decode_dicom import MAX_AGE
from cxr_ray.data.labels import STANDARD, label_slug
from cxr_ray.data.splits import SPLITS
from cxr_ray.errors import DataError, did_you_mean
from cxr_ray.paths import is_uri

METADATA_FILE = "metadata.csv"
MIN_IMAGES_PER_CLASS = 4  # one for each split
_NAMED_COLUMNS = ("path", "label", "source", "patient_id", "split", "view", "sex", "age")
# Measured by the import itself; a CSV's own figures describe other files (originals before conversion).
_MEASURED_COLUMNS = ("width", "height", "bit_depth")
_MASK_FOLDERS = frozenset({"mask", "masks"})
_SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "calib": "calibration",
    "testing": "test",
}


@dataclass(frozen=True)
class SourceFile:
    """One file to import, before it is opened; `path` is relative to the source folder."""

    path: str
    label: str
    source: str
    patient_id: str | None = None
    split: str | None = None
    view: str | None = None
    sex: str | None = None
    age: float | None = None
    extra: dict[str, str] = field(default_factory=dict)


def absolute_path(path: str | Path) -> Path:
    """The path without ``~``, links and dots.

    Raises:
        DataError: It is an address, or its name is not UTF-8, so that neither a manifest nor a report could hold it.
    """
    if is_uri(path):
        raise DataError(
            "is an address, and datasets are made from local folders in local folders",
            where=str(path),
            next_step="Name a local folder; a finished dataset can be copied to the storage and used from there",
        )
    # Path.expanduser and Path.resolve raise RuntimeError for an unknown user and for links in a circle.
    text = os.path.realpath(os.path.expanduser(path))  # noqa: PTH111
    if printable(text) != text:
        raise DataError("has a name that is not UTF-8", where=printable(text), next_step="Rename it")
    return Path(text)


def printable(name: str) -> str:
    """A file's name for messages and reports: bytes that are not UTF-8 become ``\\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def list_sources(src: Path, metadata: Path | None) -> tuple[list[SourceFile], list[str]]:
    """List the films under a folder, sorted by path.

    Args:
        src: The folder.
        metadata: A CSV naming path (relative to the folder) and label, and optionally source, patient_id,
            split, view, sex, age and anything else; None for ``metadata.csv`` in the folder, or, where there
            is none, class folders.

    Returns:
        The files, and notes on what was taken or left out.

    Raises:
        DataError: The folder or the CSV is missing, holds nothing to import, or contradicts itself.
    """
    if not src.is_dir():
        raise DataError("there is no such folder", where=src, next_step="Name the folder that holds the images")
    notes: list[str] = []
    if metadata is None and (src / METADATA_FILE).is_file():
        metadata = src / METADATA_FILE
        notes.append(f"labels and columns come from {METADATA_FILE} in the folder")
    files = _from_csv(src, metadata) if metadata else _from_folders(src, notes)
    if not files:
        raise DataError(
            "holds no images in class folders" + (f" ({'; '.join(notes)})" if notes else ""),
            where=src,
            next_step="Expected SRC/<class>/<image>, or a CSV given with --metadata that names path and label",
        )
    _check_labels(files, metadata or src)
    return sorted(files, key=lambda file: file.path), notes


def _from_folders(src: Path, notes: list[str]) -> list[SourceFile]:
    files, left_out = [], Counter[str]()
    for path in _walk(src, frozenset()):
        relative = path.relative_to(src)
        is_image = path.suffix.lower() in SUFFIXES
        if len(relative.parts) < 2:
            left_out["images that lie in no class folder"] += is_image
        elif any(part.lower() in _MASK_FOLDERS for part in relative.parts[:-1]):
            left_out["mask files"] += 1
        elif not is_image:
            left_out["files that are not images by name"] += 1
        else:
            files.append(SourceFile(relative.as_posix(), _class_of(src / relative.parts[0]), source=src.name))
    notes.extend(f"left out {count} {what}" for what, count in left_out.items() if count)
    return files


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """The files below a folder, links followed; a link back to a folder it lies in is not entered again."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"the folder cannot be read ({error.strerror or error})",
            where=printable(str(folder)),
            next_step="Make it readable, or move it out of the source folder",
        ) from error
    for path in paths:
        if path.name.startswith((".", "__MACOSX")):
            continue
        if path.is_dir():
            yield from _walk(path, above | {real})
        elif path.is_file() or path.is_symlink():  # a link to nothing is a film that is missing, so it is listed
            yield path


def _class_of(folder: Path) -> str:
    problem = "the class folder's name is not UTF-8"
    try:
        if printable(folder.name) == folder.name:
            return label_slug(folder.name)
    except ValueError as error:
        problem = f"the class folder {error}"
    raise DataError(
        problem,
        where=printable(str(folder)),
        next_step="Rename the folder, or name the labels in a CSV given with --metadata",
    )


def _from_csv(src: Path, metadata: Path) -> list[SourceFile]:
    header, rows = _read_csv(metadata)
    for needed in ("path", "label"):
        if needed not in header:
            raise DataError(
                f"has no column '{needed}'{did_you_mean(needed, header)}; it has {', '.join(header) or 'none'}",
                where=metadata,
                next_step="The columns path and label are needed; source, patient_id, split, view, sex, age are used; "
                "commas, semicolons or tabs part them",
            )
    columns = [_manifest_column(name) for name in header]
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
    return list(files.values())


def _read_csv(metadata: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the rows that are not empty with the lines they end on."""
    if metadata.is_dir():
        raise DataError("is a folder, not a CSV", where=metadata, next_step="Name the CSV itself with --metadata")
    if not metadata.is_file():
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
    """Comma; or the semicolon or tab of some spreadsheets, where only that one parts path from label."""
    for delimiter in ",;\t":
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        if {"path", "label"} <= {name.strip() for name in header}:
            return delimiter
    return ","


def _manifest_column(column: str) -> str:
    known = column in _NAMED_COLUMNS or column in _MEASURED_COLUMNS or column.startswith("extra.")
    return column if known or not column else f"extra.{column}"


def _row_to_file(values: dict[str, str], src: Path, where: str) -> SourceFile:
    if not values["path"]:
        raise DataError("names no path", where=where)
    if "\0" in values["path"]:
        raise DataError(f"path {values['path']!r} holds a zero byte", where=where, next_step="Correct the path")
    path = Path(values["path"])
    relative = path.relative_to(src) if path.is_absolute() and path.is_relative_to(src) else path
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"path '{path}' leads out of the source folder {src}", where=where)
    if not values["label"]:
        raise DataError(f"names no label for '{path}'", where=where)
    try:
        label = label_slug(values["label"])
    except ValueError as error:
        raise DataError(f"label {error}", where=where, next_step="Give the class another name") from error
    split = values.get("split") or None
    if split is not None and split.lower() not in _SPLIT_NAMES:
        hint = did_you_mean(split.lower(), _SPLIT_NAMES)
        raise DataError(f"split '{split}' is not one of {', '.join(SPLITS)}{hint}", where=where)
    return SourceFile(
        path=relative.as_posix(),
        label=label,
        source=values.get("source") or src.name,
        patient_id=values.get("patient_id") or None,
        split=_SPLIT_NAMES[split.lower()] if split else None,
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


def _check_labels(files: list[SourceFile], where: Path) -> None:
    """A class with next to no images is a misspelt label far more often than a class."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for file in files:
        by_label[file.label].append(file.path)
    for label, paths in by_label.items():
        if len(paths) < MIN_IMAGES_PER_CLASS:
            others = {*by_label, *STANDARD} - {label}
            raise DataError(
                f"label '{label}' stands on {len(paths)} image(s) only ({printable(paths[0])})"
                f"{did_you_mean(label, sorted(others))}; a class needs at least {MIN_IMAGES_PER_CLASS}",
                where=where,
                next_step="Correct the label, or add images of this class",
            )
    if len(by_label) < 2:
        raise DataError(f"has one class only ('{next(iter(by_label))}'); a classifier needs two or more", where=where)
    splits = Counter("given" if file.split else "missing" for file in files)
    if len(splits) > 1:
        missing = next(file.path for file in files if not file.split)
        raise DataError(
            f"gives a split for {splits['given']} images and none for {splits['missing']} (such as {missing})",
            where=where,
            next_step="Fill the split column for every image, or leave it out",
        )
