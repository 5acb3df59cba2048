# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""8-bit form of a bundle's graph."""

from collections.abc import Sequence
from pathlib import Path

import nncf
import numpy as np
import openvino as ov

from anomalib_dskd import inspector

SUBSET = 300
# what comes before and after the networks; the distances stand in no module of their own
UNTOUCHED = (r"__module\.transform.*", r"aten::.*", r".*anomaly_map_generator.*")


def quantize(graph: ov.Model, images: Sequence[Path], max_pixels: int) -> ov.Model:
    """Quantise the networks of a graph after training; its resize, distances and maps stay in float32.

    Args:
        graph: Graph as :func:`~anomalib_dskd.export.graph.convert` returns it.
        images: Normal images that the value ranges are taken from; 300 of them, evenly spread, are used.
        max_pixels: As in :func:`anomalib_dskd.inspector.decode`.

    Returns:
        Quantised graph with the same input and outputs.
    """
    chosen = [images[index] for index in np.linspace(0, len(images) - 1, min(SUBSET, len(images))).astype(int)]

    def read(path: Path) -> np.ndarray:
        return inspector.decode(path.read_bytes(), max_pixels)[None]

    return nncf.quantize(
        graph,
        nncf.Dataset(chosen, read),
        subset_size=len(chosen),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(patterns=list(UNTOUCHED), validate=False),
    )
