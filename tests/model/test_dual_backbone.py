"""The network's shape, sizes and the property that its heatmaps rest on."""

from __future__ import annotations

import pytest
import torch

from cxr_ray.model.dual_backbone import NetworkConfig, build_network


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return build_network(NetworkConfig(backbones="tiny"), 5).eval()


@pytest.fixture(scope="module")
def reference():
    with torch.device("meta"):
        return build_network(NetworkConfig(backbones="reference"), 5).eval()


def test_the_reference_network_has_the_published_backbones(reference):
    # Keras' ResNet50V2 without its top has 23.6 M parameters and Xception 20.9 M, three-channel stems included.
    assert parameters(reference.residual) == 23_494_080
    assert parameters(reference.xception) == 20_806_376
    assert 53.7e6 < parameters(reference) < 53.8e6


def test_the_tiny_network_is_the_same_shape_at_about_two_million_parameters(tiny, reference):
    assert 1.5e6 < parameters(tiny) < 2.2e6
    assert [type(module) for module in tiny.blocks] == [type(module) for module in reference.blocks]
    assert len(tiny.blocks) == 4


def test_one_block_projects_and_three_keep_their_input(tiny):
    kinds = [isinstance(block.shortcut, torch.nn.Identity) for block in tiny.blocks]
    assert kinds == [False, True, True, True]


@pytest.mark.parametrize("size", [224, 299, 300])
def test_reference_features_lie_on_the_published_grids(reference, size):
    features = reference.features(torch.zeros(1, 1, size, size, device="meta"))
    assert features.shape == (1, 1024, *[{224: 7, 299: 10, 300: 10}[size]] * 2)


def test_every_square_size_from_64_up_works_although_the_branches_grids_differ(reference):
    differing = 0
    for size in range(64, 330):
        images = torch.zeros(1, 1, size, size, device="meta")
        residual = reference.residual.forward_features(images).shape[-1]
        differing += residual != reference.xception.forward_features(images).shape[-1]
        assert reference.features(images).shape[-1] == residual
    assert differing > 20


@pytest.mark.parametrize("size", [64, 70, 97, 112])
def test_tiny_answers_at_odd_sizes_too(tiny, size):
    with torch.no_grad():
        assert tiny(torch.zeros(2, 1, size, size)).isfinite().all()


@pytest.mark.parametrize("classes", [2, 3, 14])
def test_any_number_of_classes_from_two_up_works(classes):
    network = build_network(NetworkConfig(backbones="tiny"), classes).eval()
    assert network(torch.zeros(1, 1, 64, 64)).shape == (1, classes)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="2 or more"):
        build_network(NetworkConfig(backbones="tiny"), 1)


def test_logits_are_float32_under_bf16_autocast(tiny):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = tiny(torch.randn(2, 1, 64, 64))
    assert logits.dtype == torch.float32


def test_every_parameter_receives_a_gradient():
    network = build_network(NetworkConfig(backbones="tiny", dropout=0), 5)
    network(torch.randn(4, 1, 64, 64)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
