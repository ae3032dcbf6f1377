"""Import: decode once, resize once, decide who is in which split, and write the dataset folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cxr_ray.data.dataset_folder import MARKS, check_request, claim, make_folder, swap_in
from cxr_ray.data.import_chunk import Chunk, decode_chunk
from cxr_ray.data.labels import class_order
from cxr_ray.data.resize import FITS, Fit
from cxr_ray.data.sources import SourceFile, absolute_path, list_sources, printable
from cxr_ray.data.splits import LEARNING_SPLITS, check_given, group_ids, random_split
from cxr_ray.data.store import (
    LOOKS_FILE,
    Dataset,
    Shard,
    file_sha256,
    open_dataset,
    work_folder,
    write_dataset,
    write_shard,
)
from cxr_ray.errors import ConfigError, DataError
from cxr_ray.paths import write_atomically
from cxr_ray.progress import ProgressLine, progress

REPORT_FILE = "import_report.json"
SHARD_IMAGES = 2048  # 100 MB at 224 px: small enough to redo, large enough to map few files
CHUNK_IMAGES = 32  # a unit of parallel work: about a second of decoding
MAX_UNREADABLE = 0.05

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


def import_dataset(
    src: str | Path,
    out: str | Path,
    *,
    metadata: str | Path | None = None,
    size: int = 224,
    fit: Fit = "squash",
    seed: int = 0,
    keep_going: bool = False,
    overwrite: bool = False,
    map: Mapper | None = None,
    quiet: bool = False,
) -> Dataset:
    """Import a folder of radiographs into a dataset folder.

    The dataset is built beside `out` and takes its place when it is whole. Interrupted, it is completed by the
    same call; finished shards are not decoded again, except those with files that could not be read.

    Args:
        src: A folder of class folders, or any folder with a CSV.
        out: The dataset folder to write.
        metadata: The CSV; see `cxr_ray.data.sources.list_sources`.
        size: Edge of the stored squares in pixels, 64 to 4096.
        fit: How a film becomes a square: ``squash``, ``pad`` or ``crop``.
        seed: Of the random split.
        keep_going: Import although more than 5 % of the files are unreadable.
        overwrite: Replace a finished dataset in `out`; it stays until the new one is whole.
        map: Runs chunks in parallel, in order (`cxr_ray.cluster.parallel_map`); the built-in map by default.
        quiet: No progress display.

    Raises:
        DataError: Nothing to import, contradicting labels or splits, too many unreadable files, or `out` is
            taken.
    """
    check_request(size, seed)
    if fit not in FITS:
        raise ConfigError(f"fit '{fit}' is not one of {', '.join(FITS)}", where="--fit")
    src, out = absolute_path(src), claim(out, overwrite=overwrite)
    files, notes = list_sources(src, None if metadata is None else absolute_path(metadata))
    if (out / LOOKS_FILE).exists():
        notes.append("the looks at the test split of the dataset replaced stay on record")
    work = _open_work(out, _plan(src, files, size, fit), notes)
    rows, unreadable, shards = _decode_all(work, src, files, size, fit, keep_going, map, quiet)
    warnings = _finish_rows(src, rows, files, seed)
    licences = Counter(row.get("extra.licence", "unknown") for row in rows)
    report = {
        "source": str(src),
        "files": len(files),
        "imported": len(rows),
        "unreadable": unreadable,
        "notes": notes,
        "warnings": warnings,
        "duplicates": _duplicate_summary(rows),
    }
    write_atomically(work / REPORT_FILE, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    write_dataset(
        work,
        rows,
        shards,
        name=out.name,
        classes=class_order(row["label"] for row in rows),
        image_size=size,
        fit=fit,
        seed=seed,
        licences=dict(licences.most_common()),
        warnings=warnings,
    )
    swap_in(work, out)
    shutil.rmtree(out / MARKS)
    return open_dataset(out)


def _plan(src: Path, files: list[SourceFile], size: int, fit: str) -> str:
    """What an interrupted import must agree on to be continued: the files as they are now, and the options."""
    digest = hashlib.sha256(json.dumps([str(src), size, fit, SHARD_IMAGES]).encode())
    for file in files:
        try:
            status = (src / file.path).stat()
            state = [status.st_size, status.st_mtime_ns]
        except OSError:
            state = []
        digest.update(json.dumps([asdict(file), state]).encode())
    return digest.hexdigest()


def _open_work(out: Path, plan: str, notes: list[str]) -> Path:
    """The folder to build in, with what an interrupted import by the same plan has finished, or empty."""
    work = work_folder(out)
    marked_plan = work / MARKS / "plan"
    if marked_plan.is_file() and marked_plan.read_text() == plan:
        notes.append("continued an interrupted import")
        return work
    shutil.rmtree(work, ignore_errors=True)
    make_folder(work / MARKS)
    write_atomically(marked_plan, plan.encode())
    return work


def _decode_all(
    work: Path,
    src: Path,
    files: list[SourceFile],
    size: int,
    fit: Fit,
    keep_going: bool,
    map_chunks: Mapper | None,
    quiet: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, str]], list[Shard]]:
    rows: list[dict[str, Any]] = []
    unreadable: list[dict[str, str]] = []
    shards: list[Shard] = []
    with progress("Importing", len(files), quiet=quiet) as line:
        for number, start in enumerate(range(0, len(files), SHARD_IMAGES)):
            part = files[start : start + SHARD_IMAGES]
            done_file = work / MARKS / f"shard-{number:05d}.json"
            finished = _finished_shard(work, done_file)
            if finished is not None:
                shard_rows, shard = finished
                line.update(start + len(part))
            else:
                shard_rows, shard_unreadable, shard = _decode_shard(
                    work, src, part, number, size, fit, map_chunks or map, line, len(unreadable)
                )
                unreadable += shard_unreadable
                if not shard_unreadable:
                    done = {"rows": shard_rows, "shard": shard.model_dump()}
                    write_atomically(done_file, json.dumps(done).encode())
            rows += shard_rows
            if shard.images:
                shards.append(shard)
    if len(unreadable) > MAX_UNREADABLE * len(files) and not keep_going:
        listing = work / MARKS / "unreadable.json"
        write_atomically(listing, json.dumps(unreadable, indent=2).encode())
        examples = "; ".join(f"{bad['path']} {bad['reason']}" for bad in unreadable[:3])
        raise DataError(
            f"{len(unreadable)} of {len(files)} files are unreadable, more than "
            f"{MAX_UNREADABLE:.0%}: {examples} (all of them: {listing})",
            where=src,
            next_step="Mend or remove them, or give --keep-going to import the others",
        )
    _check_no_class_is_lost(src, files, rows, unreadable)
    return rows, unreadable, shards


def _check_no_class_is_lost(
    src: Path, files: list[SourceFile], rows: list[dict[str, Any]], unreadable: list[dict[str, str]]
) -> None:
    """A small class can be unreadable altogether within the few per cent that an import passes over."""
    lost = {file.label for file in files}.difference(row["label"] for row in rows)
    for label in class_order(lost):
        paths = {printable(file.path) for file in files if file.label == label}
        first = next(bad for bad in unreadable if bad["path"] in paths)
        raise DataError(
            f"none of the {len(paths)} files of class '{label}' can be read: {first['path']} {first['reason']}",
            where=src,
            next_step="Mend them, or remove them to import the other classes",
        )


def _finished_shard(work: Path, done_file: Path) -> tuple[list[dict[str, Any]], Shard] | None:
    """The rows and the shard that an interrupted import has finished; None where its pixels are not whole."""
    if not done_file.exists():
        return None
    done = json.loads(done_file.read_text())
    shard = Shard.model_validate(done["shard"])
    pixels = work / shard.file
    whole = pixels.is_file() and file_sha256(pixels) == shard.sha256
    return (done["rows"], shard) if whole else None


def _decode_shard(
    work: Path,
    src: Path,
    files: list[SourceFile],
    number: int,
    size: int,
    fit: Fit,
    map_chunks: Mapper,
    line: ProgressLine,
    unreadable_before: int,
) -> tuple[list[dict[str, Any]], list[dict[str, str]], Shard]:
    chunks = (
        Chunk(str(src), tuple(files[i : i + CHUNK_IMAGES]), size, fit) for i in range(0, len(files), CHUNK_IMAGES)
    )
    pixels, rows, unreadable = [], [], []
    for result in map_chunks(decode_chunk, chunks):
        pixels.append(result.pixels)
        rows += result.rows
        unreadable += result.unreadable
        bad = unreadable_before + len(unreadable)
        line.advance(len(result.pixels) + len(result.unreadable), f"{bad} unreadable" if bad else "")
    shard = write_shard(work, f"pixels-{number:05d}.npy", np.concatenate(pixels))
    return rows, unreadable, shard


def _finish_rows(src: Path, rows: list[dict[str, Any]], files: list[SourceFile], seed: int) -> list[str]:
    """Decide duplicate groups, then splits, in place; return warnings for every later reader."""
    warnings = []
    first_of_pixels: dict[str, str] = {}
    labels_of_group: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        row["duplicate_group"] = first_of_pixels.setdefault(row["pixel_hash"], row["image_id"])
        labels_of_group[row["duplicate_group"]].add(row["label"])
    conflicting = [group for group, labels in labels_of_group.items() if len(labels) > 1]
    if conflicting:
        path = next(row["path"] for row in rows if row["duplicate_group"] == conflicting[0])
        warnings.append(f"{len(conflicting)} film(s) stand under more than one label, for example {path}")
    # One id is one patient whatever the source: merged sets hold films of the same people, and taking two people for
    # one costs nothing, while taking one person for two leaks.
    patients = [row["patient_id"] for row in rows]
    groups = [row["duplicate_group"] for row in rows]
    if files[0].split is None:
        together = group_ids(patients, groups)
        splits = random_split([row["label"] for row in rows], [row["source"] for row in rows], together, seed=seed)
        for row, split in zip(rows, splits, strict=True):
            row["split"] = split
    else:
        warnings += _honour_given(src, rows, patients, groups, seed)
    _check_every_class_can_be_learnt(src, rows)
    return warnings


def _honour_given(
    src: Path, rows: list[dict[str, Any]], patients: list[str | None], groups: list[str], seed: int
) -> list[str]:
    problems = check_given([row["split"] for row in rows], patients, groups, [row["path"] for row in rows])
    if problems:
        raise DataError(
            "the given splits leak: " + "; and ".join(problems),
            where=src,
            next_step="Correct the split column, or leave it out to have the import split the images",
        )
    if any(row["split"] == "calibration" for row in rows):
        return []
    val = [i for i, row in enumerate(rows) if row["split"] == "val"]
    together = group_ids([patients[i] for i in val], [groups[i] for i in val])
    halves = random_split(
        [rows[i]["label"] for i in val],
        [rows[i]["source"] for i in val],
        together,
        shares={"val": 0.5, "calibration": 0.5},
        seed=seed,
    )
    for i, split in zip(val, halves, strict=True):
        rows[i]["split"] = split
    taken = halves.count("calibration")
    if not taken:
        return [
            "the split column names no calibration images, and val has none to spare (the films of each class belong "
            "to one patient): probabilities will not be calibrated"
        ]
    return [f"the split column names no calibration images: {taken} of the {len(val)} val images were taken for it"]


def _check_every_class_can_be_learnt(src: Path, rows: list[dict[str, Any]]) -> None:
    present = {(row["label"], row["split"]) for row in rows}
    for label in class_order(row["label"] for row in rows):
        missing = [split for split in LEARNING_SPLITS if (label, split) not in present]
        if missing:
            of_class = [row for row in rows if row["label"] == label]
            patients = {row["patient_id"] or row["image_id"] for row in of_class}
            raise DataError(
                f"class '{label}' has no image in {' and '.join(missing)} "
                f"(its {len(of_class)} images are of {len(patients)} patient(s))",
                where=src,
                next_step="Add images of it (from more patients), or correct the split column",
            )


def _duplicate_summary(rows: list[dict[str, Any]]) -> dict[str, int]:
    sizes = Counter(row["duplicate_group"] for row in rows)
    groups = [size for size in sizes.values() if size > 1]
    return {"groups": len(groups), "images": sum(groups)}
