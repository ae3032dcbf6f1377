"""Metrics against scikit-learn, and what they say at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from cxr_ray.metrics.classification import classification_metrics, counts_to_metrics, recall_at_precision

CLASSES = ("a", "b", "c")


@pytest.fixture
def answers():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (300,), generator=generator)
    logits = torch.randn(300, 3, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, 3)
    return logits, labels


def test_metrics_agree_with_scikit_learn(answers):
    logits, labels = answers
    ours = classification_metrics(logits, labels, CLASSES, precision_floor=0.8)
    y, predicted = labels.numpy(), logits.argmax(1).numpy()
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(y, predicted, average="macro"))
    assert ours["macro_precision"] == pytest.approx(sk.precision_score(y, predicted, average="macro"))
    assert ours["loss"] == pytest.approx(sk.log_loss(y, logits.softmax(1).numpy()), rel=1e-5)
    for k, name in enumerate(CLASSES):
        assert ours[f"recall/{name}"] == pytest.approx(sk.recall_score(y == k, predicted == k))
        precision, recall, _ = sk.precision_recall_curve(y == k, logits.softmax(1)[:, k].numpy())
        assert ours[f"recall_at_precision/{name}"] == pytest.approx(recall[precision >= 0.8].max())


@pytest.mark.parametrize("decimals", [1, 6])
@pytest.mark.parametrize("floor", [0.3, 0.6, 0.8, 0.95, 1.0])
def test_recall_at_precision_agrees_with_torchmetrics_ties_included(answers, floor, decimals):
    from torchmetrics.functional.classification import binary_recall_at_fixed_precision

    logits, labels = answers
    probabilities = logits.softmax(1).round(decimals=decimals)
    for k in range(3):
        theirs, _ = binary_recall_at_fixed_precision(probabilities[:, k], (labels == k).long(), floor)
        assert recall_at_precision(probabilities, labels, k, floor) == pytest.approx(float(theirs))


def test_a_precision_nobody_reaches_gives_recall_zero():
    logits = torch.tensor([[0.0, 2.0, 0.0], [0.0, 1.0, 0.0]])
    ours = classification_metrics(logits, torch.tensor([0, 1]), CLASSES, precision_floor=0.9)
    assert ours["recall_at_precision/b"] == 0


def test_recall_at_precision_of_a_class_without_images_is_not_a_number():
    ours = classification_metrics(torch.zeros(2, 3), torch.tensor([0, 1]), CLASSES, precision_floor=0.9)
    assert np.isnan(ours["recall_at_precision/c"])


def test_a_class_without_images_is_left_out_of_the_macro_average():
    metrics = counts_to_metrics(np.array([[8, 2, 0], [0, 10, 0], [0, 0, 0]]), CLASSES)
    assert np.isnan(metrics["recall/c"])
    assert metrics["macro_recall"] == pytest.approx(0.9)


def test_a_class_never_predicted_has_precision_zero():
    metrics = counts_to_metrics(np.array([[10, 0, 0], [0, 10, 0], [5, 5, 0]]), CLASSES)
    assert metrics["precision/c"] == metrics["recall/c"] == metrics["f1/c"] == 0
