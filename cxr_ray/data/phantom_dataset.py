"""Phantoms as a dataset, with the true masks of findings and lungs beside the films, or as a folder of image files."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from cxr_ray.data.dataset_folder import check_request, claim, make_folder, swap_in
from cxr_ray.data.dataset_writer import manifest_table, write_dataset
from cxr_ray.data.mapping import Mapper
from cxr_ray.data.phantom import PHANTOM_CLASSES, Phantom, draw_phantom
from cxr_ray.data.phantom_looks import LOOKS, Look, colour, mean_tint
from cxr_ray.data.phantom_sources import check_sources, choose_source, source_names
from cxr_ray.data.quality import difference_hash, measure_orientation, measure_quality
from cxr_ray.data.quality_flags import flag_dataset
from cxr_ray.data.shards import SHARD_IMAGES, PixelStore, Shard, ShardWriter
from cxr_ray.data.splits import group_ids, random_split
from cxr_ray.data.splitting import with_column
from cxr_ray.data.store import Dataset, open_dataset
from cxr_ray.errors import ConfigError
from cxr_ray.progress import progress

LICENCE = "synthetic, free of rights"
_KINDS = ("pixels", "masks", "lung-masks")  # of shards
# Of films written at once. Film by film, the C library would give memory back to the system after every film, and
# drawing would spend a fifth of its time on asking for it again.
_BLOCK_BYTES = 4 * 2**20
_MIN_IMAGES = 8 * len(PHANTOM_CLASSES)  # every class in every split


@dataclass(frozen=True)
class _Order:
    """What films are asked for; see `make_phantoms`."""

    images: int
    size: int
    seed: int
    sources: int
    confounding: float

    def check(self) -> None:
        if self.images < _MIN_IMAGES:
            raise ConfigError(f"{self.images} images are too few; {_MIN_IMAGES} or more are allowed", where="--images")
        check_request(self.size, self.seed)
        check_sources(self.sources, self.confounding)

    def draw(self, index: int) -> _Film:
        """Draw one film; the work that may be done elsewhere."""
        label = PHANTOM_CLASSES[index % len(PHANTOM_CLASSES)]
        number = choose_source(label, seed=self.seed, index=index, sources=self.sources, confounding=self.confounding)
        look = LOOKS[number] if self.sources > 1 else None
        phantom = draw_phantom(label, seed=self.seed, index=index, size=self.size, look=look)
        return _Film(phantom, index, self.seed, source_names(self.sources)[number], look)


@dataclass(frozen=True)
class _Film:
    """A phantom and where it comes from."""

    phantom: Phantom
    index: int
    seed: int
    source: str
    look: Look | None

    def attributes(self) -> dict[str, Any]:
        """What a hospital's list says of the film."""
        return {
            "label": self.phantom.label,
            "source": self.source,
            "patient_id": f"phantom-{self.seed}-{self.index}",
            "view": self.phantom.view,
            "sex": self.phantom.sex,
            "age": self.phantom.age,
            "licence": LICENCE,
        }

    def shape(self) -> tuple[int, int]:
        """Width and height of the image file the source would make of the film, pixels."""
        size = self.phantom.pixels.shape[0]
        across, down = self.look.shape if self.look else (1.0, 1.0)
        return round(across * size), round(down * size)

    def picture(self) -> np.ndarray:
        """That image file's content: uint8 (height, width), with a last axis of RGB for a tinted source."""
        pixels, shape = self.phantom.pixels, self.shape()
        if shape != pixels.shape:
            pixels = cv2.resize(pixels, shape, interpolation=cv2.INTER_LINEAR_EXACT)
        return colour(pixels, self.look) if self.look else pixels


