"""What there is to import: a folder of class folders, or a folder with a CSV, as a checked list of files."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from cxr_ray.data.decode import SUFFIXES
from cxr_ray.data.labels import STANDARD, label_slug
from cxr_ray.data.splits import SPLITS
from cxr_ray.errors import DataError, did_you_mean

METADATA_FILE = "metadata.csv"
MIN_IMAGES_PER_CLASS = 4  # one for each split
_NAMED_COLUMNS = ("path", "label", "source", "patient_id", "split", "view", "sex", "age")
# Measured by the import itself; a CSV's own figures describe other files (originals before conversion).
_MEASURED_COLUMNS = ("width", "height", "bit_depth")
_MASK_FOLDERS = frozenset({"mask", "masks"})


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
            "holds no images in class folders",
            where=src,
            next_step="Expected SRC/<class>/<image>, or a CSV given with --metadata that names path and label",
        )
    _check_labels(files, metadata or src)
    return sorted(files, key=lambda file: file.path), notes


def _from_folders(src: Path, notes: list[str]) -> list[SourceFile]:
    files, left_out = [], Counter[str]()
    for path in sorted(src.rglob("*")):
        relative = path.relative_to(src)
        hidden = any(part.startswith((".", "__MACOSX")) for part in relative.parts)
        if hidden or not path.is_file() or len(relative.parts) < 2:
            continue
        if any(part.lower() in _MASK_FOLDERS for part in relative.parts[:-1]):
            left_out["mask files"] += 1
        elif path.suffix.lower() not in SUFFIXES:
            left_out["files that are not images by name"] += 1
        else:
            files.append(SourceFile(relative.as_posix(), label_slug(relative.parts[0]), source=src.name))
    notes.extend(f"left out {count} {what}" for what, count in left_out.items())
    return files


def _from_csv(src: Path, metadata: Path) -> list[SourceFile]:
    if not metadata.is_file():
        raise DataError("there is no such file", where=metadata, next_step="Name the CSV with --metadata")
    try:
        with metadata.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"is not a CSV in UTF-8 ({error})", where=metadata) from error
    for needed in ("path", "label"):
        if needed not in columns:
            raise DataError(
                f"has no column '{needed}'{did_you_mean(needed, columns)}; it has {', '.join(columns) or 'none'}",
                where=metadata,
                next_step="The columns path and label are needed; source, patient_id, split, view, sex, age are used",
            )
    files: dict[str, SourceFile] = {}
    for number, row in enumerate(rows, start=2):
        file = _row_to_file(row, src, f"{metadata}, line {number}")
        if file.path in files:
            raise DataError(f"names the image '{file.path}' twice", where=f"{metadata}, line {number}")
        files[file.path] = file
    return list(files.values())


def _row_to_file(row: dict[str, str | None], src: Path, where: str) -> SourceFile:
    values = {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
    if not values["path"]:
        raise DataError("names no path", where=where)
    path = Path(values["path"])
    relative = path.relative_to(src) if path.is_absolute() and path.is_relative_to(src) else path
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"path '{path}' leads out of the source folder {src}", where=where)
    try:
        label = label_slug(values["label"])
    except ValueError as error:
        raise DataError(f"names no label for '{path}'", where=where) from error
    split = values.get("split") or None
    if split is not None and split.lower() not in SPLITS:
        raise DataError(f"split '{split}' is not one of {', '.join(SPLITS)}{did_you_mean(split, SPLITS)}", where=where)
    age = values.get("age") or None
    try:
        age_years = None if age is None else float(age)
    except ValueError as error:
        raise DataError(f"age '{age}' is not a number of years", where=where) from error
    extra = {
        f"extra.{key}": value
        for key, value in values.items()
        if key and value and key not in _NAMED_COLUMNS and key not in _MEASURED_COLUMNS
    }
    return SourceFile(
        path=relative.as_posix(),
        label=label,
        source=values.get("source") or src.name,
        patient_id=values.get("patient_id") or None,
        split=split.lower() if split else None,
        view=values.get("view") or None,
        sex=values.get("sex") or None,
        age=age_years,
        extra=extra,
    )


def _check_labels(files: list[SourceFile], where: Path) -> None:
    """A class with next to no images is a misspelt label far more often than a class."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for file in files:
        by_label[file.label].append(file.path)
    for label, paths in by_label.items():
        if len(paths) < MIN_IMAGES_PER_CLASS:
            others = [*(name for name in by_label if name != label), *STANDARD]
            raise DataError(
                f"label '{label}' stands on {len(paths)} image(s) only ({paths[0]})"
                f"{did_you_mean(label, others)}; a class needs at least {MIN_IMAGES_PER_CLASS}",
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
