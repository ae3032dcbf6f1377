"""From stored pixels to batches: the same images in the same order whatever the number of workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

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
Position = tuple[int, int, int]
Sampling = Literal["shuffle", "class_balanced"]


class FilmDataset(TorchDataset[tuple[np.ndarray, int, int]]):
    """Films of some rows of a dataset, at the network's size, augmented if asked.

    Args:
        dataset: The opened dataset.
        rows: int64, row numbers; item i is row ``rows[i]``.
        image_size: Edge of the network's input in pixels, at most the dataset's.
        augment: The dials; None for none.
        seed: Of the augmentation; a film's transform follows from (seed, epoch, row) alone, and from how often the
            epoch has had the film already.
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

    def __getitem__(self, item: Position) -> tuple[np.ndarray, int, int]:
        """(pixels uint8 (S, S), label, row) of an (epoch, position, how often the film came before) triple."""
        epoch, position, repeat = item
        row = int(self.rows[position])
        pixels = fit_square(self._pixels[row], self._image_size, "squash")
        if self._augmentation is not None:
            pixels = self._augmentation(pixels, np.random.default_rng([self._seed, epoch, row, repeat]))
        return pixels, int(self._labels[position]), row


class TrainSampler(Sampler[list[Position]]):
    """Batches of a shuffled epoch: every worker draws the same global batches and takes its own part of each.

    The last, incomplete global batch is left out; the next epoch shuffles anew. The order follows from (seed, epoch)
    alone, so a run that is resumed goes on with just the batches it would have had.

    Args:
        labels: int64, (images,): class numbers of the training images.
        batch_size: Global batch size, over all workers.
        rank: This worker's number.
        world_size: Number of workers.
        seed: Of the shuffling.
        sampling: ``shuffle`` has every image once an epoch. ``class_balanced`` has every class equally often: images
            of rare classes come again and again, each time augmented anew, of frequent ones some epochs go without.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        sampling: Sampling = "shuffle",
    ) -> None:
        self._images = len(labels)
        self._classes = [np.flatnonzero(labels == k) for k in np.unique(labels)]
        self._balanced = sampling == "class_balanced"
        self.batch_size = min(batch_size, self._images)
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._images // self.batch_size

    def __iter__(self) -> Iterator[list[Position]]:
        random = np.random.default_rng([self._seed, self.epoch])
        order = self._balanced_order(random) if self._balanced else random.permutation(self._images)
        had: Counter[int] = Counter()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = []
            for position in order[start : start + self.batch_size].tolist():
                batch.append((self.epoch, position, had[position]))
                had[position] += 1
            yield batch[self._rank :: self._world_size]

    def _balanced_order(self, random: np.random.Generator) -> np.ndarray:
        share = -(-self._images // len(self._classes))
        drawn = []
        for positions in self._classes:
            # Whole permutations one after the other: no image comes twice before all have come once.
            rounds = -(-share // len(positions))
            drawn.append(np.concatenate([random.permutation(positions) for _ in range(rounds)])[:share])
        return random.permutation(np.concatenate(drawn))[: self._images]


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
    return _FilmLoader(
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
        pixels, labels, rows = _collate([films[0, position, 0] for position in positions[start : start + batch_size]])
        yield pixels, torch.from_numpy(labels), torch.from_numpy(rows)


def to_input(images_uint8: Tensor) -> Tensor:
    """Network input of 8-bit luminance: float32 in -1..1 (mean 0.5, standard deviation 0.5), same shape."""
    return images_uint8.float().div_(127.5).sub_(1.0)


class _FilmLoader(DataLoader):
    """A DataLoader whose processes send the pixels through shared memory and the few numbers with the message.

    Each tensor that a process shares costs the training process a connection to it, about as long as the pixels of
    ten films take.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for pixels, labels, rows in super().__iter__():
            yield pixels, torch.from_numpy(labels), torch.from_numpy(rows)


def _collate(items: list[tuple[np.ndarray, int, int]]) -> tuple[Tensor, np.ndarray, np.ndarray]:
    pixels = np.stack([item[0] for item in items])[:, None]
    labels, rows = (np.array([item[k] for item in items], np.int64) for k in (1, 2))
    return torch.from_numpy(pixels), labels, rows


def _quiet_worker(_worker: int) -> None:
    # Loader processes share the cores with the training process; OpenCV's own threads would fight it.
    cv2.setNumThreads(0)
