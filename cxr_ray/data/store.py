"""The dataset folder: `dataset.json`, `manifest.parquet` and memory-mapped `pixels-*.npy`, written once."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from cxr_ray.data.splits import SPLITS
from cxr_ray.errors import DataError
from cxr_ray.paths import Location, local_copy, locate, write_atomically

SCHEMA_VERSION = 1
DATASET_FILE = "dataset.json"
MANIFEST_FILE = "manifest.parquet"
LOOKS_FILE = "looks.jsonl"
MANIFEST_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("pixel_hash", pa.string()),
        ("label", pa.string()),
        ("source", pa.string()),
        ("patient_id", pa.string()),
        ("split", pa.string()),
        ("path", pa.string()),
        ("view", pa.string()),
        ("sex", pa.string()),
        ("age", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bit_depth", pa.int32()),
        ("dhash", pa.uint64()),
        ("duplicate_group", pa.string()),
        ("brightness", pa.float32()),
        ("contrast", pa.float32()),
        ("sharpness", pa.float32()),
        ("tint", pa.float32()),
        ("saturated", pa.float32()),
        ("border", pa.float32()),
        ("quality_flags", pa.list_(pa.string())),
    ]
)


class Shard(BaseModel):
    """One file of pixels: its name, how many images it holds, and the sha256 of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    images: int
    sha256: str


class DatasetInfo(BaseModel):
    """What `dataset.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    name: str
    classes: list[str]
    image_size: int
    fit: str
    fingerprint: str
    shards: list[Shard]
    mask_shards: list[Shard] = []
    counts: dict[str, dict[str, int]]
    sources: dict[str, int]
    licences: dict[str, int]
    warnings: list[str] = []
    seed: int = 0


class PixelStore:
    """Images of a dataset by row number, memory-mapped; cheap to send to another process."""

    def __init__(self, root: Path, shards: Iterable[Shard]) -> None:
        self._files = [(root / shard.file, shard.images) for shard in shards]
        self._starts = np.cumsum([0] + [images for _, images in self._files])
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> np.ndarray:
        """uint8, (size, size), read-only view of image `row`."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        if shard not in self._maps:
            self._maps[shard] = np.load(self._files[shard][0], mmap_mode="r")
        return self._maps[shard][row - self._starts[shard]]

    def __getstate__(self) -> dict[str, Any]:
        # A memory map pickles as its content; the receiving process opens its own.
        return {**self.__dict__, "_maps": {}}


@dataclass(frozen=True)
class Dataset:
    """An opened dataset.

    Attributes:
        root: Local folder.
        uri: Where the user said it lies (equals `root` unless it was copied from remote storage).
        info: The content of `dataset.json`.
        manifest: One row an image (`MANIFEST_SCHEMA` and ``extra.*`` columns); row i belongs to image i.
    """

    root: Path
    uri: str
    info: DatasetInfo
    manifest: pa.Table

    @property
    def classes(self) -> list[str]:
        return self.info.classes

    @functools.cached_property
    def pixels(self) -> PixelStore:
        return PixelStore(self.root, self.info.shards)

    @functools.cached_property
    def masks(self) -> PixelStore | None:
        """True finding masks (uint8, 0 or 255), for phantoms only."""
        return PixelStore(self.root, self.info.mask_shards) if self.info.mask_shards else None

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int64, (images,): index of every image's class in `classes`."""
        number = {name: i for i, name in enumerate(self.classes)}
        return np.array([number[name] for name in self.column("label")], np.int64)

    def column(self, name: str) -> list[Any]:
        return self.manifest.column(name).to_pylist()

    def rows(self, split: str) -> np.ndarray:
        """int64: row numbers of a split, ascending."""
        return np.flatnonzero(np.array(self.column("split")) == split)


def open_dataset(path: str | os.PathLike[str] | Location) -> Dataset:
    """Open a dataset folder, copying it to this node first if it is remote.

    Raises:
        DataError: There is none, it is half-written, it does not fit its own description, or it was damaged on
            the way to this node.
    """
    location = locate(path)
    if not location.child(DATASET_FILE).exists():
        raise _explain_missing(location)
    try:
        info = DatasetInfo.model_validate(location.child(DATASET_FILE).read_json())
    except (ValidationError, ValueError) as error:
        raise DataError(
            f"{DATASET_FILE} is damaged or was written by another version of cxr-ray",
            where=location,
            next_step="Import the dataset again",
        ) from error
    root = local_copy(
        location, info.fingerprint, verify=functools.partial(_verify_shards, location=location, info=info)
    )
    try:
        manifest = pq.read_table(root / MANIFEST_FILE)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{MANIFEST_FILE} cannot be read ({error})", where=location, next_step="Import the dataset again"
        ) from error
    _check_shards(root, location, info, manifest.num_rows)
    return Dataset(root=root, uri=location.uri, info=info, manifest=manifest)


