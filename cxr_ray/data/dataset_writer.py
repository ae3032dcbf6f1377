"""Writing a dataset: the manifest, then, last, the description that makes the folder one."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxr_ray.data.listing import SetFacts
from cxr_ray.data.quality_flags import Threshold
from cxr_ray.data.shards import Shard
from cxr_ray.data.split_strategies import SplitRecord
from cxr_ray.data.splits import SPLITS
from cxr_ray.data.store import DATASET_FILE, MANIFEST_FILE, MANIFEST_SCHEMA, DatasetInfo, tally
from cxr_ray.errors import DataError
from cxr_ray.paths import write_atomically


def manifest_table(rows: Sequence[dict[str, Any]], extra: Sequence[str] = ()) -> pa.Table:
    """Manifest rows as a table: `MANIFEST_SCHEMA`, then the ``extra.*`` columns named, all text.

    Args:
        rows: One an image; keys that are missing become null.
        extra: Names of the further columns, with their prefix.
    """
    schema = pa.schema([*MANIFEST_SCHEMA, *((name, pa.string()) for name in sorted(extra))])
    return pa.Table.from_pylist(list(rows), schema=schema)


def write_dataset(
    out: Path,
    manifest: pa.Table,
    shards: list[Shard],
    *,
    name: str,
    classes: list[str],
    image_size: int,
    fit: str,
    seed: int,
    split: SplitRecord | None = None,
    mask_shards: list[Shard] | None = None,
    lung_mask_shards: list[Shard] | None = None,
    licences: dict[str, int] | None = None,
    sets: list[SetFacts] | None = None,
    thresholds: dict[str, Threshold] | None = None,
    warnings: list[str] | None = None,
) -> None:
    """Finish a dataset whose pixel shards are already in `out`: the manifest, then, last, `dataset.json`.

    Args:
        out: The dataset's folder.
        manifest: One row an image, in the order of the shards; see `manifest_table`.
        shards: The pixel files, in order.
        name: What people call the dataset.
        classes: In the order the network will use.
        image_size: Edge of the stored squares, pixels.
        fit: How films were made square.
        seed: Of the split.
        split: How the films were split; at random by default.
        mask_shards: Files of true finding masks, in order.
        lung_mask_shards: Files of lung masks, in order.
        licences: How many images each licence text covers.
        sets: What is known of the public sets the films come from.
        thresholds: What the quality flags mean in this dataset, by flag.
        warnings: Sentences that every reader of the dataset should see.
    """
    ids = manifest.column("image_id")
    if pc.count_distinct(ids).as_py() != len(ids):  # type: ignore[attr-defined] - made at run time
        raise DataError("two images have the same image_id", where=out, next_step="Please report this")
    manifest = manifest.combine_chunks()  # how it was put together must not show in the file
    sink = pa.BufferOutputStream()
    # In groups, each of which is held in memory while it is encoded.
    pq.write_table(manifest, sink, compression="zstd", row_group_size=4096)
    content = sink.getvalue().to_pybytes()
    write_atomically(out / MANIFEST_FILE, content)
    labels, splits = np.array(manifest.column("label").to_pylist()), np.array(manifest.column("split").to_pylist())
    info = DatasetInfo(
        name=name,
        classes=classes,
        image_size=image_size,
        fit=fit,
        fingerprint=_fingerprint(
            manifest, [*shards, *(mask_shards or []), *(lung_mask_shards or [])], classes, image_size, fit
        ),
        manifest_sha256=hashlib.sha256(content).hexdigest(),
        shards=shards,
        mask_shards=mask_shards or [],
        lung_mask_shards=lung_mask_shards or [],
        counts={part: tally(labels[splits == part].tolist(), classes) for part in SPLITS},
        sources=dict(sorted(Counter(manifest.column("source").to_pylist()).items())),
        licences=licences or {},
        sets=sets or [],
        thresholds=thresholds or {},
        split=split or SplitRecord(),
        warnings=warnings or [],
        seed=seed,
    )
    write_atomically(out / DATASET_FILE, (info.model_dump_json(indent=2) + "\n").encode())


def _fingerprint(manifest: pa.Table, shards: list[Shard], classes: list[str], image_size: int, fit: str) -> str:
    """sha256 over everything that training can see, 16 hex digits; independent of how Parquet is encoded."""
    digest = hashlib.sha256()
    digest.update(json.dumps([classes, image_size, fit, [shard.sha256 for shard in shards]]).encode())
    for batch in manifest.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
