"""Metrics of a classifier from its logits; the keys are the project's contract.

Small code of our own, checked against scikit-learn and torchmetrics by the tests: importing torchmetrics took
1.6 s in every process that trains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def confusion_matrix(labels_n: Tensor, predicted_n: Tensor, classes: int) -> np.ndarray:
    """int64, (classes, classes): row the reference label, column the prediction."""
    cells = torch.bincount(labels_n * classes + predicted_n, minlength=classes**2)
    return cells.reshape(classes, classes).numpy()


def counts_to_metrics(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Metrics that follow from a confusion matrix alone.

    Args:
        confusion: int, (K, K), row the reference label, column the prediction.
        classes: The K class names.

    Returns:
        ``accuracy``, ``macro_precision``, ``macro_recall``, ``macro_f1``, and ``precision/<class>``,
        ``recall/<class>``, ``f1/<class>``. A class without images has recall NaN and is left out of the
        macro averages; a class never predicted has precision 0.
    """
    true_positive = np.diag(confusion).astype(float)
    actual = confusion.sum(axis=1).astype(float)
    predicted = confusion.sum(axis=0).astype(float)
    present = actual > 0
    recall = np.divide(true_positive, actual, out=np.full_like(actual, np.nan), where=present)
    precision = np.divide(true_positive, predicted, out=np.zeros_like(actual), where=predicted > 0)
    both = actual + predicted
    f1 = np.divide(2 * true_positive, both, out=np.zeros_like(actual), where=both > 0)
    metrics = {
        "accuracy": float(true_positive.sum() / max(1.0, actual.sum())),
        "macro_precision": float(precision[present].mean()) if present.any() else float("nan"),
        "macro_recall": float(recall[present].mean()) if present.any() else float("nan"),
        "macro_f1": float(f1[present].mean()) if present.any() else float("nan"),
    }
    for i, name in enumerate(classes):
        metrics[f"recall/{name}"] = float(recall[i])
        metrics[f"precision/{name}"] = float(precision[i]) if present[i] else float("nan")
        metrics[f"f1/{name}"] = float(f1[i]) if present[i] else float("nan")
    return metrics


def recall_at_precision(probabilities_nk: Tensor, labels_n: Tensor, k: int, floor: float) -> float:
    """The highest recall of class `k` over all thresholds on its probability whose precision is `floor` or more.

    Args:
        probabilities_nk: float, (N, K).
        labels_n: int64, (N,).
        k: The class's number.
        floor: Precision to keep, 0 to 1.

    Returns:
        0 to 1; 0 where no threshold keeps the precision, NaN where the class has no images.
    """
    positive = labels_n == k
    if not positive.any():
        return float("nan")
    scores, order = probabilities_nk[:, k].sort(descending=True)
    true_positive = positive[order].cumsum(0)
    called = torch.arange(1, len(scores) + 1)
    # A threshold takes all of equal scores or none.
    last_of_equals = torch.cat((scores[1:] != scores[:-1], torch.tensor([True])))
    kept = last_of_equals & (true_positive >= floor * called)
    return float(true_positive[kept].max() / positive.sum()) if kept.any() else 0.0


def classification_metrics(
    logits_nk: Tensor, labels_n: Tensor, classes: Sequence[str], *, precision_floor: float
) -> dict[str, float]:
    """All metrics of one pass over a split.

    Args:
        logits_nk: float32, (N, K).
        labels_n: int64, (N,).
        classes: The K class names.
        precision_floor: The precision that ``recall_at_precision/<class>`` is measured at.

    Returns:
        `counts_to_metrics` of the arg-max decision, ``loss`` (plain cross-entropy, comparable over trials
        with other training losses) and ``recall_at_precision/<class>``.
    """
    metrics = {"loss": float(torch.nn.functional.cross_entropy(logits_nk, labels_n))}
    confusion = confusion_matrix(labels_n, logits_nk.argmax(dim=1), len(classes))
    metrics |= counts_to_metrics(confusion, classes)
    probabilities = logits_nk.softmax(dim=1)
    for k, name in enumerate(classes):
        metrics[f"recall_at_precision/{name}"] = recall_at_precision(probabilities, labels_n, k, precision_floor)
    return metrics
