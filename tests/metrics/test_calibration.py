"""Calibration repairs probabilities that a recall-weighted loss bent, and keeps the trained decision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cxr_ray.metrics.calibration import fit_calibration, identity_calibration, stratified_half


@pytest.fixture
def weighted():
    """Logits of a perfect classifier that saw class 1 three times as often as it is: log-odds off by log 3."""
    random = np.random.default_rng(0)
    posterior = random.dirichlet([2.0, 1.0, 1.5], 20_000)
    labels = np.array([random.choice(3, p=row) for row in posterior])
    logits = 1.7 * (np.log(posterior) + np.log([1.0, 3.0, 1.0]))
    return logits.astype(np.float32), labels, posterior


def test_temperature_and_bias_recover_the_true_posterior(weighted):
    logits, labels, posterior = weighted
    calibration = fit_calibration(logits, labels)
    fitted = calibration.probabilities(torch.from_numpy(logits)).numpy()
    assert calibration.temperature == pytest.approx(1.7, rel=0.05)
    assert np.abs(fitted - posterior).mean() < 0.01
    assert fitted.mean(0) == pytest.approx(np.bincount(labels) / len(labels), abs=0.005)


def test_thresholds_keep_the_decision_the_network_was_trained_to_make(weighted):
    logits, labels, _ = weighted
    calibration = fit_calibration(logits, labels)
    probabilities = calibration.probabilities(torch.from_numpy(logits)).numpy()
    decided = (probabilities / calibration.decision_thresholds()).argmax(1)
    assert (decided == logits.argmax(1)).mean() > 0.9999  # ties in float32 aside


def test_without_images_probabilities_are_the_plain_softmax():
    calibration = fit_calibration(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
    assert calibration == identity_calibration(3)


def test_few_images_pull_towards_the_identity():
    logits = np.array([[9.0, 0.0], [0.0, 9.0]], np.float32)
    calibration = fit_calibration(logits, np.array([0, 1]))
    assert 0.2 < calibration.temperature < 1.5
    assert calibration.bias == pytest.approx([0, 0], abs=1e-3)


def test_halves_keep_groups_together_and_halve_every_class():
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 40, 120)
    labels = generator.choice(3, 120, p=[0.7, 0.2, 0.1])
    half = stratified_half(groups, labels)
    assert all(len(set(half[groups == group])) == 1 for group in set(groups))
    for label in range(3):
        assert abs(half[labels == label].sum() - (labels == label).sum() / 2) <= 2


def test_without_groups_halves_differ_by_one_image_a_class_at_most():
    labels = np.array([0] * 12 + [1] * 7 + [2])
    half = stratified_half(np.arange(20), labels)
    assert [int(half[labels == label].sum()) for label in range(3)] == [6, 4, 1]
