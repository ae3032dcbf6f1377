"""Heatmaps that can be trusted: exact by construction, and pointing at the finding where it is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam

from cxr_ray.bundle import load_bundle
from cxr_ray.data.phantom import draw_phantom
from cxr_ray.data.phantom_dataset import make_phantoms
from cxr_ray.explanation.cam import class_maps
from cxr_ray.explanation.checks import cells_with, points_at
from cxr_ray.explanation.overlay import heatmap, overlay
from cxr_ray.leaderboard.promote import promote
from cxr_ray.model.dual_backbone import NetworkConfig, build_network
from cxr_ray.training.launch import train


def network_of(backbones):
    torch.manual_seed(0)
    network = build_network(NetworkConfig(backbones=backbones), 5)
    with torch.no_grad():
        # Statistics of real activations: a fresh network's features would all but vanish.
        network.train()(torch.randn(4, 1, 96, 96))
    return network.eval()


@pytest.mark.parametrize("backbones", ["tiny", "reference"])
def test_the_class_map_sums_with_the_bias_to_the_logit(backbones):
    network = network_of(backbones)
    with torch.no_grad():
        features = network.features(torch.randn(2, 1, 96, 96))
        logits = network.classify(features)
    for name in range(5):
        maps = class_maps(network, features, torch.tensor([name, name]))
        torch.testing.assert_close(
            maps.sum(dim=(1, 2)) + network.classifier.bias[name], logits[:, name], atol=1e-4, rtol=1e-4
        )


def test_the_map_is_captums_grad_cam_of_the_whole_network():
    network = network_of("tiny")
    images = torch.randn(2, 1, 96, 96, requires_grad=True)
    targets = torch.tensor([1, 3])
    whole = LayerGradCam(network, network.blocks).attribute(images, target=targets)
    assert isinstance(whole, torch.Tensor)
    ours = class_maps(network, network.features(images), targets)
    torch.testing.assert_close(ours, whole.squeeze(1).detach(), atol=1e-5, rtol=1e-4)


def test_a_network_in_training_mode_is_not_explained():
    network = network_of("tiny").train()
    with pytest.raises(ValueError, match="eval"):
        class_maps(network, torch.zeros(1, 256, 3, 3), torch.tensor([0]))


def test_heatmaps_show_only_evidence_for_the_class():
    attribution = np.array([[-5.0, 0.0], [1.0, 2.0]])
    heat = heatmap(attribution, 64)
    assert heat.max() == 1
    assert heat[:16, :16].max() < 0.05
    assert heatmap(-np.ones((3, 3)), 64).max() == 0
    film = np.full((64, 64), 90, np.uint8)
    painted = overlay(film, attribution)
    assert painted.shape == (64, 64, 3)
    assert (painted[:8, :8] == 90).all() and (painted[-8:, -8:] != 90).any()


def test_cells_and_pointing_follow_the_grid():
    finding = np.zeros((64, 64), bool)
    finding[40, 10] = True
    assert cells_with(finding, (4, 4)).sum() == 1
    attribution = np.zeros((4, 4))
    attribution[2, 0] = 1
    assert points_at(attribution, finding)
    assert not points_at(np.eye(4), finding)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny network after a minute on phantoms, and the phantoms."""
    folder = tmp_path_factory.mktemp("pointing")
    dataset = make_phantoms(folder / "dataset", images=300, size=112, quiet=True)
    options = [
        "training.epochs=14",
        "training.batch_size=16",
        "training.patience=null",
        "augment.geometry=0.2",
        "augment.exposure=0.2",
    ]
    run = train("tiny", dataset, workers=0, set_options=options, storage=folder, name="run", quiet=True)
    promote(str(run.folder), out=folder / "bundle")
    return load_bundle(folder / "bundle"), dataset


def test_on_phantoms_the_heatmaps_peak_falls_on_the_finding_more_often_than_chance(trained):
    """Chance: a random cell of those that touch the lungs, where a network might look without having learnt."""
    bundle, dataset = trained
    labels, paths = dataset.column("label"), dataset.column("path")
    rows = [row for split in ("val", "calibration", "test") for row in dataset.rows(split) if labels[row] != "normal"]
    films = np.stack([dataset.pixels[row] for row in rows])
    explanations = bundle.explain_prepared(films, [labels[row] for row in rows])
    hits, chances = [], []
    for row, explanation in zip(rows, explanations, strict=True):
        finding = dataset.masks[row] > 0
        lungs = draw_phantom(labels[row], seed=0, index=int(paths[row][-5:]), size=112).lung_mask
        grid = explanation.attribution.shape
        lung_cells, finding_cells = cells_with(lungs, grid), cells_with(finding, grid)
        hits.append(points_at(explanation.attribution, finding))
        chances.append((finding_cells & lung_cells).sum() / lung_cells.sum())
    chance = np.array(chances)
    spread = np.sqrt((chance * (1 - chance)).sum())
    assert sum(hits) > chance.sum() + 3 * spread, f"{sum(hits)} hits of {len(hits)}, {chance.sum():.1f} by chance"
