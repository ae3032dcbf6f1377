"""Phantoms as a dataset, with the true finding masks beside the films, or as a folder of image files."""

from __future__ import annotations

import csv
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cxr_ray.data.dataset_folder import check_request, claim, make_folder, swap_in
from cxr_ray.data.importers import SHARD_IMAGES, Mapper
from cxr_ray.data.phantom import PHANTOM_CLASSES, Phantom, draw_phantom
from cxr_ray.data.quality import difference_hash, measure_quality
from cxr_ray.data.splits import group_ids, random_split
from cxr_ray.data.store import Dataset, Shard, open_dataset, write_dataset, write_shard
from cxr_ray.errors import ConfigError
from cxr_ray.progress import progress

SOURCE = "phantom"
LICENCE = "synthetic, free of rights"
_MIN_IMAGES = 8 * len(PHANTOM_CLASSES)  # every class in every split


def make_phantoms(
    out: str | Path,
    *,
    images: int = 600,
    size: int = 224,
    seed: int = 0,
    overwrite: bool = False,
    map: Mapper | None = None,
    quiet: bool = False,
) -> Dataset:
    """Write a dataset of synthetic frontal films; `Dataset.masks` holds where their findings truly are.

    Args:
        out: The dataset folder to write.
        images: How many films, the five classes in turn; at least 40.
        size: Edge in pixels, 64 to 4096.
        seed: The same seed gives the same films and splits.
        overwrite: Replace a dataset in `out`, once the new one is whole.
        map: Draws in parallel, in order; the built-in map by default.
        quiet: No progress display.

    Raises:
        ConfigError: Too few images, or a size or seed that is not allowed.
        DataError: `out` is taken, or cannot be written.
    """
    _check_request(images, size, seed)
    target = claim(out, overwrite=overwrite)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    try:
        _write(partial, target.name, images, size, seed, map, quiet)
        swap_in(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_dataset(target)


def write_phantom_films(
    folder: str | Path, *, images: int = 600, size: int = 256, seed: int = 0, quiet: bool = False
) -> Path:
    """Write phantoms as PNG files in class folders with a ``metadata.csv``, as a hospital's export would look.

    Returns:
        The folder, ready for `cxr_ray.import_dataset`.

    Raises:
        ConfigError: Too few images, or a size or seed that is not allowed.
    """
    _check_request(images, size, seed)
    folder = Path(folder)
    rows = []
    with progress("Drawing films", images, quiet=quiet) as line:
        for index in range(images):
            film = _draw(index, seed, size)
            path = folder / film.label / f"phantom-{index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(film.pixels).save(path)
            rows.append({"path": path.relative_to(folder).as_posix(), **_attributes(film, index, seed)})
            line.advance()
    with (folder / "metadata.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def _check_request(images: int, size: int, seed: int) -> None:
    if images < _MIN_IMAGES:
        raise ConfigError(f"{images} images are too few; {_MIN_IMAGES} or more are allowed", where="--images")
    check_request(size, seed)


def _draw(index: int, seed: int, size: int) -> Phantom:
    return draw_phantom(PHANTOM_CLASSES[index % len(PHANTOM_CLASSES)], seed=seed, index=index, size=size)


def _attributes(film: Phantom, index: int, seed: int) -> dict[str, Any]:
    return {
        "label": film.label,
        "source": SOURCE,
        "patient_id": f"phantom-{seed}-{index}",
        "view": film.view,
        "sex": film.sex,
        "age": film.age,
        "licence": LICENCE,
    }


def _write(folder: Path, name: str, images: int, size: int, seed: int, map_films: Mapper | None, quiet: bool) -> None:
    draw: Callable[[int], Phantom] = functools.partial(_draw, seed=seed, size=size)
    films: Iterator[Phantom] = (map_films or map)(draw, range(images))
    rows: list[dict[str, Any]] = []
    shards: list[Shard] = []
    mask_shards: list[Shard] = []
    with progress("Drawing films", images, quiet=quiet) as line:
        for number, start in enumerate(range(0, images, SHARD_IMAGES)):
            pixels, masks = [], []
            for index in range(start, min(images, start + SHARD_IMAGES)):
                film = next(films)
                pixels.append(film.pixels)
                masks.append(film.finding_mask.astype(np.uint8) * 255)
                rows.append(_row(film, index, seed))
                line.advance()
            shards.append(write_shard(folder, f"pixels-{number:05d}.npy", np.stack(pixels)))
            mask_shards.append(write_shard(folder, f"masks-{number:05d}.npy", np.stack(masks)))
    together = group_ids([row["patient_id"] for row in rows], [row["duplicate_group"] for row in rows])
    splits = random_split([row["label"] for row in rows], [SOURCE] * images, together, seed=seed)
    for row, split in zip(rows, splits, strict=True):
        row["split"] = split
    write_dataset(
        folder,
        rows,
        shards,
        name=name,
        classes=list(PHANTOM_CLASSES),
        image_size=size,
        fit="squash",
        seed=seed,
        mask_shards=mask_shards,
        licences={LICENCE: images},
    )


def _row(film: Phantom, index: int, seed: int) -> dict[str, Any]:
    content = film.pixels.tobytes()
    path = f"{film.label}/phantom-{index:05d}"
    attributes = _attributes(film, index, seed)
    attributes["extra.licence"] = attributes.pop("licence")
    digest = hashlib.sha256(content + f"\0{path}\0{0}".encode()).hexdigest()[:16]
    return attributes | {
        "image_id": digest,
        "pixel_hash": hashlib.sha256(content).hexdigest()[:16],
        "path": path,
        "width": film.pixels.shape[1],
        "height": film.pixels.shape[0],
        "bit_depth": 8,
        "dhash": difference_hash(film.pixels),
        "duplicate_group": digest,
        "tint": 0.0,
        "quality_flags": [],
        **measure_quality(film.pixels),
    }
