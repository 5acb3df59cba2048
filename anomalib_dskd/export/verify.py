# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Show that a bundle decides as its checkpoint does."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data.utils import read_image
from PIL import Image
from rich.progress import track

from anomalib_dskd import inspector
from anomalib_dskd.data.check import check_images
from anomalib_dskd.errors import DskdError
from anomalib_dskd.model import Dskd

from .checkpoint import load_checkpoint

TOLERANCE = 1e-4
TINY = np.finfo(np.float32).tiny
THRESHOLDS = 100
MAX_PIXELS = 64_000_000
DRAWN_SIZES = ((96, 80), (300, 1000), (720, 540))
WORTH_A_BAR = 50


@dataclass
class Comparison:
    """A bundle's scores and maps beside its checkpoint's.

    Attributes:
        threshold: Raw threshold of the bundle.
        names: Images.
        expected: The checkpoint's raw scores.
        found: The bundle's raw scores.
        map_difference: Largest difference of a pixel of a map, relative to that map's highest pixel.
    """

    threshold: float
    names: list[str] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    map_difference: float = 0.0

    @property
    def score_difference(self) -> float:
        """Largest difference of a score, relative to the checkpoint's or the threshold, whichever is larger.

        Scores far below the threshold are next to 0, and their own size says nothing.
        """
        expected, found = np.array(self.expected), np.array(self.found)
        return float(np.max(np.abs(found - expected) / np.maximum(expected, max(self.threshold, TINY)), initial=0))

    def flips_at(self, threshold: float) -> np.ndarray:
        """Return which verdicts differ at a threshold, ``(n,)``, but for scores within 1e-4 of it, relatively."""
        expected, found = np.array(self.expected), np.array(self.found)
        near = np.abs(expected - threshold) <= TOLERANCE * threshold
        return ((expected > threshold) != (found > threshold)) & ~near

    @property
    def flips(self) -> list[int]:
        """Indices of the images whose verdict differs at the bundle's threshold."""
        return np.flatnonzero(self.flips_at(self.threshold)).tolist()

    @property
    def flips_across(self) -> int:
        """Number of differing verdicts at 100 thresholds, evenly spaced across the checkpoint's scores."""
        if not self.expected:
            return 0
        return sum(
            int(self.flips_at(threshold).sum())
            for threshold in np.linspace(min(self.expected), max(self.expected), THRESHOLDS)
        )

    def summary(self) -> dict[str, Any]:
        """Return what ``metadata.json`` says of the comparison."""
        return {
            "images": len(self.names),
            "largest_score_difference": self.score_difference,
            "largest_map_difference": self.map_difference,
            "flips": len(self.flips),
            f"flips_at_{THRESHOLDS}_thresholds": self.flips_across,
        }

    def report(self) -> str:
        """Return the summary and every flip as text."""
        text = (
            f"{len(self.names)} images: largest relative difference {self.score_difference:.1e} of a score, "
            f"{self.map_difference:.1e} of a map; {len(self.flips)} verdicts flipped at the threshold "
            f"{self.threshold:.6g}, {self.flips_across} at {THRESHOLDS} thresholds across the scores."
        )
        for index in self.flips:
            was, now = (
                inspector.NG if scores[index] > self.threshold else inspector.OK
                for scores in (self.expected, self.found)
            )
            text += (
                f"\n  flipped from {was} to {now}: {self.expected[index]:.6g} to {self.found[index]:.6g}"
                f"  {self.names[index]}"
            )
        return text


Pair = tuple[str, torch.Tensor, np.ndarray]


def compare(model: Dskd, bundle: Path, pairs: Iterable[Pair]) -> Comparison:
    """Compare a bundle, run as the inspector does, with the model that it was exported from.

    Args:
        model: Trained model.
        bundle: Folder of the bundle.
        pairs: For each image its name, the image ``(3, H, W)`` in [0, 1] as anomalib reads it, and ``(H, W, 3)`` in
            ``uint8`` as the inspector does.

    Raises:
        DskdError: If the bundle returns a NaN or an infinity.
    """
    opened = inspector.Bundle.open(bundle)
    exported = inspector.Model(opened, throughput=False)
    comparison = Comparison(opened.threshold)
    model.eval()
    for name, image, decoded in pairs:
        with torch.no_grad():
            resized = model.pre_processor.transform(image[None].to(model.device))
            predicted = model.model(resized)
        expected = predicted.anomaly_map.squeeze().cpu().numpy()
        found = exported(decoded)
        if not all(np.isfinite(found[output]).all() for output in ("score", "map")):
            msg = f"The bundle's score or map of {name} is no number; the checkpoint's score is {predicted.pred_score}."
            raise DskdError(msg)
        difference = np.abs(found["map"] - expected).max() / max(expected.max(), TINY)
        comparison.map_difference = max(comparison.map_difference, float(difference))
        comparison.names.append(name)
        comparison.expected.append(float(predicted.pred_score))
        comparison.found.append(float(found["score"]))
    return comparison


