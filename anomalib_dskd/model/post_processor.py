# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""From raw scores to verdicts."""

from typing import Any

import torch
from anomalib.data import Batch
from anomalib.post_processing import PostProcessor

from anomalib_dskd.errors import DskdError

from .threshold import ImageThreshold, PixelThreshold


class DskdPostProcessor(PostProcessor):
    r"""anomalib's post-processor with a threshold for parts without defects, and scores that keep their order.

    With normal validation images only, the thresholds are those that a share of ``false_alarm_rate`` of good parts
    exceeds; with anomalous ones among them, those of the best F1. See :mod:`anomalib_dskd.model.threshold`.

    A raw score ``x`` (or pixel of the map) is normalised with its threshold ``t`` to

    .. math:: y = \frac{1}{1 + (t / x)^2}

    which is 0.5 at the threshold, between 0 and 1 everywhere, and strictly monotone: nothing is clamped, so rank
    metrics of normalised scores are those of raw ones. anomalib's sensitivity ``s`` moves the threshold to
    ``t * sqrt(1 / s - 1)``: from ``3 t`` at 0.1 to ``t / 3`` at 0.9.

    Args:
        false_alarm_rate: Share of good parts that may be called defective, and that may show a region. Defaults to
            ``0.01``.
        image_sensitivity: anomalib's, in (0, 1). Defaults to ``0.5``.
        pixel_sensitivity: anomalib's, in (0, 1). Defaults to ``0.5``.
        **kwargs: Further arguments of anomalib's post-processor.

    Raises:
        DskdError: If the rate or a sensitivity is not between 0 and 1.
    """

    def __init__(
        self,
        false_alarm_rate: float = 0.01,
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        if not 0 < false_alarm_rate < 1:
            msg = f"false_alarm_rate={false_alarm_rate} must lie between 0 and 1; 0.01 is one good part in a hundred."
            raise DskdError(msg)
        check_sensitivity("image_sensitivity", image_sensitivity)
        check_sensitivity("pixel_sensitivity", pixel_sensitivity)
        super().__init__(image_sensitivity=image_sensitivity, pixel_sensitivity=pixel_sensitivity, **kwargs)
        self.false_alarm_rate = false_alarm_rate
        self._image_threshold_metric = ImageThreshold(
            false_alarm_rate=false_alarm_rate, fields=["pred_score", "gt_label"], strict=False
        )
        self._pixel_threshold_metric = PixelThreshold(
            false_alarm_rate=false_alarm_rate, fields=["anomaly_map", "gt_label"], strict=False
        )

    def normalize_batch(self, batch: Batch) -> None:
        """Normalise score and map, and keep the raw ones beside them where the batch has room."""
        if hasattr(batch, "raw_score"):
            batch.raw_score, batch.raw_map = batch.pred_score, batch.anomaly_map
        super().normalize_batch(batch)

    @staticmethod
    def _normalize(
        preds: torch.Tensor | None, norm_min: torch.Tensor, norm_max: torch.Tensor, threshold: torch.Tensor
    ) -> torch.Tensor | None:
        del norm_min, norm_max
        if preds is None:
            return None
        # in this order each operation is monotone, and so is its rounding; 0 / 0 alone must not happen
        positive = threshold.clamp_min(torch.finfo(threshold.dtype).tiny)
        normalized = 1 / (1 + (positive / preds).square())
        return torch.where(torch.isnan(threshold), preds, normalized)


def check_sensitivity(name: str, sensitivity: float) -> float:
    """Return a sensitivity of anomalib's, if it moves the threshold to a number greater than 0.

    Raises:
        DskdError: If it is not between 0 and 1.
    """
    if not 0 < sensitivity < 1:
        msg = f"{name}={sensitivity} must lie between 0 and 1; 0.5 leaves the threshold where it is."
        raise DskdError(msg)
    return sensitivity
