"""Grad-CAM at the last feature map, through Captum, re-running only the head."""

from __future__ import annotations

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from cxr_ray.model.dual_backbone import DualBackbone


class _Head(nn.Module):
    """From the last feature map to the logits, with a layer that Captum can hook."""

    def __init__(self, network: DualBackbone) -> None:
        super().__init__()
        self.last_features = nn.Identity()
        self._network = network

    def forward(self, features_nchw: Tensor) -> Tensor:
        return self._network.classify(self.last_features(features_nchw))


def class_maps(network: DualBackbone, features_nchw: Tensor, classes_n: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) of one class an image, before the ReLU.

    For this network, whose head pools and is linear, the map is the class activation map of Zhou et al.
    2016 divided by the grid's size: its sum, plus the classifier's bias, is the class's logit.

    Args:
        network: In eval mode (dropout would make the map a random one).
        features_nchw: float32, (N, C, h, w), from `DualBackbone.features`.
        classes_n: int64, (N,), the class to explain in every image.

    Returns:
        float32, (N, h, w), in logit units.

    Raises:
        ValueError: The network is in training mode.
    """
    if network.training:
        raise ValueError("the network is in training mode; call network.eval() before explaining")
    head = _Head(network).eval()
    features = features_nchw.detach().float().requires_grad_(True)
    with torch.enable_grad():
        maps = LayerGradCam(head, head.last_features).attribute(features, target=classes_n, relu_attributions=False)
    assert isinstance(maps, Tensor)  # one layer, one map
    return maps.detach().squeeze(1)
