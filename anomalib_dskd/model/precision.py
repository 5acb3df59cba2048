# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Arithmetic in which images are judged."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute in float32 with all of its 23 bits, as a bundle on the line will, however the model is trained.

    A threshold from bfloat16 would not fit: where EfficientNet-Lite0 rounds, an image of the demo's bricks is 1.5
    standard deviations more unusual as a whole, and 7 at most. And what torch calls float32 on a GPU has convolutions
    of 10 bits (TF32) by default.

    Args:
        device: Where the images are.
    """
    settings = _settings()
    before = [getattr(where, name) for where, name, _ in settings]
    for where, name, value in settings:
        setattr(where, name, value)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (where, name, _), value in zip(settings, before, strict=True):
            setattr(where, name, value)


def _settings() -> list[tuple[Any, str, Any]]:
    """Return where torch is told the precision of convolutions and products on a GPU, and full precision's value."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):  # torch 2.9; there the old names raise an error once someone has set the new ones
        return [(cudnn.conv, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]
    return [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]
