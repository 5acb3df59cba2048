# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's image batch with each student's map, raw score and map beside the normalised ones, and parts."""

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch
from anomalib.data import Batch, ImageBatch, ImageItem, NumpyImageBatch, NumpyImageItem


@dataclass
class NumpyDskdItem(NumpyImageItem):
    """Image with maps ``(H, W)`` as arrays."""

    encoder_map: np.ndarray | None = None
    decoder_map: np.ndarray | None = None
    raw_score: np.ndarray | None = None
    raw_map: np.ndarray | None = None
    part: np.ndarray | None = None


@dataclass
class NumpyDskdBatch(NumpyImageBatch):
    """Batch with maps ``(B, H, W)`` as arrays."""

    item_class: ClassVar[type[NumpyDskdItem]] = NumpyDskdItem
    encoder_map: np.ndarray | None = None
    decoder_map: np.ndarray | None = None
    raw_score: np.ndarray | None = None
    raw_map: np.ndarray | None = None
    part: np.ndarray | None = None


@dataclass
class DskdItem(ImageItem):
    """Image with maps ``(H, W)``."""

    numpy_class: ClassVar[type[NumpyDskdItem]] = NumpyDskdItem
    encoder_map: torch.Tensor | None = None
    decoder_map: torch.Tensor | None = None
    raw_score: torch.Tensor | None = None
    raw_map: torch.Tensor | None = None
    part: torch.Tensor | None = None


@dataclass
class DskdBatch(ImageBatch):
    """Batch whose predictions carry each student's map.

    Attributes:
        encoder_map: Raw map of the student encoder alone, ``(B, H, W)``; ``None`` where the model has none.
        decoder_map: Raw map of the student decoder alone, likewise.
        raw_score: Image score before it was normalised, ``(B,)``; ``None`` before post-processing.
        raw_map: Anomaly map before it was normalised, ``(B, H, W)``; likewise.
        part: Number of the part that each image shows, ``(B,)``; ``None`` where the data do not tell, and each is
            taken for a part of its own.
    """

    item_class: ClassVar[type[DskdItem]] = DskdItem
    numpy_class: ClassVar[type[NumpyDskdBatch]] = NumpyDskdBatch
    encoder_map: torch.Tensor | None = None
    decoder_map: torch.Tensor | None = None
    raw_score: torch.Tensor | None = None
    raw_map: torch.Tensor | None = None
    part: torch.Tensor | None = None

    @classmethod
    def from_batch(cls, batch: Batch) -> "DskdBatch":
        """Take over the image fields of anomalib's batch, without copying them; of depth data that is the RGB image."""
        return cls(**{field.name: getattr(batch, field.name) for field in fields(ImageBatch)})
