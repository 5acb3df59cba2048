# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Distance of two feature maps, the quantity that is trained down and shown as the anomaly map."""

import torch
from torch.nn import functional as F  # noqa: N812


def feature_distance(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    r"""Cosine distance at each location.

    .. math:: d = \tfrac{1}{2} \lVert \hat{t} - \hat{s} \rVert^2 = 1 - \cos(t, s)

    The left side is STFPM's (Wang et al. 2021, eq. 1) and keeps small distances exact where the right one
    cancels; the reconstruction of DSKD uses it for both students. Computed in float32 whatever the autocast,
    since a distance of 1e-3 is below bfloat16's resolution of features near 1.

    Args:
        teacher: Teacher's map of shape ``(B, C, h, w)``.
        student: A student's map of the same shape.

    Returns:
        Distances in [0, 2] of shape ``(B, 1, h, w)``, float32.
    """
    with torch.autocast(teacher.device.type, enabled=False):
        difference = F.normalize(teacher.float()) - F.normalize(student.float())
        return 0.5 * difference.square().sum(dim=1, keepdim=True)
