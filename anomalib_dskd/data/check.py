# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Look at the images before they are trained on or judged."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pandas as pd
from anomalib.data.utils import LabelName
from PIL import Image
from rich.progress import track

from anomalib_dskd.errors import DskdError
from anomalib_dskd.inspector import has_more_than_8_bits

LISTED = 10
WORTH_A_BAR = 500
ASPECT_TOLERANCE = 0.01


def check_samples(samples: pd.DataFrame) -> None:
    """Check the images and masks of anomalib data sets.

    Args:
        samples: Rows with ``image_path`` and, where there are masks, ``mask_path``. Those of normal images are not
            looked at, since anomalib does not read them: BTech's name files that do not exist.

    Raises:
        DskdError: If a file cannot be read to its end, has more than 8 bits a channel, which anomalib clips to white
            where they are grey and the inspector refuses, or is a mask of another shape than its image. The message
            names each file and what to do.
    """
    masks = samples["mask_path"] if "mask_path" in samples else pd.Series("", index=samples.index)
    if "label_index" in samples:
        masks = masks.where(samples["label_index"] != LabelName.NORMAL, "")
    _check(dict(zip(samples["image_path"], map(_masks, masks), strict=True)).items())


def check_images(paths: Iterable[str | Path]) -> None:
    """Check images that have no masks; errors as in :func:`check_samples`."""
    _check((path, []) for path in paths)


def _masks(value: object) -> list[str | Path]:
    """Return the masks of an image: none, one, or those of each defect, as in MVTec LOCO."""
    if isinstance(value, list | tuple):
        return list(value)
    return [value] if isinstance(value, str | Path) and str(value) else []


def _check(pairs: Iterable[tuple[str | Path, list[str | Path]]]) -> None:
    pairs = list(pairs)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda pair: _problem(*pair), pairs)
        problems = [
            problem
            for problem in track(
                found, "Checking images", total=len(pairs), transient=True, disable=len(pairs) < WORTH_A_BAR
            )
            if problem
        ]
    if problems:
        more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        listed = "".join(f"\n  {problem}" for problem in islice(problems, LISTED))
        msg = f"{len(problems)} of {len(pairs)} images cannot be used:{listed}{more}"
        raise DskdError(msg)


def _problem(path: str | Path, masks: list[str | Path]) -> str | None:
    """Return what is wrong with an image or one of its masks, or ``None``."""
    try:
        size = _read(path)
        for path in masks:  # noqa: PLR1704  # the error names the file that was read
            width, height = _read(path)
            if abs(width * size[1] - height * size[0]) > ASPECT_TOLERANCE * width * size[1]:
                return (
                    f"{path}: the mask is {width}x{height}, its image {size[0]}x{size[1]}. "
                    "Draw the mask on the whole image, in the same proportions."
                )
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's for broken files
        reason = "it is empty" if Path(path).is_file() and Path(path).stat().st_size == 0 else str(error)
        return f"{path}: {reason}. Restore the file or take it away."
    return None


def _read(path: str | Path) -> tuple[int, int]:
    """Read a file to its end and return width and height."""
    with Image.open(path) as image:
        if has_more_than_8_bits(image):
            msg = (
                f"16-bit or float levels (mode {image.mode!r}): anomalib would clip grey ones to white, and the "
                "inspector refuses all. Convert all images to 8 bits by one and the same scale"
            )
            raise ValueError(msg)
        size = image.size
        if image.format == "PNG":
            image.verify()  # checksums, without decoding
        else:
            image.draft("RGB", (1, 1))  # lets JPEG skip most of the arithmetic
            image.load()
    return size
