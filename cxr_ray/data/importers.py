"""Import: decode once, resize once, decide who is in which split, and write the dataset folder."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cxr_ray.data.dataset_folder import MARKS, check_request, claim, swap_in
from cxr_ray.data.dataset_writer import write_dataset
from cxr_ray.data.duplicates import duplicate_groups, find_near_duplicates
from cxr_ray.data.import_chunk import name_of
from cxr_ray.data.import_work import Decoded, ImportWork, full_disk_explained
from cxr_ray.data.labels import class_order
from cxr_ray.data.listing import Listing, SourceFile
from cxr_ray.data.mapping import Mapper
from cxr_ray.data.quality import measure_orientation
from cxr_ray.data.quality_flags import flag_dataset
from cxr_ray.data.readers import list_films
from cxr_ray.data.resize import FITS, Fit
from cxr_ray.data.shards import PixelStore
from cxr_ray.data.split_strategies import SplitRecord, split_request
from cxr_ray.data.splitting import split_manifest, with_column
from cxr_ray.data.store import LOOKS_FILE, Dataset, open_dataset
from cxr_ray.errors import ConfigError, DataError
from cxr_ray.paths import absolute_path, is_uri, locate, write_atomically
from cxr_ray.progress import progress

REPORT_FILE = "import_report.json"
MAX_UNREADABLE = 0.05


def import_dataset(
    src: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    metadata: str | Path | None = None,
    size: int = 224,
    fit: Fit = "squash",
    split: str | None = None,
    ratios: str | None = None,
    hold_out: Sequence[str] = (),
    seed: int = 0,
    keep_going: bool = False,
    overwrite: bool = False,
    map: Mapper | None = None,
    quiet: bool = False,
) -> Dataset:
    """Import a folder of radiographs into a dataset folder.

    The dataset is built beside `out` and takes its place when it is whole. Interrupted, it is completed by the
    same call: finished shards are not decoded again, and the dataset equals one that was never interrupted.

    Args:
        src: A folder, local or a URI: class folders, any folder with a CSV, or a public set.
        out: The dataset folder to write, local.
        format: One of `cxr_ray.data.readers.FORMATS`; by default a CSV or class folders.
        metadata: The CSV; see `cxr_ray.data.readers`.
        size: Edge of the stored squares in pixels, 64 to 4096.
        fit: How a film becomes a square: ``squash``, ``pad`` or ``crop``.
        split: ``random``, ``given`` or ``source-holdout``; by default as given where the films come with a split.
        ratios: Shares of train, val, calibration and test: ``65/10/10/15``.
        hold_out: Sources that make up the test split.
        seed: Of the random split.
        keep_going: Import although more than 5 % of the files are unreadable.
        overwrite: Replace a finished dataset in `out`; it stays until the new one is whole.
        map: Runs work in parallel, in order (`cxr_ray.cluster.parallel_map`); the built-in map by default.
        quiet: No progress display.

    Raises:
        ConfigError: An option that is not allowed.
        DataError: Nothing to import, contradicting labels, too many unreadable files, a full disk, or `out` is
            taken.
    """
    check_request(size, seed)
    if fit not in FITS:
        raise ConfigError(f"fit '{fit}' is not one of {', '.join(FITS)}", where="--fit")
    target = claim(out, overwrite=overwrite)
    source = locate(src if is_uri(src) else absolute_path(src))
    listing = list_films(source, format=format, metadata=metadata)
    if not listing.files:
        raise DataError("holds no films to import", where=source, next_step="; ".join(listing.notes) or None)
    has_given = any(file.split for file in listing.files)
    record = split_request(split, ratios, hold_out, has_given=has_given)
    if (target / LOOKS_FILE).exists():
        listing.notes.append("the looks at the test split of the dataset replaced stay on record")
    with ImportWork(source, target, listing.files, size, fit) as work, full_disk_explained(work):
        _build(work, listing, record, map or _map, name=target.name, seed=seed, keep_going=keep_going, quiet=quiet)
        claim(out, overwrite=overwrite)  # again: what came to lie there meanwhile is not ours to replace
        swap_in(work.folder, target)
    shutil.rmtree(target / MARKS)
    return open_dataset(target)


_map = map  # `import_dataset` has an argument of this name


def _build(
    work: ImportWork,
    listing: Listing,
    record: SplitRecord,
    run: Mapper,
    *,
    name: str,
    seed: int,
    keep_going: bool,
    quiet: bool,
) -> None:
    """Make the work folder a dataset; a function of its own, so that nothing of it stays in memory."""
    decoded = work.decode(run, quiet=quiet)
    _check_readable(work, decoded, listing, keep_going)
    listing.files.clear()  # of no use any more, and half a kilobyte each
    manifest, pixels = decoded.manifest, PixelStore(work.folder, decoded.shards)
    with progress("Looking for duplicates and flaws", len(pixels), quiet=quiet) as line:
        groups = _duplicate_groups(manifest, pixels, run)
        line.update(len(pixels) // 2)
        orientation = measure_orientation(block for _, block in pixels.blocks(128))
        line.update(len(pixels))
    for column, values in {"duplicate_group": groups, **orientation}.items():
        manifest = with_column(manifest, column, values)
    flagged = flag_dataset(manifest, fit=work.fit)
    manifest = with_column(manifest, "quality_flags", flagged.flags)
    manifest, warnings = split_manifest(manifest, record, seed=seed, where=work.source)
    report = _report(work, listing, decoded, manifest, warnings)
    write_atomically(work.folder / REPORT_FILE, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    write_dataset(
        work.folder,
        manifest,
        decoded.shards,
        name=name,
        classes=class_order(manifest.column("label").to_pylist()),
        image_size=work.size,
        fit=work.fit,
        seed=seed,
        split=record,
        lung_mask_shards=decoded.lung_mask_shards,
        licences=_licences(manifest, listing),
        sets=[listing.facts] if listing.facts else [],
        thresholds=flagged.thresholds,
        warnings=warnings,
    )
    work.drop_leftovers(decoded)


def _check_readable(work: ImportWork, decoded: Decoded, listing: Listing, keep_going: bool) -> None:
    files, bad = listing.files, decoded.unreadable
    if len(bad) > MAX_UNREADABLE * len(files) and not keep_going:
        list_file = work.folder / MARKS / "unreadable.json"
        write_atomically(list_file, json.dumps(bad, indent=2).encode())
        examples = "; ".join(f"{entry['path']} {entry['reason']}" for entry in bad[:3])
        raise DataError(
            f"{len(bad)} of {len(files)} files are unreadable, more than "
            f"{MAX_UNREADABLE:.0%}: {examples} (all of them: {list_file})",
            where=work.source,
            next_step="Mend or remove them, or give --keep-going to import the others",
        )
    # A small class can be unreadable altogether within the few per cent that an import passes over.
    lost = {file.label for file in files}.difference(decoded.manifest.column("label").to_pylist())
    for label in class_order(lost):
        of_class: list[SourceFile] = [file for file in files if file.label == label]
        names = {name_of(file) for file in of_class}
        first = next(entry for entry in [*bad, *decoded.set_aside] if entry["path"] in names)
        raise DataError(
            f"none of the {len(of_class)} files of class '{label}' can be used: {first['path']} {first['reason']}",
            where=work.source,
            next_step="Mend them, or remove them to import the other classes",
        )


def _duplicate_groups(manifest: pa.Table, pixels: PixelStore, run: Mapper) -> list[str]:
    """The group of every film: the image_id of the first film that shows the same."""
    pairs = [(pair.first, pair.second) for pair in find_near_duplicates(pixels, map=run)]
    first_of: dict[str, int] = {}
    for row, pixel_hash in enumerate(manifest.column("pixel_hash").to_pylist()):
        if (first := first_of.setdefault(pixel_hash, row)) != row:
            pairs.append((first, row))
    ids = manifest.column("image_id").to_pylist()
    return [ids[first] for first in duplicate_groups(len(ids), pairs)]


def _licences(manifest: pa.Table, listing: Listing) -> dict[str, int]:
    of_set = listing.facts.licence if listing.facts else "unknown"
    if "extra.licence" not in manifest.column_names:
        return {of_set: manifest.num_rows}
    texts = manifest.column("extra.licence").to_pylist()
    return dict(Counter(text or of_set for text in texts).most_common())


def _report(
    work: ImportWork, listing: Listing, decoded: Decoded, manifest: pa.Table, warnings: list[str]
) -> dict[str, Any]:
    sizes = Counter(manifest.column("duplicate_group").to_pylist())
    groups = [size for size in sizes.values() if size > 1]
    flags = Counter(flag for flags in manifest.column("quality_flags").to_pylist() for flag in flags)
    return {
        "source": str(work.source),
        "files": work.films,
        "imported": manifest.num_rows,
        "unreadable": decoded.unreadable,
        "set_aside": [*listing.set_aside, *decoded.set_aside],
        "notes": listing.notes,
        "warnings": warnings,
        "duplicates": {"groups": len(groups), "images": sum(groups)},
        "quality_flags": dict(flags.most_common()),
    }
