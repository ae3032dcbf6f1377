"""Import: decode once, resize once, decide who is in which split, and write the dataset folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_ray.data.decode import decode_bytes
from cxr_ray.data.labels import class_order
from cxr_ray.data.quality import difference_hash, measure_quality
from cxr_ray.data.resize import FITS, Fit, fit_square
from cxr_ray.data.sources import SourceFile, list_sources
from cxr_ray.data.splits import check_given, group_ids, random_split
from cxr_ray.data.store import DATASET_FILE, Dataset, Shard, write_dataset, write_shard
from cxr_ray.errors import ConfigError, DataError, DecodeError
from cxr_ray.paths import write_atomically
from cxr_ray.progress import ProgressLine, progress

REPORT_FILE = "import_report.json"
SHARD_IMAGES = 2048  # 100 MB at 224 px: small enough to redo, large enough to map few files
CHUNK_IMAGES = 32  # a unit of parallel work: about a second of decoding
MAX_UNREADABLE = 0.05
_WORK = ".import"
_PLACEHOLDER_PATIENTS = frozenset(
    {"", "0", "anon", "anonymous", "anonymized", "unknown", "none", "null", "nan", "na", "n/a"}
)

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True)
class Chunk:
    """A unit of work: which files to decode, and how."""

    root: str
    files: tuple[SourceFile, ...]
    size: int
    fit: Fit


@dataclass(frozen=True)
class ChunkResult:
    """`pixels` is uint8, (readable files, size, size); `rows` their manifest rows; `unreadable` the others."""

    pixels: np.ndarray
    rows: list[dict[str, Any]]
    unreadable: list[dict[str, str]]


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

    Interrupted, it is completed by the same call; finished shards are not decoded again.

    Args:
        src: A folder of class folders, or any folder with a CSV.
        out: The dataset folder to write.
        metadata: The CSV; see `cxr_ray.data.sources.list_sources`.
        size: Edge of the stored squares in pixels, 64 or more.
        fit: How a film becomes a square: ``squash``, ``pad`` or ``crop``.
        seed: Of the random split.
        keep_going: Import although more than 5 % of the files are unreadable.
        overwrite: Replace a finished dataset in `out`.
        map: Runs chunks in parallel, in order (`cxr_ray.cluster.parallel_map`); the built-in map by default.
        quiet: No progress display.

    Raises:
        DataError: Nothing to import, contradicting labels or splits, too many unreadable files, or `out` is
            taken.
    """
    src, out = Path(src).expanduser().resolve(), Path(out).expanduser().resolve()
    if size < 64:
        raise ConfigError(f"size {size} is too small; 64 or more pixels are allowed", where="--size")
    if fit not in FITS:
        raise ConfigError(f"fit '{fit}' is not one of {', '.join(FITS)}", where="--fit")
    files, notes = list_sources(src, None if metadata is None else Path(metadata).expanduser().resolve())
    plan = _plan(src, files, size, fit)
    _prepare_folder(out, plan, overwrite, notes)
    rows, unreadable, shards = _decode_all(out, src, files, size, fit, keep_going, map, quiet)
    warnings = _finish_rows(rows, files, seed)
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
    write_atomically(out / REPORT_FILE, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    dataset = write_dataset(
        out,
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
    shutil.rmtree(out / _WORK)
    return dataset


def decode_chunk(chunk: Chunk) -> ChunkResult:
    """Decode, resize and measure the files of one chunk; runs on any node that sees the files."""
    pixels, rows, unreadable = [], [], []
    for file in chunk.files:
        path = Path(chunk.root) / file.path
        try:
            try:
                content = path.read_bytes()
            except OSError as error:
                reason = error.strerror or str(error)
                raise DecodeError(f"cannot be read ({reason})", code="unreadable") from error
            image = decode_bytes(content)
        except DecodeError as error:
            unreadable.append({"path": file.path, "code": error.code, "reason": error.problem})
            continue
        square = fit_square(image.pixels, chunk.size, chunk.fit)
        pixels.append(square)
        patient = _known_patient(file.patient_id) or _known_patient(image.patient_id)
        rows.append(
            {
                "image_id": hashlib.sha256(content + f"\0{file.path}\0{0}".encode()).hexdigest()[:16],
                "pixel_hash": hashlib.sha256(square.tobytes()).hexdigest()[:16],
                "label": file.label,
                "source": file.source,
                "patient_id": patient,
                "split": file.split,
                "path": file.path,
                "view": file.view or image.view,
                "sex": file.sex or image.sex,
                "age": file.age if file.age is not None else image.age,
                "width": image.pixels.shape[1],
                "height": image.pixels.shape[0],
                "bit_depth": image.bit_depth,
                "dhash": difference_hash(image.pixels),
                "tint": image.tint,
                "quality_flags": [],
                **measure_quality(square),
                **file.extra,
            }
        )
    shape = (0, chunk.size, chunk.size)
    return ChunkResult(np.stack(pixels) if pixels else np.zeros(shape, np.uint8), rows, unreadable)


def _known_patient(patient_id: str | None) -> str | None:
    plain = (patient_id or "").strip()
    return None if plain.lower() in _PLACEHOLDER_PATIENTS else plain


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


def _prepare_folder(out: Path, plan: str, overwrite: bool, notes: list[str]) -> None:
    work = out / _WORK
    if (out / DATASET_FILE).exists():
        if not overwrite:
            raise DataError(
                "already holds a finished dataset",
                where=out,
                next_step="Give --overwrite to replace it, or choose another folder",
            )
        # dataset.json goes first: without it nothing in the folder is readable as a dataset.
        (out / DATASET_FILE).unlink()
        shutil.rmtree(work, ignore_errors=True)
    elif out.exists() and not work.exists() and any(out.iterdir()):
        raise DataError("is not empty and holds no dataset", where=out, next_step="Choose a new or an empty folder")
    if work.exists() and (work / "plan").exists():
        if (work / "plan").read_text() == plan:
            notes.append("continued an interrupted import")
            return
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    for stale in out.glob("*.npy"):
        stale.unlink()
    write_atomically(work / "plan", plan.encode())


def _decode_all(
    out: Path,
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
            done_file = out / _WORK / f"shard-{number:05d}.json"
            if done_file.exists():
                done = json.loads(done_file.read_text())
                shard_rows, shard_unreadable = done["rows"], done["unreadable"]
                shard = Shard.model_validate(done["shard"])
                line.update(start + len(part))
            else:
                shard_rows, shard_unreadable, shard = _decode_shard(
                    out, src, part, number, size, fit, map_chunks or map, line, len(unreadable)
                )
                done = {"rows": shard_rows, "unreadable": shard_unreadable, "shard": shard.model_dump()}
                write_atomically(done_file, json.dumps(done).encode())
            rows += shard_rows
            unreadable += shard_unreadable
            if shard.images:
                shards.append(shard)
    if len(unreadable) > MAX_UNREADABLE * len(files) and not keep_going:
        listing = out / _WORK / "unreadable.json"
        write_atomically(listing, json.dumps(unreadable, indent=2).encode())
        examples = "; ".join(f"{bad['path']} {bad['reason']}" for bad in unreadable[:3])
        raise DataError(
            f"{len(unreadable)} of {len(files)} files are unreadable, more than "
            f"{MAX_UNREADABLE:.0%}: {examples} (all of them: {listing})",
            where=src,
            next_step="Mend or remove them, or give --keep-going to import the others",
        )
    if not rows:
        raise DataError("none of the files could be read", where=src)
    return rows, unreadable, shards


def _decode_shard(
    out: Path,
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
    shard = write_shard(out, f"pixels-{number:05d}.npy", np.concatenate(pixels))
    return rows, unreadable, shard


def _finish_rows(rows: list[dict[str, Any]], files: list[SourceFile], seed: int) -> list[str]:
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
        warnings += _honour_given(rows, patients, groups, seed)
    _check_every_class_can_be_learnt(rows)
    return warnings


def _honour_given(rows: list[dict[str, Any]], patients: list[str | None], groups: list[str], seed: int) -> list[str]:
    problems = check_given([row["split"] for row in rows], patients, groups, [row["path"] for row in rows])
    if problems:
        raise DataError(
            "the given splits leak: " + ". ".join(problems),
            next_step="Correct the split column, or leave it out to have the import split the images",
        )
    if any(row["split"] == "calibration" for row in rows):
        return []
    val = [i for i, row in enumerate(rows) if row["split"] == "val"]
    together = group_ids([patients[i] for i in val], [groups[i] for i in val])
    order = np.random.default_rng(seed).permutation(np.unique(together))
    moved = set(order[: len(order) // 2].tolist())
    for i, group in zip(val, together, strict=True):
        if int(group) in moved:
            rows[i]["split"] = "calibration"
    return ["the split column names no calibration images: half of val was taken for calibration"]


def _check_every_class_can_be_learnt(rows: list[dict[str, Any]]) -> None:
    present = {(row["label"], row["split"]) for row in rows}
    for label in class_order(row["label"] for row in rows):
        missing = [split for split in ("train", "val") if (label, split) not in present]
        if missing:
            raise DataError(
                f"class '{label}' has no image in {' and '.join(missing)}",
                next_step="Add images of it (from more patients), or correct the split column",
            )


def _duplicate_summary(rows: list[dict[str, Any]]) -> dict[str, int]:
    sizes = Counter(row["duplicate_group"] for row in rows)
    groups = [size for size in sizes.values() if size > 1]
    return {"groups": len(groups), "images": sum(groups)}
