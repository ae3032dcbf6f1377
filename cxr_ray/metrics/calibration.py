"""Bias-corrected temperature scaling: from a recall-weighted network's logits to honest probabilities."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

# Pulls temperature and biases to 1 and 0 where a split is too small to tell; worth about one image each.
_PRIOR = 0.5


class Calibration(BaseModel):
    """How logits become probabilities: ``softmax(logits / temperature + bias)``.

    Attributes:
        temperature: Above 0; above 1 for an over-confident network.
        bias: One a class, mean 0.
        images: How many images it was fitted on; 0 for the identity.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float
    bias: list[float]
    images: int

    def probabilities(self, logits_nk: Tensor) -> Tensor:
        """float32, (N, K), rows sum to 1."""
        bias = torch.tensor(self.bias, dtype=torch.float32, device=logits_nk.device)
        return (logits_nk.float() / self.temperature + bias).softmax(dim=1)

    def decision_thresholds(self) -> list[float]:
        """Thresholds that keep the trained decision on calibrated probabilities.

        The network decides by its largest logit. With ``p = softmax(z / T + b)`` that is the class with the
        largest ``p_k / exp(b_k)``, so ``t_k = exp(b_k)``, scaled to a largest value of 1, are the thresholds
        whose ratio decides.
        """
        thresholds = np.exp(np.array(self.bias))
        return [float(value) for value in thresholds / thresholds.max()]


def identity_calibration(classes: int) -> Calibration:
    """Plain softmax."""
    return Calibration(temperature=1.0, bias=[0.0] * classes, images=0)


def fit_calibration(logits_nk: np.ndarray, labels_n: np.ndarray) -> Calibration:
    """Fit temperature and class biases by maximum likelihood (Guo et al. 2017, arXiv 1706.04599; Alexandari
    et al. 2020, arXiv 1901.06852, for the biases), with a weak pull to the identity.

    Args:
        logits_nk: float32, (N, K).
        labels_n: int64, (N,).

    Returns:
        The identity if there are no images.
    """
    images, classes = logits_nk.shape
    if images == 0:
        return identity_calibration(classes)
    logits = torch.from_numpy(np.asarray(logits_nk, np.float64))
    labels = torch.from_numpy(np.asarray(labels_n, np.int64))
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature, bias], max_iter=200, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        nll = F.cross_entropy(logits / log_temperature.exp() + bias, labels, reduction="sum")
        loss = (nll + _PRIOR * (log_temperature.square().sum() + bias.square().sum())) / images
        loss.backward()
        return loss

    optimizer.step(objective)
    centred = (bias - bias.mean()).detach()
    return Calibration(
        temperature=log_temperature.exp().item(), bias=[float(value) for value in centred], images=images
    )


def stratified_half(groups_n: np.ndarray, labels_n: np.ndarray) -> np.ndarray:
    """Which images belong to the first half: every class about halved, groups kept whole.

    Groups are dealt largest first, each to the half that holds fewer of its classes; the first half where both
    hold as many. Deterministic in the order of the images.

    Args:
        groups_n: int64, (N,); equal for images that belong together (one patient, one duplicate group).
        labels_n: int64, (N,), class numbers.

    Returns:
        bool, (N,).
    """
    first = np.zeros(len(groups_n), bool)
    lead = Counter[int]()  # by class: images in the first half less images in the second
    members: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(groups_n.tolist()):
        members[group].append(i)
    for images in sorted(members.values(), key=len, reverse=True):
        classes = Counter(labels_n[images].tolist())
        takes = sum(count * lead[label] for label, count in classes.items()) <= 0
        first[images] = takes
        for label, count in classes.items():
            lead[label] += count if takes else -count
    return first
