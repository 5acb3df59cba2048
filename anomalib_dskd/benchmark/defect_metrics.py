# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Where the weaknesses of knowledge distillation show: the core of large defects and the ring around small ones."""

import numpy as np
from scipy.ndimage import distance_transform_edt

LARGE_SHARE = 0.02
SMALL_SHARE = 0.002
DEPTH_SHARE = 1 / 32
WIDTH_SHARE = 1 / 32


def core(labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mark the cores of large defects.

    A defect is large from ``LARGE_SHARE`` of the image's area on. Its core are the pixels farther than
    ``DEPTH_SHARE`` of the image's side (the root of its area) from the nearest normal pixel; the border of the image
    is not an edge of the defect. A long and thin defect has none.

    Args:
        labels: Number of each pixel's defect from 1, 0 for normal, shape ``(H, W)``. No two defects touch, not even
            across a corner.
        sizes: Pixels of each defect, shape ``(number,)``.

    Returns:
        Boolean mask, shape ``(H, W)``.
    """
    large = _marked(labels, sizes >= LARGE_SHARE * labels.size)
    if not large.any() or large.all():
        return large
    return distance_transform_edt(large) > DEPTH_SHARE * np.sqrt(labels.size)


def ring(labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mark the rings around small defects.

    A defect is small up to ``SMALL_SHARE`` of the image's area. Its ring are the normal pixels no farther from it than
    ``WIDTH_SHARE`` of the image's side (the root of its area). Pixels nearer to a defect that is not small are left
    out, since an alarm there is that defect's.

    Args:
        labels: Number of each pixel's defect from 1, 0 for normal, shape ``(H, W)``.
        sizes: Pixels of each defect, shape ``(number,)``.

    Returns:
        Boolean mask, shape ``(H, W)``.
    """
    is_small = sizes <= SMALL_SHARE * labels.size
    if not is_small.any():
        return np.zeros(labels.shape, dtype=bool)
    distance = distance_transform_edt(~_marked(labels, is_small))
    around = (labels == 0) & (distance <= WIDTH_SHARE * np.sqrt(labels.size))
    if not is_small.all():
        around &= distance <= distance_transform_edt(~_marked(labels, ~is_small))
    return around


def _marked(labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.append(False, chosen)[labels]
