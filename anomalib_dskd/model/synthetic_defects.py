# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Defects drawn on good images, which the students learn to overlook."""

import torch
from anomalib.data.utils.generators.perlin import generate_perlin_noise
from torchvision.transforms.v2.functional import gaussian_blur

CURVES = 0.3
STRIDE = 4


def draw_defects(images: torch.Tensor, share: float) -> torch.Tensor:
    """Draw blots, scratches and pieces of other images on some images of a batch.

    A student that sees these images and is to give the teacher's features of the ones without them (the denoising
    student of DeSTSeg, Zhang et al. 2023, section 3.1) cannot follow the teacher on a defect. Shapes come from Perlin
    noise as in DRAEM (Zavrtanik et al. 2021), through anomalib's generator; their contrast is in standard deviations of
    normalised images, so that no data set of textures is needed.

    Args:
        images: Normalised images of shape ``(B, 3, H, W)``.
        share: Share of images that are drawn on, in [0, 1].

    Returns:
        New images of the same shape, device and type; torch's global random state decides what is drawn.
    """
    with torch.autocast(images.device.type, enabled=False):
        return _draw(images, share)


def _draw(images: torch.Tensor, share: float) -> torch.Tensor:
    shifts = [int(torch.randint(side, ())) for side in images.shape[-2:]]
    others = images.roll(1, dims=0).roll(shifts, dims=(-2, -1)).flip(-1)
    drawn = images.clone()
    for image, other in zip(drawn, others, strict=True):
        if torch.rand(()) < share:
            mask = _shape(image)
            image.lerp_(_stain(image, other), mask)
    return drawn


def _shape(image: torch.Tensor) -> torch.Tensor:
    """Return a soft mask ``(1, H, W)`` of blots, or of thin curves within them."""
    height, width = image.shape[-2:]
    noise = generate_perlin_noise(height, width, device=image.device) * _sign()
    if torch.rand(()) < CURVES:
        field = generate_perlin_noise(height, width, device=image.device)
        slope = torch.stack(torch.gradient(field)).square().sum(dim=0).sqrt()
        mask = (field.abs() < _uniform(0.5, 2.0) * slope) & _largest(noise, 0.2)  # half the curve's width in pixels
    else:
        mask = _largest(noise, 10 ** _uniform(-2.0, -0.7))
    sigma = _uniform(0.4, 2.5)
    return gaussian_blur(mask[None].to(image.dtype), [2 * int(2 * sigma) + 1] * 2, [sigma] * 2)


def _stain(image: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the image ``(3, H, W)`` brighter or darker, or covered by another's texture."""
    if torch.randint(2, ()):
        return image + _sign() * _uniform(0.3, 2.0)
    mean = other.mean(dim=(-2, -1), keepdim=True)
    texture = mean + (other - mean) * _uniform(0.5, 2.5) + _sign() * _uniform(0.0, 1.0)
    return image.lerp(texture, _uniform(0.4, 1.0))


def _largest(noise: torch.Tensor, share: float) -> torch.Tensor:
    return noise > noise[::STRIDE, ::STRIDE].quantile(1 - share)


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def _sign() -> int:
    return 1 if torch.randint(2, ()) else -1
