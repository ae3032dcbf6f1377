"""One suite over the losses: normalisation, emphasis, and the share of a worker in the global batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cxr_ray.errors import ConfigError
from cxr_ray.model.losses import LossConfig, build_loss, image_weights

CLASSES = ("normal", "covid", "tuberculosis")
COUNTS = (60, 30, 10)
KINDS = ("cross_entropy", "focal")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (64,), generator=generator)
    return torch.randn(64, 3, generator=generator), labels


def mean_weight(weights: torch.Tensor) -> float:
    counts = torch.tensor(COUNTS, dtype=torch.float)
    return float((weights * counts).sum() / counts.sum())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_weights": "auto"},
        {"class_weights": {"covid": 4.0}},
        {"recall_emphasis": {"covid": 9.0}},
        {"class_weights": "auto", "recall_emphasis": {"covid": 3.0}},
    ],
)
def test_weights_have_mean_one_over_the_training_images(options):
    assert mean_weight(image_weights(LossConfig(**options), CLASSES, COUNTS)) == pytest.approx(1)


def test_auto_weights_give_every_class_the_same_total():
    weights = image_weights(LossConfig(class_weights="auto"), CLASSES, COUNTS)
    totals = weights * torch.tensor(COUNTS)
    torch.testing.assert_close(totals, totals[:1].expand(3))


def test_emphasis_multiplies_what_class_weights_gave():
    auto = image_weights(LossConfig(class_weights="auto"), CLASSES, COUNTS)
    both = image_weights(LossConfig(class_weights="auto", recall_emphasis={"covid": 3}), CLASSES, COUNTS)
    ratio = both / auto
    assert float(ratio[1] / ratio[0]) == pytest.approx(3)
    assert float(ratio[2] / ratio[0]) == pytest.approx(1)


def test_plain_cross_entropy_is_pytorchs(batch):
    logits, labels = batch
    loss = build_loss(LossConfig(), CLASSES, COUNTS)
    torch.testing.assert_close(loss(logits, labels), F.cross_entropy(logits, labels))


def test_focal_with_gamma_zero_is_cross_entropy(batch):
    focal = build_loss(LossConfig(kind="focal", focal_gamma=0, label_smoothing=0.1), CLASSES, COUNTS)
    plain = build_loss(LossConfig(label_smoothing=0.1), CLASSES, COUNTS)
    torch.testing.assert_close(focal(*batch), plain(*batch))


def test_focal_follows_its_formula(batch):
    logits, labels = batch
    probability = logits.softmax(1)[torch.arange(64), labels]
    expected = (-((1 - probability) ** 2) * probability.log()).mean()
    torch.testing.assert_close(build_loss(LossConfig(kind="focal"), CLASSES, COUNTS)(logits, labels), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_global_batch_add_up_to_the_whole(batch, kind):
    logits, labels = batch
    loss = build_loss(LossConfig(kind=kind, recall_emphasis={"covid": 3}), CLASSES, COUNTS)
    parts = [loss(logits[part::3], labels[part::3], global_batch=64) for part in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(), loss(logits, labels))


@pytest.mark.parametrize("kind", KINDS)
def test_emphasis_moves_the_optimum_towards_the_emphasised_class(kind):
    """One constant prediction for a mixed population: its optimum shifts with the weight of the class."""
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    shares = []
    for emphasis in (1.0, 3.0, 9.0):
        loss = build_loss(LossConfig(kind=kind, recall_emphasis={"covid": emphasis}), CLASSES, COUNTS)
        logits = torch.zeros(1, 3, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

        def closure(loss=loss, logits=logits, optimizer=optimizer):
            optimizer.zero_grad()
            value = loss(logits.expand(100, 3), labels)
            value.backward()
            return value

        optimizer.step(closure)
        shares.append(float(logits.detach().softmax(1)[0, 1]))
    assert shares[0] < shares[1] < shares[2]
    if kind == "cross_entropy":  # the optimum is the weighted share
        assert shares[1] == pytest.approx(90 / 160, abs=1e-3)


def test_a_class_the_dataset_does_not_have_is_named():
    with pytest.raises(ConfigError, match=r"loss\.recall_emphasis: 'covdi' is not a class .*did you mean 'covid'"):
        build_loss(LossConfig(recall_emphasis={"covdi": 2}), CLASSES, COUNTS)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_weights_that_are_no_weights_are_refused(weight):
    with pytest.raises(ValueError, match=r"must be above 0|a finite number"):
        LossConfig(recall_emphasis={"covid": weight})
