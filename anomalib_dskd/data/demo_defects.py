# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Defects drawn on pictures of textures, each with its exact mask.

Each takes an image ``(H, W, 3)`` with values in [0, 1] and a random generator, and returns the image with the defect
and its mask ``(H, W)``. Sizes and contrasts vary from hardly visible to plain.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

Drawn = tuple[np.ndarray, np.ndarray]


def scratch(image: np.ndarray, generator: np.random.Generator) -> Drawn:
    """Draw a thin, slightly bent line, lighter or darker than its surroundings."""
    size = image.shape[0]
    start, angle, bend = generator.uniform(0.25, 0.75, 2) * size, generator.uniform(0, np.pi), generator.normal(0, 0.3)
    length, width = generator.uniform(0.3, 0.7) * size, generator.uniform(0.8, 2.0)
    along = np.linspace(-0.5, 0.5, 4 * size)
    direction = angle + bend * along
    points = start + length * along[:, None] * np.stack([np.sin(direction), np.cos(direction)], axis=1)
    rows, columns = np.clip(np.round(points).astype(int), 0, size - 1).T
    line = np.ones(image.shape[:2], bool)
    line[rows, columns] = False
    mask = distance_transform_edt(line) <= width
    return _blend(image, mask, image + _either_sign(generator, 0.3, 0.6), soft=0.6), mask


def blob(image: np.ndarray, generator: np.random.Generator) -> Drawn:
    """Let a small drop of paint fall on the surface."""
    mask = _shape(image, generator, radius=generator.uniform(0.04, 0.09))
    paint = np.clip(image.mean() + generator.uniform(-0.45, 0.45, 3), 0, 1)
    return _blend(image, mask, 0.2 * image + 0.8 * paint, soft=1.0), mask


def missing(image: np.ndarray, generator: np.random.Generator) -> Drawn:
    """Break a piece out: flat, dark ground with a little noise."""
    mask = _shape(image, generator, radius=generator.uniform(0.08, 0.16))
    ground = np.full_like(image, image.mean() * generator.uniform(0.3, 0.7))
    ground += generator.normal(0, 0.02, image.shape[:2])[..., None]
    return _blend(image, mask, ground, soft=0.5), mask


def stain(image: np.ndarray, generator: np.random.Generator) -> Drawn:
    """Tint an area, the texture below still seen."""
    mask = _shape(image, generator, radius=generator.uniform(0.1, 0.25))
    tint = 1 + generator.uniform(0.06, 0.2) * generator.permutation([-1.0, 0.2, 0.6])
    return _blend(image, mask, image * tint, soft=2.0), mask


def blur(image: np.ndarray, generator: np.random.Generator) -> Drawn:
    """Smear an area; its mean brightness stays."""
    mask = _shape(image, generator, radius=generator.uniform(0.1, 0.2))
    smeared = gaussian_filter(image, (generator.uniform(1.0, 3.0),) * 2 + (0,))
    return _blend(image, mask, smeared, soft=1.5), mask


def large(image: np.ndarray, generator: np.random.Generator) -> Drawn:
    """Disturb a third to a half of the picture: the texture turned by a quarter, and flatter."""
    mask = _shape(image, generator, radius=generator.uniform(0.33, 0.42))
    turned = np.rot90(image)
    flat = image.mean() + generator.uniform(0.3, 0.6) * (turned - turned.mean())
    return _blend(image, mask, flat, soft=1.5), mask


DEFECTS: dict[str, Callable[[np.ndarray, np.random.Generator], Drawn]] = {
    defect.__name__: defect for defect in (scratch, blob, missing, stain, blur, large)
}


def _shape(image: np.ndarray, generator: np.random.Generator, radius: float) -> np.ndarray:
    """Draw an irregular, connected area of about ``radius`` times the image's size, away from the border."""
    size = image.shape[0]
    margin = min(radius * 1.3, 0.45)
    row, column = generator.uniform(margin, 1 - margin, 2) * size
    rows, columns = np.mgrid[:size, :size]
    angle = np.arctan2(rows - row, columns - column)
    outline = 1 + sum(
        generator.normal(0, 0.2 / order) * np.cos(order * angle + generator.uniform(0, 2 * np.pi))
        for order in range(2, 6)
    )
    return np.hypot(rows - row, columns - column) <= np.maximum(radius * size * outline, 1)


def _blend(image: np.ndarray, mask: np.ndarray, defect: np.ndarray, soft: float) -> np.ndarray:
    """Show the defect inside the mask, fading in over ``soft`` pixels within it: outside nothing changes."""
    weight = np.clip(distance_transform_edt(mask) / (1 + soft), 0, 1)[..., None]
    return image * (1 - weight) + defect * weight


def _either_sign(generator: np.random.Generator, low: float, high: float) -> float:
    return generator.choice([-1, 1]) * generator.uniform(low, high)
