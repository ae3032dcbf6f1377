"""The two feature extractors, built from timm, with one-channel stems."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

# timm is imported where it is needed: it takes longer than all a leaderboard does.
if TYPE_CHECKING:
    from timm.models.resnetv2 import ResNetV2


def build_backbones(preset: str) -> tuple[Any, Any, int]:
    """Build the residual and the Xception branch.

    Args:
        preset: ``reference`` (timm ``resnetv2_50``, the Keras ResNet50V2, and ``legacy_xception``, the Keras
            Xception: 23.5 M and 20.8 M parameters) or ``tiny`` (the same two designs, narrow and shallow).

    Returns:
        Both modules (timm's, which declare no types) and the number of channels of their features side by
        side. Each module's ``forward_features`` maps float (N, 1, S, S) to (N, C, about S/32, about S/32).
    """
    if preset == "reference":
        import timm

        residual = timm.create_model("resnetv2_50", pretrained=False, in_chans=1, num_classes=0)
        xception = timm.create_model("legacy_xception", pretrained=False, in_chans=1, num_classes=0)
    else:
        residual, xception = _tiny_residual(), _tiny_xception()
    features: tuple[Any, Any] = (residual, xception)
    return *features, sum(branch.num_features for branch in features)


def _tiny_residual() -> ResNetV2:
    from timm.layers.create_conv2d import create_conv2d
    from timm.layers.norm_act import BatchNormAct2d
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2(
        layers=[1, 1, 2, 1],
        channels=(64, 128, 256, 512),
        num_classes=0,
        in_chans=1,
        output_stride=16,
        stem_chs=24,
        norm_layer=BatchNormAct2d,
        conv_layer=create_conv2d,
    )


def _tiny_xception() -> Any:
    from timm.models.xception_aligned import XceptionAligned

    blocks = [
        {"in_chs": 64, "out_chs": 96, "stride": 2},
        {"in_chs": 96, "out_chs": 192, "stride": 2},
        {"in_chs": 192, "out_chs": 192, "stride": 1},
        {"in_chs": 192, "out_chs": (192, 256, 256), "stride": 1},
        {"in_chs": 256, "out_chs": (256, 256, 256), "stride": 1, "no_skip": True, "start_with_relu": False},
    ]
    norm_layer: Any = partial(nn.BatchNorm2d, eps=1e-3)
    xception: Any = XceptionAligned(blocks, num_classes=0, in_chans=1, norm_layer=norm_layer)
    # The stem already reduces to a quarter: stem and first block on the half-size grid took half of this
    # branch's training step on a CPU.
    xception.stem[1].conv.stride = (2, 2)
    return xception
