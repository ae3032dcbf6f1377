"""The dataset folder: `dataset.json`, `manifest.parquet` and memory-mapped `pixels-*.npy`, written once."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from cxr_ray.cache import local_copy
from cxr_ray.data.listing import SetFacts
from cxr_ray.data.quality_flags import FLAGS, Threshold
from cxr_ray.data.shards import PixelStore, Shard, file_sha256, shard_shape
from cxr_ray.data.split_strategies import SplitRecord
from cxr_ray.data.splits import LEARNING_SPLITS, SPLITS
from cxr_ray.errors import ConfigError, DataError, did_you_mean
from cxr_ray.paths import Location, locate

SCHEMA_VERSION = 3
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
        ("inversion", pa.float32()),
        ("upside_down", pa.float32()),
        ("sideways", pa.float32()),
        ("quality_flags", pa.list_(pa.string())),
    ]
)


class DatasetInfo(BaseModel):
    """What `dataset.json` holds.

    Attributes:
        schema_version: Of this file.
        name: What people call the dataset.
        classes: In the order the network uses.
        image_size: Edge of the stored squares, pixels.
        fit: How films were made square.
        fingerprint: Of everything that training can see; 16 hex digits.
        manifest_sha256: Of `manifest.parquet`.
        shards: The pixel files, in order.
        mask_shards: Files of true finding masks, in order; phantoms only.
        lung_mask_shards: Files of lung masks, in order; an empty mask where a film has none.
        counts: Images by split and class.
        sources: Images by source.
        licences: Images by licence text.
        sets: What is known of the public sets the films come from.
        thresholds: What the quality flags mean in this dataset, by flag.
        split: How the films were split.
        warnings: Sentences that every reader of the dataset should see.
        seed: Of the split.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    name: str
    classes: list[str]
    image_size: int
    fit: str
    fingerprint: str
    manifest_sha256: str
    shards: list[Shard]
    mask_shards: list[Shard] = []
    lung_mask_shards: list[Shard] = []
    counts: dict[str, dict[str, int]]
    sources: dict[str, int]
    licences: dict[str, int]
    sets: list[SetFacts] = []
    thresholds: dict[str, Threshold] = {}
    split: SplitRecord
    warnings: list[str] = []
    seed: int = 0

    @property
    def pixel_files(self) -> list[Shard]:
        """Every file of pixels or masks."""
        return [*self.shards, *self.mask_shards, *self.lung_mask_shards]


@dataclass(frozen=True)
class Dataset:
    """An opened dataset.

    Attributes:
        root: Local folder.
        uri: Where the user said it lies (equals `root` unless it was copied from remote storage).
        info: The content of `dataset.json`.
        manifest: One row an image (`MANIFEST_SCHEMA` and ``extra.*`` columns); row i belongs to image i.
        stored_fingerprint: Of the whole dataset, whatever flags are excluded.
        exclude_flags: Films with one of these quality flags are in no split; see `excluding`.
        leakage: What its splits share, where somebody learns from it all the same; see `data.leakage`.
    """

    root: Path
    uri: str
    info: DatasetInfo
    manifest: pa.Table
    stored_fingerprint: str
    exclude_flags: tuple[str, ...] = ()
    leakage: str | None = None

    @property
    def reference(self) -> DatasetReference:
        """What another process needs to open just this dataset."""
        return DatasetReference(self.uri, self.exclude_flags, self.leakage)

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

    @functools.cached_property
    def lung_masks(self) -> PixelStore | None:
        """Masks of the lung fields (uint8, 0 or 255), empty for a film without one; None where no film has one."""
        return PixelStore(self.root, self.info.lung_mask_shards) if self.info.lung_mask_shards else None

    def column(self, name: str) -> list[Any]:
        return self.manifest.column(name).to_pylist()

    def rows(self, split: str) -> np.ndarray:
        """int64: row numbers of a split, ascending, without the films that `exclude_flags` keeps out."""
        inside = np.array(self.column("split")) == split
        return np.flatnonzero(inside & ~self._excluded) if self.exclude_flags else np.flatnonzero(inside)

    def excluding(self, flags: Sequence[str]) -> Dataset:
        """The dataset without the films that carry one of some quality flags.

        Row numbers, pixels and manifest stay; `rows`, the counts and the fingerprint change.

        Raises:
            ConfigError: A flag that does not exist.
            DataError: A class has no image left in train or val.
        """
        wanted = tuple(sorted(set(flags)))
        for flag in wanted:
            if flag not in FLAGS:
                raise ConfigError(
                    f"there is no quality flag '{flag}'{did_you_mean(flag, FLAGS)}; there are {', '.join(FLAGS)}",
                    where="--exclude-flags",
                )
        if not wanted or wanted == self.exclude_flags:
            return self
        if self.exclude_flags:
            raise ConfigError(f"films with {', '.join(self.exclude_flags)} are excluded already", where=self.uri)
        digest = hashlib.sha256(json.dumps([self.info.fingerprint, wanted]).encode()).hexdigest()[:16]
        without = replace(self, exclude_flags=wanted)
        labels = np.array(self.column("label"))
        counts = {split: tally(labels[without.rows(split)].tolist(), self.classes) for split in SPLITS}
        for split in LEARNING_SPLITS:
            for name, left in counts[split].items():
                if not left and self.info.counts[split][name]:
                    raise DataError(
                        f"class '{name}' has no image in {split} without the films flagged {', '.join(wanted)}",
                        where=self.uri,
                        next_step="Exclude fewer flags",
                    )
        return replace(without, info=self.info.model_copy(update={"fingerprint": digest, "counts": counts}))

    @functools.cached_property
    def _excluded(self) -> np.ndarray:
        unwanted = set(self.exclude_flags)
        return np.array([not unwanted.isdisjoint(flags or ()) for flags in self.column("quality_flags")], bool)


