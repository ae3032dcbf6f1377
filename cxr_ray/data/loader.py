"""From stored pixels to batches: the same images in the same order whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from cxr_ray.data.augment import Augmentation, AugmentConfig
from cxr_ray.data.resize import fit_square
from cxr_ray.data.store import Dataset, PixelStore
from cxr_ray.errors import ConfigError

Batch = tuple[Tensor, Tensor, Tensor]


class FilmDataset(TorchDataset[tuple[np.ndarray, int, int]]):
    """Films of some rows of a dataset, at the network's size, augmented if asked.

    Args:
        dataset: The opened dataset.
        rows: int64, row numbers; item i is row ``rows[i]``.
        image_size: Edge of the network's input in pixels, at most the dataset's.
        augment: The dials; None for none.
        seed: Of the augmentation; a film's transform follows from (seed, epoch, row) alone.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: np.ndarray,
        image_size: int,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.rows = rows
        self._pixels: PixelStore = dataset.pixels
        self._labels = dataset.labels[rows]
        self._image_size = image_size
        self._augmentation = Augmentation(augment) if augment else None
        self._seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> tuple[np.ndarray, int, int]:
        """(pixels uint8 (S, S), label, row) of an (epoch, position) pair."""
        epoch, position = item
        row = int(self.rows[position])
        pixels = fit_square(self._pixels[row], self._image_size, "squash")
        if self._augmentation is not None:
            seed = int(np.random.SeedSequence([self._seed, epoch, row]).generate_state(1)[0])
            pixels = self._augmentation(pixels, seed)
        return pixels, int(self._labels[position]), row


class TrainSampler(Sampler[list[tuple[int, int]]]):
    """Batches of a shuffled epoch: every worker draws the same global batches and takes its own part of each.

    The last, incomplete global batch is left out; the next epoch shuffles anew.

    Args:
        images: Number of training images.
        batch_size: Global batch size, over all workers.
        rank: This worker's number.
        world_size: Number of workers.
        seed: Of the shuffling.
    """

    def __init__(self, images: int, batch_size: int, rank: int, world_size: int, seed: int) -> None:
        self._images = images
        self.batch_size = min(batch_size, images)
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._images // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self._seed, self.epoch]).permutation(self._images)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = order[start : start + self.batch_size]
            yield [(self.epoch, int(i)) for i in batch[self._rank :: self._world_size]]


def check_batch(batch_size: int, images: int, workers: int) -> None:
    """Refuse a global batch that leaves a worker too few images for batch normalisation.

    Raises:
        ConfigError: With the arithmetic.
    """
    batch = min(batch_size, images)
    if batch // workers < 2:
        raise ConfigError(
            f"a batch of {batch} images over {workers} worker(s) leaves {batch // workers} each; "
            "batch normalisation needs 2 or more",
            where="training.batch_size",
            next_step="Raise the batch size or use fewer workers",
        )


def train_loader(films: FilmDataset, sampler: TrainSampler, processes: int, pin_memory: bool) -> DataLoader:
    """Augmented batches of (uint8 (N, 1, S, S), int64 (N,), int64 rows (N,)).

    Args:
        films: The training films.
        sampler: Decides the batches; set its `epoch` before each pass.
        processes: Worker processes that decode and augment; 0 does it in the caller.
        pin_memory: Page-locked batches, for copies to a GPU.
    """
    return DataLoader(
        films,
        batch_sampler=sampler,
        num_workers=processes,
        collate_fn=_collate,
        pin_memory=pin_memory,
        persistent_workers=processes > 0,
        worker_init_fn=_quiet_worker if processes else None,
    )


def eval_batches(films: FilmDataset, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """Batches of every `world_size`-th film from `rank` on, in order, nothing padded or left out."""
    positions = range(rank, len(films), world_size)
    for start in range(0, len(positions), batch_size):
        yield _collate([films[0, position] for position in positions[start : start + batch_size]])


def to_input(images_uint8: Tensor) -> Tensor:
    """Network input of 8-bit luminance: float32 in -1..1 (mean 0.5, standard deviation 0.5), same shape."""
    return images_uint8.float().div_(127.5).sub_(1.0)


def _collate(items: list[tuple[np.ndarray, int, int]]) -> Batch:
    pixels = np.stack([item[0] for item in items])[:, None]
    labels = np.array([item[1] for item in items], np.int64)
    rows = np.array([item[2] for item in items], np.int64)
    return torch.from_numpy(pixels), torch.from_numpy(labels), torch.from_numpy(rows)


def _quiet_worker(_worker: int) -> None:
    # Loader processes share the cores with the training process; OpenCV's own threads would fight it.
    cv2.setNumThreads(0)
