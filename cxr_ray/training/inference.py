"""Passes over a split without learning, shared by all workers: every image once, nothing padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cxr_ray.data.loader import FilmDataset, eval_batches, to_input
from cxr_ray.data.store import Dataset
from cxr_ray.errors import CxrError
from cxr_ray.experiment import TrainingConfig
from cxr_ray.model.dual_backbone import DualBackbone
from cxr_ray.training.run_folder import Evidence

# Enough for stable class means and a 1,024-wide covariance; a pass over all of a large set would cost as
# much as an epoch's forward every time the score improves.
FEATURE_IMAGES = 4096


@dataclass(frozen=True)
class Workers:
    """This worker's place among those that train together."""

    rank: int
    count: int

    @classmethod
    def current(cls) -> Workers:
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls(0, 1)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all workers, on all workers."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    def from_first(self, value: int) -> int:
        """The first worker's number, on all workers."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values)
        return values[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A part that may fail on some workers only: an error of ours on one is raised on all, when all are done.

        A worker that left alone would keep the others waiting for it, without end.
        """
        error: CxrError | None = None
        try:
            yield
        except CxrError as own:
            error = own
        if self.count > 1:
            errors: list[CxrError | None] = [None] * self.count
            dist.all_gather_object(errors, error)
            error = next((other for other in errors if other is not None), None)
        if error is not None:
            raise error

    def average_buffers(self, network: nn.Module) -> None:
        """Give all workers the same batch-normalisation statistics: the mean of theirs."""
        if self.count == 1:
            return
        for buffer in network.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(self.count)

    def gather(self, part: np.ndarray, total: int) -> np.ndarray:
        """Put together what every worker computed for items ``rank::count`` of `total`, on all workers."""
        if self.count == 1:
            return part
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, part)
        whole = np.empty((total, *part.shape[1:]), part.dtype)
        for rank, values in enumerate(parts):
            whole[rank :: self.count] = values
        return whole


@dataclass(frozen=True)
class Inference:
    """A network's answers about a dataset, and all that a pass over its images needs.

    Attributes:
        network: Put into eval mode by every pass.
        dataset: The images.
        config: Image size, batch size and memory format.
        device: Where the network lives.
        autocast: Makes the context of reduced precision.
        workers: Who shares the work.
        tick: Called after every batch.
    """

    network: DualBackbone
    dataset: Dataset
    config: TrainingConfig
    device: torch.device
    autocast: Callable[[], Any]
    workers: Workers
    tick: Callable[[], None]

    def logits(self, rows: np.ndarray) -> Tensor:
        """Logits of dataset rows, float32, (rows, K), in order, the same on every worker."""
        parts = [self.network.classify_pooled(pooled).cpu().numpy() for pooled, _ in self._pooled_batches(rows)]
        classes = self.network.classifier.out_features
        part = np.concatenate(parts) if parts else np.zeros((0, classes), np.float32)
        return torch.from_numpy(self.workers.gather(part, len(rows)))

    def evidence(self, rows: np.ndarray, logits: Tensor, epoch: int) -> Evidence:
        """The best epoch's evidence: given logits, and feature statistics measured on training images."""
        train = self.dataset.rows("train")
        if len(train) > FEATURE_IMAGES:
            train = np.sort(np.random.default_rng(0).choice(train, FEATURE_IMAGES, replace=False))
        classes, width = len(self.dataset.classes), self.network.feature_count
        sums = torch.zeros(classes, width, dtype=torch.float64)
        counts = torch.zeros(classes, dtype=torch.float64)
        outer = torch.zeros(width, width, dtype=torch.float64)
        for pooled, labels in self._pooled_batches(train):
            features = pooled.cpu().double()
            sums.index_add_(0, labels, features)
            counts.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64))
            outer += features.T @ features
        for tensor in (sums, counts, outer):
            # gloo reduces on the CPU; with NCCL the sums take the way over the device.
            tensor.copy_(self.workers.sum(tensor.to(self.device) if self.device.type == "cuda" else tensor))
        means = sums / counts.clamp(min=1)[:, None]
        covariance = (outer - (means.T * counts) @ means) / max(1.0, float(counts.sum()) - classes)
        return Evidence(
            epoch=epoch,
            rows=rows,
            logits=logits.numpy(),
            class_means=means.float().numpy(),
            covariance=covariance.float().numpy(),
            counts=counts.long().numpy(),
        )

    def _pooled_batches(self, rows: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """(pooled features float32 (N, C), labels int64 (N,)) of this worker's share of the rows."""
        self.network.eval()
        films = FilmDataset(self.dataset, rows, self.config.image_size)
        memory_format = torch.channels_last if self.config.channels_last else torch.contiguous_format
        with torch.inference_mode():
            for images, labels, _ in eval_batches(films, self.config.batch_size, self.workers.rank, self.workers.count):
                inputs = to_input(images.to(self.device)).contiguous(memory_format=memory_format)
                with self.autocast():
                    features = self.network.features(inputs)
                yield self.network.pool(features), labels
                self.tick()