def write_dataset(
    out: Path,
    rows: list[dict[str, Any]],
    shards: list[Shard],
    *,
    name: str,
    classes: list[str],
    image_size: int,
    fit: str,
    seed: int,
    mask_shards: list[Shard] | None = None,
    licences: dict[str, int] | None = None,
    warnings: list[str] | None = None,
) -> Dataset:
    """Finish a dataset whose pixel shards are already in `out`: the manifest, then, last, `dataset.json`.

    Args:
        out: The dataset's folder.
        rows: One an image, in the order of the shards; keys are manifest columns.
        shards: The pixel files, in order.
        name: What people call the dataset.
        classes: In the order the network will use.
        image_size: Edge of the stored squares, pixels.
        fit: How films were made square.
        seed: Of the split.
        mask_shards: Files of true finding masks, in order.
        licences: How many images each licence text covers.
        warnings: Sentences that every reader of the dataset should see.
    """
    extra = sorted({key for row in rows for key in row if key.startswith("extra.")})
    schema = pa.schema([*MANIFEST_SCHEMA, *((name, pa.string()) for name in extra)])
    manifest = pa.Table.from_pylist(rows, schema=schema)
    if len({row["image_id"] for row in rows}) != len(rows):
        raise DataError("two images have the same image_id", where=out, next_step="Please report this")
    sink = pa.BufferOutputStream()
    pq.write_table(manifest, sink, compression="zstd")
    write_atomically(out / MANIFEST_FILE, sink.getvalue().to_pybytes())
    info = DatasetInfo(
        name=name,
        classes=classes,
        image_size=image_size,
        fit=fit,
        fingerprint=_fingerprint(rows, shards, classes, image_size, fit),
        shards=shards,
        mask_shards=mask_shards or [],
        counts={split: _count(rows, split, classes) for split in SPLITS},
        sources=dict(sorted(Counter(row["source"] for row in rows).items())),
        licences=licences or {},
        warnings=warnings or [],
        seed=seed,
    )
    write_atomically(out / DATASET_FILE, (info.model_dump_json(indent=2) + "\n").encode())
    return open_dataset(out)


def write_shard(folder: Path, file: str, images: np.ndarray) -> Shard:
    """Write one ``.npy`` file of images (uint8, (images, size, size)); its name appears when it is whole."""
    temporary = folder / f".{file}.partial"
    with temporary.open("wb") as stream:
        np.save(stream, images)
        stream.flush()
        os.fsync(stream.fileno())
    digest = file_sha256(temporary)
    temporary.replace(folder / file)
    return Shard(file=file, images=len(images), sha256=digest)


def work_folder(out: Path) -> Path:
    """Where an import builds the dataset that is to become `out`: beside it, on the same file system."""
    return out.parent / f".{out.name}.importing"


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fingerprint(rows: list[dict[str, Any]], shards: list[Shard], classes: list[str], image_size: int, fit: str) -> str:
    """sha256 over everything that training can see, 16 hex digits; independent of how Parquet is encoded."""
    digest = hashlib.sha256()
    digest.update(json.dumps([classes, image_size, fit, [shard.sha256 for shard in shards]]).encode())
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _count(rows: list[dict[str, Any]], split: str, classes: list[str]) -> dict[str, int]:
    counts = Counter(row["label"] for row in rows if row["split"] == split)
    return {name: counts.get(name, 0) for name in classes}


def _check_shards(root: Path, location: Location, info: DatasetInfo, images: int) -> None:
    if sum(shard.images for shard in info.shards) != images:
        raise DataError("the manifest and the pixel files do not hold the same number of images", where=location)
    for shard in (*info.shards, *info.mask_shards):
        file = root / shard.file
        expected = shard.images * info.image_size**2
        if not file.exists() or not expected <= file.stat().st_size <= expected + 4096:
            problem = "is missing" if not file.exists() else "has the wrong size"
            raise DataError(
                f"pixel file {shard.file} {problem}", where=location, next_step="Import or copy the dataset again"
            )


def _verify_shards(root: Path, location: Location, info: DatasetInfo) -> None:
    """Compare a fresh copy's pixel files with their checksums: once a node, as it takes seconds a gigabyte.

    Raises:
        DataError: Naming the first file that differs.
    """
    for shard in (*info.shards, *info.mask_shards):
        file = root / shard.file
        if not file.is_file() or file_sha256(file) != shard.sha256:
            problem = "does not match its sha256" if file.is_file() else "is missing"
            raise DataError(
                f"pixel file {shard.file} {problem} after copying it to this node",
                where=location,
                next_step="Try again; if it stays so, the dataset is damaged there: copy or import it again",
            )


def _explain_missing(location: Location) -> DataError:
    if location.is_local and work_folder(location.local).exists():
        return DataError(
            "the import of this dataset was interrupted",
            where=location,
            next_step="Run the same 'cxr-ray data import' command again to complete it",
        )
    if not location.exists():
        return DataError(
            "there is no such dataset",
            where=location,
            next_step="Make one with: cxr-ray data import SRC OUT, or: cxr-ray data phantom OUT",
        )
    return DataError(
        f"is not a dataset (it holds no {DATASET_FILE})",
        where=location,
        next_step="Make one from a folder of images with: cxr-ray data import SRC OUT",
    )