def drawn_pairs(size: tuple[int, int] | None) -> Iterator[Pair]:
    """Yield noisy pictures, which show a wrong resize best, of several sizes or the one the bundle takes.

    Args:
        size: Width and height of the images that the bundle takes, if they are fixed.
    """
    generator = np.random.default_rng(0)
    for height, width in ((size[1], size[0]),) if size else DRAWN_SIZES:
        drawn = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield f"drawn {width}x{height}", torch.from_numpy(drawn).permute(2, 0, 1) / 255, drawn


def image_pairs(paths: Sequence[Path]) -> Iterator[Pair]:
    """Yield images as anomalib reads them and as the inspector does.

    Raises:
        DskdError: If the inspector would refuse one of them.
    """
    for path in track(paths, "Verifying", transient=True, disable=len(paths) < WORTH_A_BAR):
        yield str(path), read_image(path, as_tensor=True), decode(path)


def decode(path: Path) -> np.ndarray:
    """Decode an image of up to 64 megapixels as the inspector does, ``(H, W, 3)`` in ``uint8``.

    Raises:
        DskdError: If the inspector would refuse it.
    """
    try:
        return inspector.decode(path.read_bytes(), MAX_PIXELS)
    except inspector.ImageError as error:
        msg = (
            f"{path}: {error}. The inspector refuses such images: convert all, those of the line too, and train again."
        )
        raise DskdError(msg) from None


def find_images(folder: Path | None) -> list[Path]:
    """List the images of a folder and those below it, or one image; none of ``None``.

    Raises:
        DskdError: If there are none, or one of them cannot be used.
    """
    if folder is None:
        return []
    found = inspector.list_images(folder, None)
    if not found:
        msg = f"{folder} has no images."
        raise DskdError(msg)
    check_images(found)
    return found


def common_size(images: Sequence[Path]) -> tuple[int, int] | None:
    """Return width and height of the images if all are alike, else ``None``."""
    sizes = set()
    for path in images:
        with Image.open(path) as image:
            sizes.add(image.size)
    return sizes.pop() if len(sizes) == 1 else None


def fitting(images: Sequence[Path], size: tuple[int, int] | None) -> list[Path]:
    """Return the images of the width and height that a bundle takes, all if it takes any, and print the others.

    Raises:
        DskdError: If there are images and none of them is of that size.
    """
    usable = []
    for path in images:
        if size is None or common_size([path]) == size:
            usable.append(path)
        else:
            print(f"Not verified, since it is not {size[0]}x{size[1]}: {path}")  # noqa: T201
    if size is not None and images and not usable:
        msg = (
            f"None of the {len(images)} images to verify with is {size[0]}x{size[1]}, the size that the bundle takes: "
            "give such as the camera takes."
        )
        raise DskdError(msg)
    return usable


def refuse_differences(compared: Sequence[Comparison], flips: int, precision: str, max_flips: int) -> None:
    """Raise if a bundle does not decide as its checkpoint does.

    Args:
        compared: Comparisons whose scores and maps, with ``"f32"``, may differ by at most 1e-4.
        flips: Flipped verdicts.
        precision: The bundle's.
        max_flips: Flipped verdicts to put up with.

    Raises:
        DskdError: If one of them is too large.
    """
    if flips > max_flips:
        msg = f"{flips} verdicts are flipped, more than max_flips={max_flips}. Use precision f32, or allow for so many."
        raise DskdError(msg)
    for name in ("score", "map"):
        difference = max(getattr(each, f"{name}_difference") for each in compared)
        if precision == "f32" and difference > TOLERANCE:
            msg = f"The bundle's {name}s differ from the checkpoint's by {difference:.1e}, more than {TOLERANCE:.0e}."
            raise DskdError(msg)


def verify(ckpt: Path, bundle: Path, images: Path, max_flips: int = 0) -> None:
    """Compare the verdicts of a bundle with its checkpoint's.

    Args:
        ckpt: Checkpoint that the bundle was exported from.
        bundle: Folder of the bundle.
        images: Folder of images, good ones and bad ones.
        max_flips: Flipped verdicts to put up with.

    Raises:
        DskdError: If no image has the size that the bundle takes, more verdicts are flipped, or scores or maps differ
            by more than 1e-4 with precision f32.
    """
    try:
        metadata = inspector.Bundle.open(bundle).metadata
        usable = fitting(find_images(images), bundle_size(metadata["input"]))
        comparison = compare(load_checkpoint(ckpt), bundle, image_pairs(usable))
    except inspector.BundleError as error:
        raise DskdError(str(error)) from None
    print(comparison.report())  # noqa: T201
    refuse_differences([comparison], len(comparison.flips), metadata.get("precision", ""), max_flips)


def bundle_size(contract: dict[str, Any]) -> tuple[int, int] | None:
    """Return the width and height of the images that a bundle takes, ``None`` if it takes any."""
    return (contract["width"], contract["height"]) if contract["width"] else None
