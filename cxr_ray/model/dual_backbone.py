"""The dual-backbone network: two feature extractors side by side, one convolutional and three identity blocks."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cxr_ray.model.backbones import build_backbones

# Channels (inside, out) of the blocks on top of the concatenated features.
_HEAD_CHANNELS = {"reference": (256, 1024), "tiny": (64, 256)}


class NetworkConfig(BaseModel):
    """Which network, and how much of its features is dropped.

    Attributes:
        backbones: ``reference`` (ResNet50V2 and Xception, 53.8 M parameters) or ``tiny`` (about 2 M).
        dropout: Share of pooled features dropped in training, 0 to below 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbones: Literal["reference", "tiny"] = "reference"
    dropout: float = Field(default=0.3, ge=0, lt=1)


class Bottleneck(nn.Module):
    """ResNet bottleneck block (He et al. 2015, arXiv 1512.03385); projects the shortcut where widths differ.

    Its residual starts at nothing (Goyal et al. 2017, arXiv 1706.02677): training starts faster, and the blocks
    spread evidence over the map only where that helps, so heatmaps stay with the finding.
    """

    def __init__(self, channels_in: int, channels_inside: int, channels_out: int) -> None:
        super().__init__()
        self.reduce = _conv_norm(channels_in, channels_inside, 1)
        self.spatial = _conv_norm(channels_inside, channels_inside, 3)
        self.expand = _conv_norm(channels_inside, channels_out, 1, scale=0.0)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else _conv_norm(channels_in, channels_out, 1)

    def forward(self, features_nchw: Tensor) -> Tensor:
        inside = F.relu(self.reduce(features_nchw))
        inside = F.relu(self.spatial(inside))
        return F.relu(self.expand(inside) + self.shortcut(features_nchw))


class DualBackbone(nn.Module):
    """Five-class (or any-class) radiograph classifier after the published dual-backbone design.

    ``forward`` is ``classify(features(images))``. Pooling and the last layer are linear in the feature map,
    so a class map at that layer sums, plus the bias, to the class's logit (Zhou et al. 2016, arXiv
    1512.04150); `cxr_ray.explanation` relies on it.

    Args:
        config: The network's configuration.
        classes: Number of classes, 2 or more.
    """

    def __init__(self, config: NetworkConfig, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"{classes} classes; a classifier needs 2 or more")
        self.residual, self.xception, channels = build_backbones(config.backbones)
        inside, out = _HEAD_CHANNELS[config.backbones]
        self.blocks = nn.Sequential(
            Bottleneck(channels, inside, out), *(Bottleneck(out, inside, out) for _ in range(3))
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(out, classes)

    @property
    def feature_count(self) -> int:
        """Channels of the last feature map."""
        return self.classifier.in_features

    def features(self, images_nchw: Tensor) -> Tensor:
        """The last feature map.

        Args:
            images_nchw: float, (N, 1, S, S), S from 64 up, values about -1 to 1.

        Returns:
            float, (N, `feature_count`, h, w), h and w about S/32, all values 0 or more.
        """
        residual = self.residual.forward_features(images_nchw)
        xception = self.xception.forward_features(images_nchw)
        if xception.shape[-2:] != residual.shape[-2:]:
            # Xception's unpadded stem loses a row at some sizes; the finer grid is resampled, never cropped,
            # so that both branches keep describing the whole film.
            xception = F.interpolate(xception, residual.shape[-2:], mode="bilinear", align_corners=False)
        return self.blocks(torch.cat((residual, xception), dim=1))

    def classify(self, features_nchw: Tensor) -> Tensor:
        """Logits (N, classes) of a feature map (N, `feature_count`, h, w)."""
        return self.classify_pooled(self.pool(features_nchw))

    def pool(self, features_nchw: Tensor) -> Tensor:
        """Features averaged over the grid: float32, (N, `feature_count`)."""
        # In float32 whatever the rest runs in: bf16 keeps 8 bits, too few to rank near-equal classes.
        return features_nchw.float().mean(dim=(2, 3))

    def classify_pooled(self, pooled_nc: Tensor) -> Tensor:
        """Logits (N, classes), float32, of pooled features (N, `feature_count`)."""
        with torch.autocast(pooled_nc.device.type, enabled=False):
            return self.classifier(self.dropout(pooled_nc))

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Logits, float32, (N, classes)."""
        return self.classify(self.features(images_nchw))


def build_network(config: NetworkConfig, classes: int) -> DualBackbone:
    """Build an untrained network with He initialisation of the new blocks."""
    return DualBackbone(config, classes)


def _conv_norm(channels_in: int, channels_out: int, kernel: int, scale: float = 1.0) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    norm = nn.BatchNorm2d(channels_out)
    nn.init.constant_(norm.weight, scale)
    return nn.Sequential(convolution, norm)