@dataclass(frozen=True)
class DatasetReference:
    """A dataset by name, small enough to send to every worker; see `Dataset` for the fields."""

    uri: str
    exclude_flags: tuple[str, ...] = ()
    leakage: str | None = None

    def open(self) -> Dataset:
        """The dataset itself; raises as `open_dataset`."""
        return replace(open_dataset(self.uri, exclude_flags=self.exclude_flags), leakage=self.leakage)


def open_dataset(path: str | os.PathLike[str] | Location, *, exclude_flags: Sequence[str] = ()) -> Dataset:
    """Open a dataset folder, copying it to this node first if it is remote.

    Args:
        path: A local folder or a URI.
        exclude_flags: Leave out films with one of these quality flags; see `Dataset.excluding`.

    Raises:
        ConfigError: A flag that does not exist.
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
    sums = {MANIFEST_FILE: info.manifest_sha256} | {shard.file: shard.sha256 for shard in info.pixel_files}
    root = local_copy(location, info.fingerprint, sums)
    manifest = _read_manifest(root, location, info)
    _check_shards(root, location, info, manifest.num_rows)
    dataset = Dataset(root=root, uri=location.uri, info=info, manifest=manifest, stored_fingerprint=info.fingerprint)
    return dataset.excluding(exclude_flags) if exclude_flags else dataset


def read_rows(file: Path) -> pa.Table:
    """A Parquet file of manifest rows; raises OSError or pyarrow.ArrowInvalid.

    `pyarrow.parquet.read_table` would load an engine of 36 MB for it, and leave threads that outlive the interpreter.
    """
    with pq.ParquetFile(file) as parquet:
        table = parquet.read(use_threads=False)
    pa.default_memory_pool().release_unused()  # Arrow would keep three times as much as the table needs
    return table


def work_folder(out: Path) -> Path:
    """Where an import builds the dataset that is to become `out`: beside it, on the same file system."""
    return out.parent / f".{out.name}.importing"


def tally(labels: list[str], classes: list[str]) -> dict[str, int]:
    """Images by class, in the order of the classes, zeros included."""
    counts = Counter(labels)
    return {name: counts.get(name, 0) for name in classes}


def _read_manifest(root: Path, location: Location, info: DatasetInfo) -> pa.Table:
    try:
        if file_sha256(root / MANIFEST_FILE) != info.manifest_sha256:
            raise DataError(
                f"{MANIFEST_FILE} does not match its sha256 in {DATASET_FILE}",
                where=location,
                next_step="Import or copy the dataset again",
            )
        return read_rows(root / MANIFEST_FILE)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{MANIFEST_FILE} cannot be read ({error})", where=location, next_step="Import the dataset again"
        ) from error


def _check_shards(root: Path, location: Location, info: DatasetInfo, images: int) -> None:
    if sum(shard.images for shard in info.shards) != images:
        raise DataError("the manifest and the pixel files do not hold the same number of images", where=location)
    for shard in info.pixel_files:
        file = root / shard.file
        shape = shard_shape(file) if file.exists() else None
        if shape != (shard.images, info.image_size):
            problem = "is damaged or has the wrong size" if file.exists() else "is missing"
            raise DataError(
                f"pixel file {shard.file} {problem}", where=location, next_step="Import or copy the dataset again"
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
