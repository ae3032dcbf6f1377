"""What there is to import: class folders, a CSV, or a public set in the layout its authors publish it in."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from cxr_ray.data.labels import STANDARD
from cxr_ray.data.listing import Listing, SetFacts, SourceFile
from cxr_ray.data.readers import basu, cohen, kermany, nlm, radiography, rsna, tb
from cxr_ray.data.readers.csv_table import METADATA_FILE, read_csv_films
from cxr_ray.data.readers.folders import read_folders
from cxr_ray.errors import ConfigError, DataError, did_you_mean
from cxr_ray.paths import Location, absolute_path, is_uri, locate, printable

MIN_IMAGES_PER_CLASS = 4  # one for each split

_SETS: dict[str, tuple[Callable[[Location], Listing], SetFacts]] = {
    "basu": (basu.read_basu, basu.FACTS),
    "radiography": (radiography.read_radiography, radiography.FACTS),
    "tb": (tb.read_tb, tb.FACTS),
    "cohen": (cohen.read_cohen, cohen.FACTS),
    "rsna": (rsna.read_rsna, rsna.FACTS),
    "kermany": (kermany.read_kermany, kermany.FACTS),
    "montgomery": (nlm.read_montgomery, nlm.MONTGOMERY),
    "shenzhen": (nlm.read_shenzhen, nlm.SHENZHEN),
}
FORMATS = (*_SETS, "folders", "csv")


def list_films(src: Location, *, format: str | None = None, metadata: str | Path | None = None) -> Listing:
    """List the films below a folder, sorted by path and frame.

    Args:
        src: The folder, local or remote.
        format: One of `FORMATS`; None takes `metadata`, or ``metadata.csv`` in the folder, or class folders.
        metadata: A CSV, local or a URI; see `cxr_ray.data.readers.csv_table`.

    Raises:
        ConfigError: An unknown format, or a CSV for a format that has its own.
        DataError: The folder or the CSV is missing, is not in the set's layout, holds nothing to import, or
            contradicts itself.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(
            f"there is no format '{format}'{did_you_mean(format, FORMATS)}; there are {', '.join(FORMATS)}",
            where="--format",
        )
    if not src.is_dir():
        raise DataError("there is no such folder", where=src, next_step="Name the folder that holds the images")
    if metadata is not None and format not in (None, "csv"):
        raise ConfigError(f"the format {format} needs no CSV", where="--metadata", next_step="Leave out one of the two")
    listing = _without_rare(_SETS[format][0](src)) if format in _SETS else _own_films(src, format, metadata)
    files = sorted(listing.files, key=lambda file: (file.path, file.frame))
    if not files:
        aside = f"; {len(listing.set_aside)} were set aside" if listing.set_aside else ""
        raise DataError(f"holds no films to import{aside}", where=src, next_step="; ".join(listing.notes) or None)
    _check_labels(files, metadata or src)
    return Listing(files, listing.notes, listing.set_aside, listing.facts)


def _without_rare(listing: Listing) -> Listing:
    """Set aside classes of a public set that are too small to split: nobody can correct their labels."""
    counts = Counter(file.label for file in listing.files)
    rare = {label: count for label, count in counts.items() if count < MIN_IMAGES_PER_CLASS}
    aside = [
        {"path": file.path, "reason": f"is one of {rare[file.label]} film(s) of the class '{file.label}'"}
        for file in listing.files
        if file.label in rare
    ]
    notes = [
        f"set aside {count} film(s) of the class '{label}': a class needs at least {MIN_IMAGES_PER_CLASS}"
        for label, count in rare.items()
    ]
    files = [file for file in listing.files if file.label not in rare]
    return Listing(files, [*listing.notes, *notes], [*listing.set_aside, *aside], listing.facts)


def set_facts(name: str) -> SetFacts:
    """What is known about a public set, one of `FORMATS` that is neither ``folders`` nor ``csv``."""
    return _SETS[name][1]


def _own_films(src: Location, format: str | None, metadata: str | Path | None) -> Listing:
    if metadata is not None:
        return read_csv_films(src, locate(metadata if is_uri(metadata) else absolute_path(metadata)))
    in_folder = src.child(METADATA_FILE)
    if format == "csv" or (format is None and in_folder.exists()):
        listing = read_csv_films(src, in_folder)
        notes = [f"labels and columns come from {METADATA_FILE} in the folder", *listing.notes]
        return Listing(listing.files, notes, listing.set_aside)
    return read_folders(src)


def _check_labels(files: list[SourceFile], where: object) -> None:
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
