"""How fast augmented films reach the training loop, against torchvision's ImageFolder on the same JPEG files.

    python benchmarks/loader.py [--images 1000] [--edge 320] [--workers 2] [--rounds 5]

Draws phantoms as JPEG files (shared between both sides), imports them, and lets both loaders deliver whole epochs of
the same films at 112 and 224 px with the equivalent transforms (shift, scale, rotation; brightness, contrast; gray;
normalised to -1..1 float32), taking turns in one run. Prints images a second and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from cxr_ray.data.augment import AugmentConfig
from cxr_ray.data.importers import import_dataset
from cxr_ray.data.loader import FilmDataset, TrainSampler, to_input, train_loader
from cxr_ray.data.phantom_dataset import write_phantom_films
from cxr_ray.data.store import Dataset

BATCH = 32
DIAL = 0.5  # of both families of augmentation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--edge", type=int, default=320, help="of the JPEG files, pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        films = write_jpegs(Path(folder) / "films", options.images, options.edge)
        dataset = import_dataset(
            films, Path(folder) / "dataset", size=224, split="random", ratios="97/1/1/1", quiet=True
        )
        print(f"{options.images} JPEG films of {options.edge} px, {options.workers} workers, batches of {BATCH}")
        print(
            f"{'network':>8} {'ImageFolder':>12} {'cxr_ray':>10} {'ratio':>7}   (images/s, median of {options.rounds})"
        )
        for size in (112, 224):
            sides = {"theirs": image_folder(films, size, options.workers), "ours": ours(dataset, size, options.workers)}
            rates = compare(sides, options.rounds)
            ratio = rates["ours"] / rates["theirs"]
            print(f"{size:>5} px {rates['theirs']:>12.0f} {rates['ours']:>10.0f} {ratio:>6.1f}x")


def write_jpegs(folder: Path, images: int, edge: int) -> Path:
    """Phantoms as JPEG files in class folders, as most public sets come."""
    write_phantom_films(folder, images=images, size=edge, quiet=True)
    for path in list(folder.rglob("*.png")):
        Image.open(path).convert("L").save(path.with_suffix(".jpg"), quality=92)
        path.unlink()
    (folder / "metadata.csv").unlink()
    return folder


def image_folder(films: Path, size: int, workers: int) -> Callable[[], Iterator[Any]]:
    """What people write by hand: decode, convert, resize and augment a JPEG film each time it is wanted."""
    steps = [
        transforms.Grayscale(),
        transforms.Resize((size, size)),
        transforms.RandomAffine(15 * DIAL, (0.12 * DIAL, 0.12 * DIAL), (1 - 0.2 * DIAL, 1 + 0.2 * DIAL)),
        transforms.ColorJitter(0.4 * DIAL, 0.4 * DIAL),
        transforms.ToTensor(),
        transforms.Normalize([0.5], [0.5]),
    ]
    loader = DataLoader(
        datasets.ImageFolder(str(films), transforms.Compose(steps)),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
    )
    return lambda: (images for images, _ in loader)


def ours(dataset: Dataset, size: int, workers: int) -> Callable[[], Iterator[Any]]:
    rows = dataset.rows("train")
    films = FilmDataset(dataset, rows, size, AugmentConfig(exposure=DIAL, geometry=DIAL), seed=0)
    sampler = TrainSampler(dataset.labels[rows], BATCH, 0, 1, seed=0)
    loader = train_loader(films, sampler, workers, pin_memory=False)
    return lambda: (to_input(batch[0]) for batch in loader)


def compare(sides: dict[str, Callable[[], Iterator[torch.Tensor]]], rounds: int) -> dict[str, float]:
    """Images a second of each side, the median over rounds in which the sides take turns; a first round warms up."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, epoch in sides.items():
            start, images = time.perf_counter(), 0
            for batch in epoch():
                images += len(batch)
            if number:
                rates[name].append(images / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


if __name__ == "__main__":
    main()
