"""Class folders: a folder of films for each class."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath

from cxr_ray.data.decode import SUFFIXES, is_dicom
from cxr_ray.data.labels import label_slug
from cxr_ray.data.listing import Listing, SourceFile
from cxr_ray.data.readers.csv_table import SPLIT_NAMES
from cxr_ray.errors import DataError
from cxr_ray.paths import Location, printable

_MASK_FOLDERS = frozenset({"mask", "masks"})
_SNIFFED = 4096  # bytes of a file without a suffix: enough for any DICOM preamble and its first elements


def read_folders(src: Location) -> Listing:
    """List ``SRC/<class>/.../<film>``; the source of every film is the folder's name.

    Where all folders are named like splits (``train``, ``test``, ``val`` ...), the class folders lie inside them.

    Files without a suffix, or named like a DICOM UID, are taken where they are DICOM, as archives often leave it off.

    Raises:
        DataError: A class folder's name cannot name a class, or there are no class folders with films.
    """
    films, left_out = list[str](), Counter[str]()
    classes: dict[str, str] = {}
    for entry in src.walk():
        path = PurePosixPath(entry.path)
        if not is_film(src, entry.path):
            is_mask = any(part.lower() in _MASK_FOLDERS for part in path.parts[:-1])
            left_out["mask files" if is_mask else "files that are not images by name"] += len(path.parts) > 1
        elif len(path.parts) < 2:
            left_out["images that lie in no class folder"] += 1
        elif any(part.lower() in _MASK_FOLDERS for part in path.parts[:-1]):
            left_out["mask files"] += 1
        else:
            films.append(entry.path)  # as text: paths in parts are half a kilobyte each
    splits = {top: SPLIT_NAMES.get(top.lower()) for top in (path.split("/", 1)[0] for path in films)}
    split_first = bool(splits) and None not in splits.values()
    files = []
    for path in films:
        top, *folders = path.split("/")[:-1]
        split = splits[top] if split_first else None
        folders = folders if split_first else [top]
        if not folders:
            left_out["images that lie in no class folder"] += 1
            continue
        folder = folders[0]
        label = classes.get(folder) or classes.setdefault(folder, _class_of(src, folder))
        files.append(SourceFile(path, label, source=src.name, split=split))
    notes = [f"left out {count} {what}" for what, count in left_out.items() if count]
    if split_first:
        notes.append(f"the folders {', '.join(splits)} are taken for splits, and the folders in them for classes")
    if not files:
        raise DataError(
            "holds no images in class folders" + (f" ({'; '.join(notes)})" if notes else ""),
            where=src,
            next_step="Expected SRC/<class>/<image>, or a CSV given with --metadata that names path and label",
        )
    return Listing(files, notes)


def is_film(src: Location, path: str) -> bool:
    """Whether a file is a film by its name, or, without a suffix or named like a DICOM UID, by its first bytes."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in SUFFIXES:
        return True
    # What stands behind the last point of a DICOM UID is a number.
    if re.search("[^.0-9]", suffix) or PurePosixPath(path).name.upper() == "DICOMDIR" or printable(path) != path:
        return False
    try:
        with src.filesystem.open_input_stream(src.child(path).path) as stream:
            return is_dicom(stream.read(_SNIFFED))
    except OSError:
        return False


def _class_of(src: Location, folder: str) -> str:
    problem = "the class folder's name is not UTF-8"
    try:
        if printable(folder) == folder:
            return label_slug(folder)
    except ValueError as error:
        problem = f"the class folder {error}"
    raise DataError(
        problem,
        where=printable(src.child(folder).uri),
        next_step="Rename the folder, or name the labels in a CSV given with --metadata",
    )
