"""A manifest's splits: decided when films are imported, and again when a dataset is split anew."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cxr_ray.data.dataset_folder import check_request, claim, make_folder, swap_in
from cxr_ray.data.dataset_writer import write_dataset
from cxr_ray.data.leakage import describe_leaks, find_leaks
from cxr_ray.data.split_strategies import GIVEN_COLUMN, Films, SplitRecord, assign_splits, split_request
from cxr_ray.data.store import LOOKS_FILE, Dataset, open_dataset
from cxr_ray.paths import locate

_SPLIT_ANEW = "the films were split anew after"


def resplit_dataset(
    data: str | Path | Dataset,
    out: str | Path,
    *,
    split: str | None = None,
    ratios: str | None = None,
    hold_out: Sequence[str] = (),
    seed: int = 0,
    overwrite: bool = False,
) -> Dataset:
    """Make a dataset of the same films under another split; on one disk the two share their pixel files.

    Args:
        data: The dataset, local or a URI.
        out: The dataset folder to write, local.
        split: ``random``, ``given`` or ``source-holdout``; ``random`` by default, or what the other arguments imply.
        ratios: Shares of train, val, calibration and test: ``65/10/10/15``.
        hold_out: Sources that make up the test split.
        seed: Of the random split.
        overwrite: Replace a finished dataset in `out`.

    Raises:
        ConfigError: An option that is not allowed.
        DataError: `out` is taken, or a class would have nothing to learn from.
    """
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    info = dataset.info
    check_request(info.image_size, seed)
    target = claim(out, overwrite=overwrite)
    has_given = GIVEN_COLUMN in dataset.manifest.column_names
    record = split_request(split or (None if hold_out else "random"), ratios, hold_out, has_given=has_given)
    manifest = dataset.manifest
    if has_given:
        manifest = with_column(manifest, "split", manifest.column(GIVEN_COLUMN).to_pylist()).drop([GIVEN_COLUMN])
    else:
        manifest = with_column(manifest, "split", [None] * manifest.num_rows)
    manifest, warnings = split_manifest(manifest, record, seed=seed, where=dataset.uri)
    warnings += [text for text in info.warnings if text.startswith(_SPLIT_ANEW)]  # nor must a second resplit forget
    if looks := _looks(dataset):
        warnings.append(
            f"{_SPLIT_ANEW} {looks} look(s) at the test split of {info.name} ({info.fingerprint}): "
            "some that were test films are training films now, and the other way round"
        )
    work = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    make_folder(work)
    try:
        for shard in info.pixel_files:
            _link_or_copy(dataset.root / shard.file, work / shard.file)
        write_dataset(
            work,
            manifest,
            info.shards,
            name=target.name,
            classes=info.classes,
            image_size=info.image_size,
            fit=info.fit,
            seed=seed,
            split=record,
            mask_shards=info.mask_shards,
            lung_mask_shards=info.lung_mask_shards,
            licences=info.licences,
            sets=info.sets,
            thresholds=info.thresholds,
            warnings=warnings,
        )
        swap_in(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return open_dataset(target)


def split_manifest(manifest: pa.Table, record: SplitRecord, *, seed: int, where: object) -> tuple[pa.Table, list[str]]:
    """Put every film of a manifest into a split.

    Args:
        manifest: With duplicate groups; its column ``split`` holds what the set itself says, null where nothing.
        record: The strategy.
        seed: Of the dealing.
        where: What is split, for messages.

    Returns:
        The manifest with splits, the set's own kept in `GIVEN_COLUMN`, and warnings for every later reader.

    Raises:
        ConfigError: A source to hold out that there is not.
        DataError: A class would have nothing to learn from, or the given split names no films to learn from.
    """

    def column(name: str) -> list[Any]:
        kept: dict[Any, Any] = {}  # one object for all films of a class or source, not one each
        return [kept.setdefault(value, value) for value in manifest.column(name).to_pylist()]

    groups, given, paths = column("duplicate_group"), column("split"), column("path")
    # One id is one patient whatever the source: merged sets hold films of the same people, and taking two people for
    # one costs nothing, while taking one person for two leaks.
    films = Films(column("label"), column("source"), column("patient_id"), groups, given)
    warnings = _label_conflicts(films.labels, groups, paths)
    splits, more = assign_splits(films, record, seed=seed, where=where)
    warnings += more
    if leaks := find_leaks(splits, films.patient_ids, groups, paths):
        warnings.append(
            f"the given split leaks: {describe_leaks(leaks)}; train and tune refuse it until "
            "'cxr-ray data resplit' has split the dataset anew"
        )
    if any(given):
        manifest = manifest.append_column(GIVEN_COLUMN, pa.array(given, pa.string()))
    return with_column(manifest, "split", splits), warnings


def with_column(table: pa.Table, name: str, values: list[Any] | np.ndarray) -> pa.Table:
    """The table with other values in a column it has."""
    number = table.schema.get_field_index(name)
    field = table.schema.field(number)
    return table.set_column(number, field, pa.array(values, field.type))


def _label_conflicts(labels: list[str], groups: list[str], paths: list[str]) -> list[str]:
    first: dict[str, str] = {}
    conflicting = {
        group for label, group in zip(labels, groups, strict=True) if first.setdefault(group, label) != label
    }
    if not conflicting:
        return []
    path = next(path for path, group in zip(paths, groups, strict=True) if group in conflicting)
    return [f"{len(conflicting)} film(s) stand under more than one label, for example {path}"]


def _looks(dataset: Dataset) -> int:
    file = locate(dataset.uri).child(LOOKS_FILE)
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def _link_or_copy(file: Path, target: Path) -> None:
    # Files of a dataset are never changed in place, so two datasets may share one; across disks they cannot.
    with contextlib.suppress(OSError):
        os.link(file.resolve(), target)  # what a link leads to: a copy of the link would lead elsewhere
        return
    shutil.copyfile(file, target)
