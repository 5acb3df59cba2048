# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Image score: what stands out in the anomaly map, and how unusual the image is as a whole."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from .components import WholeImage
from .components.whitening import LEAST_SPREAD, TINY, follow, momentum_of

QUICKER = 5  # in training the mean sinks; see follow


class ImageScore(nn.Module):
    r"""Score of an image from its map and the teacher's features.

    Some normal images are further from what was trained on than others, all over: another exposure, a rougher surface.
    Their map is high everywhere, and its maximum alone calls them defective. So the level :math:`\ell` of the image is
    taken off, see :meth:`~anomalib_dskd.model.torch_model.DskdModel.level`; half of it is off the map :math:`m`
    already (of cosine distances it is not), so that :math:`c = \log (\max m / \sqrt{\ell})`. What is unusual all over
    is told apart by :class:`~anomalib_dskd.model.components.WholeImage`, which knows how usual that is. Both are
    counted in standard deviations from their means over normal images, :math:`z_c` and :math:`z_w`, and the score is
    their sum, on a scale without negative numbers:

    .. math:: \operatorname{softplus} (z_c + z_w) = \log (1 + e^{z_c + z_w})

    Two witnesses say more than one, and an image like many that were trained on has the benefit of the doubt.

    Args:
        channels: Channels of the teacher's maps, finest first.
        strides: Their strides in input pixels.
    """

    usual_contrast: torch.Tensor
    contrast_variance: torch.Tensor
    updates: torch.Tensor

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.whole_image = WholeImage(channels, strides)
        self.register_buffer("usual_contrast", torch.zeros(()))
        self.register_buffer("contrast_variance", torch.ones(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, maps: torch.Tensor, level: torch.Tensor) -> None:
        """Take the maps and levels of normal images, as :meth:`forward` does, into moving averages of the contrast."""
        contrast, momentum = map_contrast(maps, level), momentum_of(self.updates)
        follow(self.usual_contrast, self.contrast_variance, contrast, momentum, quicker=QUICKER)
        self.updates += 1

    def forward(
        self, maps: torch.Tensor, level: torch.Tensor, teacher: Sequence[torch.Tensor], held_out: bool = False
    ) -> torch.Tensor:
        """Compute the score.

        Args:
            maps: Anomaly maps, ``(B, 1, H, W)``, B at least 1.
            level: How much is missed of each image all over, ``(B,)``.
            teacher: The teacher's maps, ``(B, C, h, w)`` each, finest first.
            held_out: Whether the images are those held out for a threshold.

        Returns:
            Scores of shape ``(B,)``, not negative; 0.69 where both are as usual.
        """
        # its logarithm is not told more exactly than to a twentieth; one image alone has no deviation
        spread = self.contrast_variance.sqrt().clamp_min(LEAST_SPREAD)
        stands_out = (map_contrast(maps, level) - self.usual_contrast) / spread
        witnesses = [stands_out, self.whole_image(teacher, held_out)]
        stands_out, distance = torch.stack(witnesses).unbind()  # one operation for the export to correct
        return F.softplus(stands_out + self.whole_image.deviations(distance))


def map_contrast(maps: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Logarithm of maximum by root of the level, of maps ``(B, 1, H, W)`` and levels ``(B,)``, of shape ``(B,)``."""
    return maps.flatten(1).amax(dim=1).clamp_min(TINY).log() - 0.5 * level.log()
