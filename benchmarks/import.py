"""How fast films become a dataset, and in how much memory.

    python benchmarks/import.py                      # images a second, against a plain loop over the same files
    python benchmarks/import.py --memory             # memory of the whole import from 2,000 to 50,000 files
    python benchmarks/import.py --films FOLDER       # on class folders of your own (without what Pillow cannot open)

The plain loop opens each file with Pillow, converts it to gray and resizes it to 224 x 224, in one process. The import
decodes over Ray on all cores, and besides that hashes, measures, looks for duplicates, splits and writes the dataset.
Both work on the same files and take turns in one run. Without --films the files are synthetic, in the formats, sizes
and colours of 43 films as six public sources publish them (256 px thumbnails to 5-megapixel PNG and JPEG). A few films
of your own are linked several times, until they are as many, so that what an import costs once does not decide.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from unlike_films import draw_people, draw_unlike

from cxr_ray import cluster
from cxr_ray.data.importers import import_dataset
from cxr_ray.data.phantom import PHANTOM_CLASSES, draw_phantom

# Of published films: suffix, width, height, mode.
PUBLISHED = [
    *(("png", 2498, 1971, "RGB"), ("jpg", 1435, 1521, "RGB"), ("jpg", 685, 628, "RGB"), ("png", 817, 852, "RGBA")),
    *(("webp", 685, 513, "RGB"), ("png", 626, 627, "RGBA"), ("png", 640, 524, "L"), ("png", 640, 691, "L")),
    *(("jpg", 1534, 1970, "RGB"), ("jpg", 224, 224, "RGB"), ("jpg", 1080, 712, "L"), ("jpg", 1248, 1056, "L")),
    *(("png", 2459, 1427, "RGB"), ("png", 2498, 1972, "RGBA"), ("jpg", 1876, 1893, "L"), ("jpg", 1810, 1545, "L")),
    *(("jpg", 1692, 1474, "L"), ("jpg", 1800, 1546, "L"), ("jpg", 640, 640, "RGB"), ("jpg", 1010, 562, "RGB")),
    *(("jpg", 1716, 1489, "L"), ("jpg", 920, 512, "L"), ("jpg", 1416, 1072, "L")),
    *[("png", 1024, 1024, "L")] * 3,
    *[("png", 512, 512, "RGB")] * 4,
    *[("png", 256, 256, "RGB")] * 11,
    *[("jpg", 256, 256, "RGB")] * 2,
]
SIZE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, help="a folder of films, instead of synthetic ones")
    parser.add_argument("--images", type=int, default=860, help="how many to import")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--measured", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.measured:
            return measure_one(Path(os.environ["FILMS"]), Path(folder) / "dataset")
        if options.memory:
            return memory(Path(folder))
        if options.films:
            films = class_folders(options.films, Path(folder), options.images)
        else:
            films = published(Path(folder), options.images)
        speed(films, options.rounds, Path(folder))
    return None


def speed(films: Path, rounds: int, folder: Path) -> None:
    files = sorted(path for path in films.rglob("*") if path.is_file())
    cluster.connect()
    list(cluster.parallel_map(_warm_up, range(os.cpu_count() or 1)))
    rates: dict[str, list[float]] = {"plain loop": [], "import": []}
    for _ in range(rounds):
        start = time.perf_counter()
        for file in files:
            plain(file)
        rates["plain loop"].append(len(files) / (time.perf_counter() - start))
        start = time.perf_counter()
        dataset = import_dataset(
            films, folder / "dataset", size=SIZE, map=cluster.parallel_map, overwrite=True, quiet=True
        )
        rates["import"].append(dataset.manifest.num_rows / (time.perf_counter() - start))
    cluster.disconnect()
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    print(f"{len(files)} files, {megabytes:.0f} MB, {os.cpu_count()} cores; images/s, median of {rounds} (all)")
    for name, values in rates.items():
        print(f"{name:>12} {statistics.median(values):8.1f}   ({', '.join(f'{value:.1f}' for value in values)})")
    ratios = [ours / theirs for ours, theirs in zip(rates["import"], rates["plain loop"], strict=True)]
    print(f"{'ratio':>12} {statistics.median(ratios):7.2f}x   ({', '.join(f'{value:.2f}' for value in ratios)})")


def plain(file: Path) -> np.ndarray:
    """The loop people write by hand."""
    return np.asarray(Image.open(file).convert("L").resize((SIZE, SIZE)))


def memory(folder: Path) -> None:
    """Peak memory of the import and all of Ray's processes, each number of files in a process of its own."""
    films = folder / "films"
    counts = (2_000, 12_500, 50_000)
    small_files(films, counts[0], 0)
    print(f"{'files':>7} {'seconds':>8} {'peak MB':>8} {'of that the driver':>19}")
    made = counts[0]
    for count in counts:
        small_files(films, count - made, made)
        made = count
        environment = os.environ | {"FILMS": str(films)}
        command = [sys.executable, __file__, "--measured", str(count)]
        print(
            f"{count:>7} {subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout}"
        )


