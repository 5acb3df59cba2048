# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The teacher's and the student encoder's network: a timm CNN cut after the last map that is used."""

from collections.abc import Sequence

import timm
from timm.models import PretrainedCfg
from torch import nn

from anomalib_dskd.errors import DskdError

STRIDES = (4, 8, 16)
"""Strides of the maps used where no layers are named: what the paper's ResNet-18 gives as layer1 to layer3."""


def build_backbone(backbone: str, layers: Sequence[str] | None = None) -> nn.Module:
    """Build a timm CNN with fresh weights that returns its maps as a list, finest first.

    Args:
        backbone: Name of a timm model that supports ``features_only``, such as ``"resnet18"``.
        layers: Names of the layers whose maps are returned, as in timm's ``feature_info`` (for ResNets
            ``layer1`` to ``layer4``). Defaults to the maps at strides 4, 8 and 16.

    Returns:
        Network with ``feature_info`` (timm); ``feature_info.channels()`` and ``feature_info.reduction()`` give
        the channels and strides of the maps.

    Raises:
        DskdError: If timm does not know the backbone, it gives no feature maps, or a layer does not exist.
    """
    probe = _create(backbone)
    names, strides = probe.feature_info.module_name(), probe.feature_info.reduction()
    if layers is None:
        layers = [name for name, stride in zip(names, strides, strict=True) if stride in STRIDES]
    unknown = [layer for layer in layers if layer not in names]
    if unknown or not layers or len(set(layers)) != len(layers):
        msg = f"layers={list(layers)!r} does not fit backbone {backbone!r}: choose from {names}, each once."
        raise DskdError(msg)
    network = _create(backbone, out_indices=sorted(probe.feature_info.out_indices[names.index(la)] for la in layers))
    if "blocks" in dict(network.named_children()):
        # timm prunes what follows the last map, except in its EfficientNet family.
        last = int(network.feature_info.module_name()[-1].split(".")[1])
        network.blocks = network.blocks[: last + 1]
    return network


def pretrained_cfg(backbone: str) -> PretrainedCfg | None:
    """Return what timm knows of a backbone's pre-trained weights, such as the statistics of their normalisation.

    Raises:
        DskdError: If the backbone's name has a tag that timm does not know.
    """
    try:
        return timm.get_pretrained_cfg(backbone)
    except RuntimeError as error:
        known = timm.list_pretrained(f"{backbone.split('.', maxsplit=1)[0]}.*")
        msg = f"backbone={backbone!r}: {error} timm knows {', '.join(known)}."
        raise DskdError(msg) from error


def _create(backbone: str, **kwargs) -> nn.Module:
    try:
        return timm.create_model(backbone, pretrained=False, features_only=True, **kwargs)
    except Exception as error:
        similar = timm.list_models(f"*{backbone}*")[:5]
        msg = (
            f"backbone={backbone!r} is not a timm model that gives feature maps ({error}). "
            f"{'Similar names: ' + ', '.join(similar) + '. ' if similar else ''}"
            "timm.list_models() lists all; a CNN such as resnet18 or tf_efficientnet_lite0 works."
        )
        raise DskdError(msg) from error
