# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Anomaly map: distances at all scales, of both students, fused into one map."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce

import torch
from anomalib.models.components.filters.blur import GaussianBlur2d, compute_kernel_size
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_dskd.errors import DskdError, check_choice

from .components import BorderLevel
from .components.residual import resize_to

Scales = Sequence[Sequence[torch.Tensor]]

SHARES = 1.0, 1.0, 0.5
"""How much distances of single locations, of regions of 80 pixels and of those half as wide as the image count."""

FUSIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sum": torch.add,
    "product": torch.mul,
    "max": torch.maximum,
}


class AnomalyMapGenerator(nn.Module):
    r"""Fuse distances into an anomaly map.

    Each scale is brought to the finest one's grid; scales are fused to maps of each student, students to maps of both:
    one of the distances of single locations, :math:`a`, and one of those of regions of each width, :math:`b` and
    :math:`c`. They are added as squares,

    .. math:: m = \sqrt{a^2 + b^2 + (c / 2)^2},

    so that what one of them shows is not covered by what the others have everywhere, and the map is smoothed and
    upsampled to the image, bilinearly. There is no more to see at the image's resolution, where all of it takes 16
    times as long. STFPM multiplies scales, reverse distillation adds them; the paper's choice is not published. A
    product of small distances underflows in float16, a sum does not.

    Args:
        scale_fusion: How scales are fused: ``"sum"``, ``"product"`` or ``"max"``. Defaults to ``"sum"``.
        student_fusion: How the students' maps are fused, likewise. Defaults to ``"sum"``.
        smoothing: Sigma of the Gaussian applied to the maps, in locations of the finest grid; ``0`` switches it off.
            Defaults to ``1.0``, at stride 4 the 4 pixels of reverse distillation.
        border: What brings the border of the maps to the level of their inside, before they are smoothed; with it, maps
            are brought to one level for all images too. Defaults to nothing, and then they are not.
    """

    shares: torch.Tensor

    def __init__(
        self,
        scale_fusion: str = "sum",
        student_fusion: str = "sum",
        smoothing: float = 1.0,
        border: BorderLevel | None = None,
    ) -> None:
        super().__init__()
        self.scale_fusion = check_choice("scale_fusion", scale_fusion, FUSIONS)
        self.student_fusion = check_choice("student_fusion", student_fusion, FUSIONS)
        self.kernel = [1.0]
        if smoothing > 0:
            along_rows = GaussianBlur2d(smoothing, kernel_size=(1, compute_kernel_size(smoothing)))
            self.kernel = along_rows.kernel.flatten().tolist()
        self.border = border
        self.register_buffer("shares", torch.tensor(SHARES)[:, None, None], persistent=False)

    def student_maps(self, distances: Mapping[str, Scales]) -> dict[str, torch.Tensor]:
        """Fuse the scales of each student.

        Args:
            distances: For each student, its distances to the teacher at each scale, finest first: those of single
                locations, ``(B, 1, h, w)``, and of regions of each width, ``(B, 1, h', w')``, on coarser grids.

        Returns:
            For each student its maps on the finest grid, ``(B, K, h, w)``: of locations and of regions of each width.
        """
        return {
            student: _fuse(self.scale_fusion, (_on_grid(scale, scales[0][0].shape[-2:]) for scale in scales))
            for student, scales in distances.items()
        }

    def forward(self, distances: Mapping[str, Scales], level: torch.Tensor, image_size: torch.Size) -> torch.Tensor:
        """Compute the anomaly map.

        Args:
            distances: See :meth:`student_maps`.
            level: How much is missed of each image all over, ``(B,)``.
            image_size: Height and width of the network's input.

        Returns:
            The map, ``(B, 1, H, W)``.
        """
        return self.finish(self.fuse(distances), level, image_size)

    def fuse(self, distances: Mapping[str, Scales]) -> torch.Tensor:
        """Fuse scales and students, arguments as in :meth:`student_maps`, to maps ``(B, K, h, w)``."""
        if self.scale_fusion == self.student_fusion == "sum":
            scales = [scale for student in distances.values() for scale in student]
            size = scales[0][0].shape[-2:]
            return torch.cat([_sum_on_grid(maps, size) for maps in zip(*scales, strict=True)], dim=1)
        return self.fuse_students(self.student_maps(distances).values())

    def learn(self, maps: torch.Tensor) -> None:
        """Take fused maps of normal images, ``(B, K, h, w)`` with B at least 1, into what is usual at the border."""
        if self.border is not None:
            with torch.autocast(maps.device.type, enabled=False):
                self.border.update(maps.float())

    def finish(self, maps: torch.Tensor, level: torch.Tensor, image_size: torch.Size) -> torch.Tensor:
        """Make maps ``(B, K, h, w)`` of locations and regions one, smooth it and bring it to the image's size.

        What their border has more than their inside is taken off, and half of the image's level, ``(B,)``, on a
        logarithmic scale: all of it would be too much, since large defects raise it.

        Returns:
            The map, ``(B, 1, H, W)``.

        In float32 whatever the autocast: bfloat16 would leave 50 grey levels. Smoothing and resizing are linear and
        work along one axis after the other, so that they are two matrix products: a row of a matrix is what they make
        of one location of an axis. An export keeps the matrices as constants, and OpenVINO is several times faster at
        it than at interpolating one channel.
        """
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.float()
            if self.border is not None:
                maps = self.border(maps) / level.sqrt()[:, None, None, None]
            maps = torch.linalg.vector_norm(maps * self.shares[: maps.shape[1]], dim=1, keepdim=True)
            rows, columns = (self._along(maps, *sides) for sides in zip(maps.shape[-2:], image_size, strict=True))
            return rows.T @ maps @ columns

    def _along(self, maps: torch.Tensor, locations: int, pixels: int) -> torch.Tensor:
        """What smoothing and upsampling make of each location of an axis, ``(locations, pixels)``.

        Smoothed by a sum of shifted matrices, since OpenVINO does not compute convolutions ahead.
        """
        alone = torch.eye(locations).to(maps)
        reach = len(self.kernel) // 2
        if reach >= int(locations):
            msg = f"The map of {locations} locations is too small for its smoothing: {2 * reach + 1} locations wide."
            raise DskdError(msg)
        padded = F.pad(alone[None], (reach, reach), mode="reflect")[0]
        smooth = sum(weight * padded[:, shift : shift + locations] for shift, weight in enumerate(self.kernel))
        return resize_to(smooth[None, None], torch.Size((locations, pixels)))[0, 0]

    def fuse_students(self, maps: Iterable[torch.Tensor]) -> torch.Tensor:
        """Fuse the students' maps, all of one shape, into one map of that shape."""
        return _fuse(self.student_fusion, maps)


def _on_grid(distances: Sequence[torch.Tensor], size: torch.Size) -> torch.Tensor:
    """Bring distances of locations and of regions, ``(B, 1, h, w)`` each, to one size, ``(B, K, H, W)``."""
    return torch.cat([resize_to(each, size) for each in distances], dim=1)


def _sum_on_grid(maps: Iterable[torch.Tensor], size: torch.Size) -> torch.Tensor:
    """Bring maps ``(B, 1, h, w)`` to one size and sum them; what is on one grid already is summed before."""
    sums: dict[tuple[int, ...], torch.Tensor] = {}
    for each in maps:
        grid = tuple(int(side) for side in each.shape[-2:])
        sums[grid] = sums[grid] + each if grid in sums else each
    return _fuse("sum", (resize_to(each, size) for each in sums.values()))


def _fuse(fusion: str, maps: Iterable[torch.Tensor]) -> torch.Tensor:
    return reduce(FUSIONS[fusion], maps)