def measure_one(films: Path, out: Path) -> None:
    cluster.connect()
    list(cluster.parallel_map(_warm_up, range(os.cpu_count() or 1)))
    peaks = {"all": 0, "driver": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            mine, children = own_memory(os.getpid()), sum(own_memory(pid) for pid in descendants(os.getpid()))
            peaks["all"] = max(peaks["all"], mine + children)
            peaks["driver"] = max(peaks["driver"], mine)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    import_dataset(films, out, size=SIZE, map=cluster.parallel_map, quiet=True)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    cluster.disconnect()
    print(f"{seconds:8.1f} {peaks['all'] / 1e6:8.0f} {peaks['driver'] / 1e6:19.0f}", end="")


def own_memory(pid: int) -> int:
    """Proportional set size in bytes: memory of the process, shared pages split among those who share them."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def published(folder: Path, images: int) -> Path:
    """Synthetic films in the formats and sizes of published ones, detail and noise like theirs."""
    random = np.random.default_rng(0)
    for number in range(images):
        suffix, width, height, mode = PUBLISHED[number % len(PUBLISHED)]
        label = PHANTOM_CLASSES[number % 5]
        film = _framed(draw_phantom(label, seed=1, index=number).pixels, random, (width, height))
        noise = random.normal(0, 2.5, (height // 2 + 1, width // 2 + 1)).astype(np.float32)
        grain = cv2.resize(noise, (width, height))
        picture = Image.fromarray((film + grain).clip(0, 255).astype(np.uint8)).convert(mode)
        (folder / "films" / label).mkdir(parents=True, exist_ok=True)
        picture.save(folder / "films" / label / f"{number:05d}.{suffix}", quality=90)
    return folder / "films"


def small_files(folder: Path, count: int, first: int) -> None:
    """JPEG films of 256 px, none like another."""
    for label in PHANTOM_CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
    people = draw_people()
    parts = [
        (folder, people, range(start, min(start + 500, first + count))) for start in range(first, first + count, 500)
    ]
    with ProcessPoolExecutor() as pool:
        list(pool.map(_save_films, parts))


def _save_films(part: tuple[Path, np.ndarray, range]) -> None:
    folder, people, numbers = part
    for number in numbers:
        film = cv2.resize(draw_unlike(np.random.default_rng(number), people), (256, 256))
        Image.fromarray(film).save(folder / PHANTOM_CLASSES[number % 5] / f"{number:06d}.jpg")


def _framed(film: np.ndarray, random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A phantom framed and exposed in a way of its own: real films are not as alike as phantoms are."""
    corners = np.array([[0, 0], [film.shape[1], 0], [0, film.shape[0]]], np.float32)
    moved = (corners + random.normal(0, 0.04 * film.shape[0], (3, 2))).astype(np.float32)
    matrix = np.diag([size[0] / film.shape[1], size[1] / film.shape[0]]) @ cv2.getAffineTransform(corners, moved)
    warped = cv2.warpAffine(film, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return 255 * (warped / 255) ** random.uniform(0.6, 1.6)


def class_folders(films: Path, folder: Path, images: int) -> Path:
    """Links to those of somebody's films that Pillow opens, in class folders, over and over until there are enough."""
    files = [file for file in sorted(films.rglob("*")) if file.is_file() and _opens(file)]
    few = {label for label, count in Counter(file.parent.name for file in files).items() if count < 4}
    files = [file for file in files if file.parent.name not in few]
    for number in range(max(len(files), images)):
        file = files[number % len(files)]
        target = folder / "films" / file.parent.name
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{number:06d}-{file.name}").symlink_to(file.resolve())
    return folder / "films"


def _opens(file: Path) -> bool:
    try:
        with Image.open(file):
            return True
    except (UnidentifiedImageError, OSError):
        return False


def _warm_up(_: int) -> int:
    """So long that every worker gets one: what is compared is a cluster that runs already."""
    import cxr_ray.data.import_chunk

    time.sleep(1)
    return len(cxr_ray.data.import_chunk.__name__)


if __name__ == "__main__":
    main()
