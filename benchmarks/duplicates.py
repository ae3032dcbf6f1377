"""How the search for near duplicates grows: time, work, memory, recall and precision on planted copies.

No film is like another (`unlike_films`), yet all are framed alike, which is what makes hashes collide. One film in
fifty is a copy of another: re-encoded, resized, re-windowed, cropped, or all of these.

    python benchmarks/duplicates.py
    python benchmarks/duplicates.py --images 12500 --plain
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from unlike_films import draw_people, draw_unlike, expose

from cxr_ray import cluster
from cxr_ray.data.duplicate_confirmation import confirm
from cxr_ray.data.duplicates import duplicate_groups, find_near_duplicates
from cxr_ray.data.mapping import Mapper
from cxr_ray.data.shards import SHARD_IMAGES, PixelStore, Shard, write_shard

IMAGES = (12_500, 25_000, 50_000, 100_000)
PLANTED = 50  # one film in so many is a copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=IMAGES, help="how many films, one row each")
    parser.add_argument("--size", type=int, default=224, help="edge of the stored squares, pixels")
    parser.add_argument("--plain", action="store_true", help="the built-in map instead of Ray")
    options = parser.parse_args()
    run: Mapper = map
    if not options.plain:
        cluster.connect()
        run = cluster.parallel_map
    print(
        "| films | seconds | CPU s | candidates a film | peak MB | workers' MB | recall | precision | largest group |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        people_file = Path(folder) / "people.npy"
        np.save(people_file, draw_people())
        for images in options.images:
            print(_row(Path(folder), people_file, images, options.size, run), flush=True)


def _row(folder: Path, people: Path, images: int, size: int, run: Mapper) -> str:
    parts = [(folder, people, images, size, start) for start in range(0, images, SHARD_IMAGES)]
    store = PixelStore(folder, list(run(_make_shard, parts)))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    counted = _Counted(run)
    start, before = time.perf_counter(), _usage(run)
    pairs = find_near_duplicates(store, map=counted)
    seconds, after = time.perf_counter() - start, _usage(run)
    cpu = sum(used - before.get(process, (0, 0))[0] for process, (used, _) in after.items())
    peak = after.pop(os.getpid())[1]
    workers = max((peak for _, peak in after.values()), default=0)
    groups = duplicate_groups(images, pairs)
    originals = np.array([_original(row, images) for row in range(images)])
    copies = np.flatnonzero(originals != np.arange(images))
    recall = np.mean(groups[copies] == groups[originals[copies]])
    right = [originals[pair.first] == originals[pair.second] for pair in pairs]
    for file in folder.glob("pixels-*"):
        file.unlink()
    return (
        f"| {images:,} | {seconds:.1f} | {cpu:.1f} | {counted.pairs / images:.2f} | {peak:.0f} | {workers:.0f} "
        f"| {recall:.4f} | {np.mean(right):.4f} | {np.bincount(groups).max()} |"
    )


class _Counted:
    """A map that counts the candidate pairs passing through it."""

    def __init__(self, run: Mapper) -> None:
        self._run = run
        self.pairs = 0

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return self._run(function, self._count(items) if function is confirm else items)

    def _count(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.pairs += item.shape[1]
            yield item


def _usage(run: Mapper) -> dict[int, tuple[float, float]]:
    """CPU seconds and peak MB of this process and of the workers, by process."""
    return dict([_usage_here(None), *run(_usage_here, range(32))])


def _usage_here(_: object) -> tuple[int, tuple[float, float]]:
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    return os.getpid(), (time.process_time(), int(peak) / 1024)


def _original(row: int, images: int) -> int:
    """The film that a row shows: the last rows are copies of films that lie `PLANTED` apart."""
    copies = images // PLANTED
    return row if row < images - copies else (row - (images - copies)) * (PLANTED - 1)


def _make_shard(part: tuple[Path, Path, int, int, int]) -> Shard:
    folder, people_file, images, size, start = part
    people = np.load(people_file)
    films = [_film(row, people, images, size) for row in range(start, min(images, start + SHARD_IMAGES))]
    return write_shard(folder, f"pixels-{start:08d}.npy", np.stack(films))


def _film(row: int, people: np.ndarray, images: int, size: int) -> np.ndarray:
    original = _original(row, images)
    film = draw_unlike(np.random.default_rng([1, original]), people)
    if original != row:
        film = _copy(np.random.default_rng([2, row]), film, row % 5)
    return cv2.resize(film, (size, size), interpolation=cv2.INTER_AREA)


def _copy(random: np.random.Generator, film: np.ndarray, kind: int) -> np.ndarray:
    """A copy of a film: 0 cropped, 1 re-windowed, 2 resized, 3 re-encoded, 4 all of these."""
    size = film.shape[0]
    if kind in (0, 4):
        top, bottom, left, right = random.integers(0, size // 20 + 1, 4)
        film = film[top : size - bottom, left : size - right]
    if kind in (1, 4):
        film = expose(film / 255.0, random, 0.15)
    if kind in (2, 4):
        film = cv2.resize(film, (128, 128), interpolation=cv2.INTER_AREA)
    if kind in (3, 4):
        file = io.BytesIO()
        Image.fromarray(film).save(file, "JPEG", quality=int(random.integers(30, 96)))
        film = np.asarray(Image.open(file))
    return cv2.resize(film, (size, size), interpolation=cv2.INTER_LINEAR)


if __name__ == "__main__":
    main()
