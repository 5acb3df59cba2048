# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Pixel metrics from raw anomaly maps, image by image."""

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import label

from anomalib_dskd.errors import DskdError

from .defect_metrics import core, ring
from .pixel_counts import PixelCounts, sortable
from .ranking import RankCurve

if TYPE_CHECKING:
    import torch

EXACT_PIXELS = 20_000_000
BINS = 1 << 22
FALSE_ALARM_RATE = 0.01
PRO_LIMITS = {"AUPRO_30": 0.3, "AUPRO_5": 0.05}
# pixels that touch at a corner belong to one region, as in the evaluation code of MVTec AD and in anomalib
NEIGHBOURS: np.ndarray = np.ones((3, 3), dtype=int)


class PixelMetrics:
    """Metrics of anomaly maps, which depend on the order of all pixels of all images alone.

    ``docs/metrics.md`` defines them. Values are rounded to float32 and sorted: all metrics are exact until
    ``exact_pixels`` have been seen. Beyond, values that share their leading bits are counted together as if they were
    equal, with just as few bits left out as ``bins`` demands; :meth:`error_bounds` tells how far that can be from the
    exact figure. Values that leave no more than ``bins`` different floats stay exact for any number of pixels.

    Args:
        exact_pixels: Pixels up to which all is exact, and how many are held before they are counted.
        bins: Highest number of occupied bins beyond, at least 2, for each of five kinds of pixels.

    Raises:
        DskdError: If there are fewer bins.

    Example:
        >>> masks = np.zeros((2, 4, 4), dtype=bool)
        >>> masks[1, 1:3, 1:3] = True
        >>> metrics = PixelMetrics()
        >>> metrics.update(masks - 20.5, masks)
        >>> metrics.compute()["AUPRO_30"]
        1.0
    """

    def __init__(self, exact_pixels: int = EXACT_PIXELS, bins: int = BINS) -> None:
        if bins < 2:  # noqa: PLR2004
            msg = f"bins={bins} must be at least 2."
            raise DskdError(msg)
        self.exact_pixels = exact_pixels
        self.bins = bins
        self.pixels = 0
        self.regions = 0
        self._held = 0
        self._shift = 0
        self._normal_images = PixelCounts()
        self._around_defects = PixelCounts()
        self._defects = PixelCounts()
        self._cores = PixelCounts()
        self._rings = PixelCounts()

    def update(
        self,
        maps: "np.ndarray | torch.Tensor",
        masks: "np.ndarray | torch.Tensor",
        defective: "np.ndarray | torch.Tensor | None" = None,
    ) -> None:
        """Add the maps of some images.

        Args:
            maps: Raw maps of any sign and scale, higher is more anomalous, shape ``(B, H, W)``. The size may differ
                from call to call.
            masks: ``True`` or not 0 for pixels of a defect, shape ``(B, H, W)``.
            defective: Whether images are defective, shape ``(B,)``. An image whose defect is too small for its mask is
                no normal one. Defaults to those with a pixel of a defect.

        Raises:
            DskdError: If the shapes differ or are not three-dimensional, or a value is NaN.
        """
        maps, masks = _array(maps), _array(masks).astype(bool)
        if maps.ndim != 3 or maps.shape != masks.shape:  # noqa: PLR2004
            msg = f"Maps of shape {maps.shape} and masks of shape {masks.shape} must both be (images, height, width)."
            raise DskdError(msg)
        if np.isnan(maps).any():
            number = np.isnan(maps).sum()
            msg = f"{number} pixels of the anomaly maps are NaN: the model diverged, or an input is broken."
            raise DskdError(msg)
        keys = sortable(maps)
        marked = masks.any(axis=(1, 2))
        defective = marked if defective is None else marked | _array(defective).astype(bool)
        self._normal_images.add(keys[~defective].ravel())
        for image_keys, mask in zip(keys[defective], masks[defective], strict=True):
            self._add_defective(image_keys, mask)
        self.pixels += maps.size
        self._held += maps.size
        if self._held > self.exact_pixels:
            self._count()

    def compute(self) -> dict[str, float]:
        """Compute the metrics of all pixels so far.

        Returns:
            ``pixel_AUROC``, ``pixel_AP``, ``pixel_F1max``, ``AUPRO_30``, ``AUPRO_5``, ``core_recall`` and
            ``ring_false_alarms``, all between 0 and 1; NaN where there is nothing to compute it from.
        """
        roc, pro = self._curves()
        return {
            "pixel_AUROC": float(roc.area()),
            "pixel_AP": float(roc.average_precision()),
            "pixel_F1max": float(roc.f1_max()),
            **{name: float(pro.area(limit)) for name, limit in PRO_LIMITS.items()},
            "core_recall": self._called(self._cores)[0],
            "ring_false_alarms": self._called(self._rings)[0],
        }

    def error_bounds(self) -> dict[str, float]:
        """Compute how far each figure of :meth:`compute` can be from the exact one, whatever the order within bins.

        Returns:
            The largest possible error of each metric; 0 while all is exact, NaN where the metric is.
        """
        values = self.compute()
        if not self._shift:
            return {name: value * 0.0 for name, value in values.items()}
        roc, pro = self._curves()
        f1_max = values["pixel_F1max"]
        bounds: dict[str, tuple] = {
            "pixel_AUROC": roc.area_bounds(),
            "pixel_AP": roc.average_precision_bounds(),
            "pixel_F1max": (f1_max, roc.f1_max_bound()),
            **{name: pro.area_bounds(limit) for name, limit in PRO_LIMITS.items()},
            "core_recall": self._called(self._cores),
            "ring_false_alarms": self._called(self._rings),
        }
        return {name: float(max(high - values[name], values[name] - low)) for name, (low, high) in bounds.items()}

    def curves(self, limit: float = 1.0, number: int = 200) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Thin the curves out for a plot.

        Args:
            limit: Highest false-positive rate.
            number: About how many points to keep of each.

        Returns:
            ``ROC`` and ``PRO``: false-positive rates from 0 to ``limit``, and hit rates or region overlaps; empty
            where a class is absent.
        """
        roc, pro = self._curves()
        return {"ROC": roc.points(limit, number), "PRO": pro.points(limit, number)}

    def _add_defective(self, keys: np.ndarray, mask: np.ndarray) -> None:
        labels, number = label(mask, structure=NEIGHBOURS)
        sizes = np.bincount(labels.ravel())[1:]
        self.regions += number
        self._around_defects.add(keys[~mask])
        self._defects.add(keys[mask], 1 / sizes[labels[mask] - 1])
        self._cores.add(keys[core(labels, sizes)])
        self._rings.add(keys[ring(labels, sizes)])

    def _count(self) -> None:
        kinds = (self._normal_images, self._around_defects, self._defects, self._cores, self._rings)
        # what an earlier compute() has counted exactly is made small before more is added to it
        self._coarsen(kinds)
        for kind in kinds:
            kind.count(self._shift)
        self._held = 0
        self._coarsen(kinds)

    def _coarsen(self, kinds: tuple[PixelCounts, ...]) -> None:
        if self.pixels <= self.exact_pixels:
            return
        bits = max(kind.width_for(self.bins) for kind in kinds)
        if bits:
            for kind in kinds:
                kind.coarsen(bits)
            self._shift += bits

    def _curves(self) -> tuple[RankCurve, RankCurve]:
        """Return the ROC and the PRO curve."""
        if self._held:
            self._count()
        keys = self._defects.keys[::-1]
        before = self._normal_images.above(keys) + self._around_defects.above(keys)
        after = self._normal_images.at_or_above(keys) + self._around_defects.at_or_above(keys)
        normal = np.asarray(self._normal_images.counts.sum() + self._around_defects.counts.sum())
        hits, overlaps = np.cumsum(self._defects.counts[::-1]), np.cumsum(self._defects.weights[::-1])
        return RankCurve(before, after, hits, normal), RankCurve(before, after, overlaps, normal)

    def _called(self, kind: PixelCounts) -> tuple[float, float]:
        """Return the lowest and highest share of pixels above the threshold; equal unless binned."""
        total = kind.counts.sum()
        if not total or not len(self._normal_images.keys):
            return np.nan, np.nan
        threshold = np.asarray(self._normal_images.highest(FALSE_ALARM_RATE), dtype=np.uint32)
        low = float(kind.above(threshold) / total)
        return low, float(kind.at_or_above(threshold) / total) if self._shift else low


def _array(values: "np.ndarray | torch.Tensor") -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    return values.detach().float().cpu().numpy()