def make_phantoms(
    out: str | Path,
    *,
    images: int = 600,
    size: int = 224,
    seed: int = 0,
    sources: int = 1,
    confounding: float = 0.0,
    overwrite: bool = False,
    map: Mapper | None = None,
    quiet: bool = False,
) -> Dataset:
    """Write a dataset of synthetic frontal films; `masks` of it hold their true findings, `lung_masks` their lungs.

    The same seed draws the same people with the same findings whatever the sources and the confounding, so that two
    datasets differ in nothing but how much the hospital tells of the disease.

    Args:
        out: The dataset folder to write.
        images: How many films, the five classes in turn; at least 40.
        size: Edge in pixels, 64 to 4096.
        seed: The same seed gives the same films and splits.
        sources: How many hospitals the films come from, 1 to 5, each with a look of its own
            (`cxr_ray.data.phantom_looks`); one alone leaves the films plain.
        confounding: How much the class tells the hospital, 0 (nothing) to 1 (all), with two sources or more: the
            probability that a film comes from its class's own hospital, and otherwise from any. P(source | class)
            is c + (1 - c) / K for the class's own of K, and (1 - c) / K for each other.
        overwrite: Replace a dataset in `out`, once the new one is whole.
        map: Draws in parallel, in order; the built-in map by default.
        quiet: No progress display.

    Raises:
        ConfigError: Too few images, or a size, seed, number of sources or confounding that is not allowed.
        DataError: `out` is taken, or cannot be written.
    """
    order = _Order(images, size, seed, sources, confounding)
    order.check()
    target = claim(out, overwrite=overwrite)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    try:
        _write(partial, target.name, order, map, quiet)
        swap_in(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_dataset(target)


def write_phantom_films(
    folder: str | Path,
    *,
    images: int = 600,
    size: int = 256,
    seed: int = 0,
    sources: int = 1,
    confounding: float = 0.0,
    quiet: bool = False,
) -> Path:
    """Write phantoms as PNG files in class folders with a ``metadata.csv``, as hospitals' exports would look.

    Args:
        folder: Where to write.
        images: How many films, the five classes in turn; at least 40.
        size: Of a square film's edge in pixels, 64 to 4096; with more than one source, films of some are up to 30 %
            longer on one side or both, and those of some are in colour.
        seed: As in `make_phantoms`, which draws the same people.
        sources: As in `make_phantoms`.
        confounding: As in `make_phantoms`.
        quiet: No progress display.

    Returns:
        The folder, ready for `cxr_ray.import_dataset`.

    Raises:
        ConfigError: Too few images, or a size, seed, number of sources or confounding that is not allowed.
    """
    order = _Order(images, size, seed, sources, confounding)
    order.check()
    folder = Path(folder)
    rows = []
    with progress("Drawing films", images, quiet=quiet) as line:
        for film in map(order.draw, range(images)):
            path = folder / film.phantom.label / f"phantom-{film.index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(film.picture()).save(path)
            rows.append({"path": path.relative_to(folder).as_posix(), **film.attributes()})
            line.advance()
    with (folder / "metadata.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def _write(folder: Path, name: str, order: _Order, map_films: Mapper | None, quiet: bool) -> None:
    films: Iterator[_Film] = (map_films or map)(order.draw, range(order.images))
    rows: list[dict[str, Any]] = []
    shards: dict[str, list[Shard]] = {kind: [] for kind in _KINDS}
    with progress("Drawing films", order.images, quiet=quiet) as line:
        for number in range(math.ceil(order.images / SHARD_IMAGES)):
            with _shard_writers(folder, number, order.size) as writers:
                block: list[Phantom] = []
                for film in itertools.islice(films, SHARD_IMAGES):
                    rows.append(_row(film))
                    block.append(film.phantom)
                    if len(block) * order.size**2 >= _BLOCK_BYTES:
                        _append(writers, block)
                        block = []
                    line.advance()
                _append(writers, block)
                for kind, writer in writers.items():
                    shards[kind].append(writer.finish())
    together = group_ids([row["patient_id"] for row in rows], [row["duplicate_group"] for row in rows])
    labels, sources = [row["label"] for row in rows], [row["source"] for row in rows]
    splits = random_split(labels, sources, together, seed=order.seed)
    pixels = PixelStore(folder, shards["pixels"])
    manifest = manifest_table(rows, ["extra.licence"])
    for column, values in {"split": splits, **measure_orientation(block for _, block in pixels.blocks(128))}.items():
        manifest = with_column(manifest, column, values)
    flagged = flag_dataset(manifest)
    write_dataset(
        folder,
        with_column(manifest, "quality_flags", flagged.flags),
        shards["pixels"],
        name=name,
        classes=list(PHANTOM_CLASSES),
        image_size=order.size,
        fit="squash",
        seed=order.seed,
        mask_shards=shards["masks"],
        lung_mask_shards=shards["lung-masks"],
        licences={LICENCE: order.images},
        thresholds=flagged.thresholds,
    )


@contextlib.contextmanager
def _shard_writers(folder: Path, number: int, size: int) -> Iterator[dict[str, ShardWriter]]:
    """Writers of one shard of every kind, closed whatever happens; who takes them finishes them."""
    writers = {kind: ShardWriter(folder, f"{kind}-{number:05d}.npy", size) for kind in _KINDS}
    try:
        yield writers
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise


def _append(writers: dict[str, ShardWriter], block: list[Phantom]) -> None:
    if block:
        writers["pixels"].append(np.stack([film.pixels for film in block]))
        writers["masks"].append(np.stack([film.finding_mask for film in block]).astype(np.uint8) * 255)
        writers["lung-masks"].append(np.stack([film.lung_mask for film in block]).astype(np.uint8) * 255)


def _row(film: _Film) -> dict[str, Any]:
    pixels = film.phantom.pixels
    content = pixels.tobytes()
    path = f"{film.phantom.label}/phantom-{film.index:05d}"
    attributes = film.attributes()
    attributes["extra.licence"] = attributes.pop("licence")
    digest = hashlib.sha256(content + f"\0{path}\0{0}".encode()).hexdigest()[:16]
    width, height = film.shape()
    return attributes | {
        "image_id": digest,
        "pixel_hash": hashlib.sha256(content).hexdigest()[:16],
        "path": path,
        "width": width,
        "height": height,
        "bit_depth": 8,
        "dhash": difference_hash(pixels),
        "duplicate_group": digest,
        "tint": mean_tint(pixels, film.look) if film.look else 0.0,
        "quality_flags": [],
        **measure_quality(pixels),
    }
