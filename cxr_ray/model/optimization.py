"""AdamW with warm-up and cosine decay."""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn


class OptimizationConfig(BaseModel):
    """How the weights move.

    Attributes:
        learning_rate: Peak, reached at the end of the warm-up.
        weight_decay: Decoupled (Loshchilov & Hutter 2019, arXiv 1711.05101); not on norms and biases.
        warmup_epochs: Linear rise from 0, in epochs, fractions allowed.
        clip_norm: Largest gradient norm; longer gradients are scaled down.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup_epochs: float = Field(default=1.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)


def build_optimizer(config: OptimizationConfig, network: nn.Module) -> torch.optim.AdamW:
    """AdamW over two groups: matrices and kernels with weight decay, everything else without."""
    decayed = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def learning_rate_at(config: OptimizationConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine to 1 % of the peak.

    Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts.

    Args:
        config: The peak and the warm-up.
        step: Counted from 0 over the whole run.
        steps_per_epoch: Steps in an epoch.
        epochs: Epochs the schedule spans.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1.0, epochs * steps_per_epoch - warmup)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
