"""Losses that can put one class's recall first, normalised so that learning rates stay comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from cxr_ray.errors import ConfigError, did_you_mean


class LossConfig(BaseModel):
    """Which loss, and what it weighs.

    Attributes:
        kind: ``cross_entropy``, or ``focal`` (Lin et al. 2017, arXiv 1708.02002).
        class_weights: ``none``, ``auto`` (inverse class frequency in the training split), or a weight by
            class (1 for classes not named).
        recall_emphasis: Factor on a class's per-image loss, by class: above 1 buys recall with precision.
        label_smoothing: Share of the target spread over all classes, 0 to below 1.
        focal_gamma: Exponent of the focal loss's modulating factor, 0 or more; 0 is cross-entropy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["cross_entropy", "focal"] = "cross_entropy"
    class_weights: Literal["none", "auto"] | dict[str, float] = "none"
    recall_emphasis: dict[str, float] = Field(default_factory=dict)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    focal_gamma: float = Field(default=2.0, ge=0)

    @field_validator("class_weights", "recall_emphasis")
    @classmethod
    def _positive(cls, value: object) -> object:
        if isinstance(value, dict):
            for name, weight in value.items():
                if weight <= 0:
                    raise ValueError(f"the weight of '{name}' is {weight}; it must be above 0")
        return value


def image_weights(config: LossConfig, classes: Sequence[str], counts: Sequence[int]) -> Tensor:
    """The weight of an image by its class: class weights first, then emphasis, then mean 1 over the images.

    Args:
        config: The loss's configuration.
        classes: Class names in the network's order.
        counts: Training images of every class, each 1 or more.

    Returns:
        float32, (classes,).

    Raises:
        ConfigError: A class that the dataset does not have.
    """
    numbers = torch.tensor(list(counts), dtype=torch.float64)
    weights = torch.ones(len(classes), dtype=torch.float64)
    if config.class_weights == "auto":
        weights = numbers.sum() / (len(classes) * numbers)
    elif isinstance(config.class_weights, Mapping):
        weights *= _by_class(config.class_weights, classes, "loss.class_weights")
    weights *= _by_class(config.recall_emphasis, classes, "loss.recall_emphasis")
    return (weights * numbers.sum() / (weights * numbers).sum()).float()


class ClassificationLoss(nn.Module):
    """Mean over the global batch of ``w_i * loss_i``.

    Args:
        config: The loss's configuration.
        weights: float32, (classes,), from `image_weights`.
    """

    weights: Tensor

    def __init__(self, config: LossConfig, weights: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("weights", weights)

    def forward(self, logits_nk: Tensor, labels_n: Tensor, global_batch: int | None = None) -> Tensor:
        """Scalar loss.

        Args:
            logits_nk: float, (N, classes).
            labels_n: int64, (N,).
            global_batch: Images of this step over all workers, by default N: every worker divides by the
                same number, so that the sum over workers is the loss of the whole batch.
        """
        logits = logits_nk.float()
        per_image = F.cross_entropy(logits, labels_n, reduction="none", label_smoothing=self.config.label_smoothing)
        if self.config.kind == "focal":
            # The factor uses the probability of the true class alone, whatever the smoothing.
            true_probability = logits.softmax(dim=1).gather(1, labels_n[:, None]).squeeze(1)
            per_image = per_image * (1 - true_probability) ** self.config.focal_gamma
        return (per_image * self.weights[labels_n]).sum() / (global_batch or len(labels_n))


def build_loss(config: LossConfig, classes: Sequence[str], counts: Sequence[int]) -> ClassificationLoss:
    """Build the loss for a dataset's classes; see `image_weights`."""
    return ClassificationLoss(config, image_weights(config, classes, counts))


def _by_class(weights: Mapping[str, float], classes: Sequence[str], key: str) -> Tensor:
    for name in weights:
        if name not in classes:
            raise ConfigError(
                f"'{name}' is not a class of the dataset{did_you_mean(name, classes)}; it has {', '.join(classes)}",
                where=key,
            )
    return torch.tensor([weights.get(name, 1.0) for name in classes], dtype=torch.float64)
