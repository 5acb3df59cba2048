# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Demo data that need no download: crops of scikit-image's texture photographs, with defects drawn on some."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from anomalib.data.datamodules.image.mvtecad import MVTecAD
from anomalib.data.utils import ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from PIL import Image
from skimage import data as photographs

from anomalib_dskd.demo import TEXTURES
from anomalib_dskd.errors import check_choice
from anomalib_dskd.registration import register

from .demo_defects import DEFECTS

if TYPE_CHECKING:
    from anomalib.data.datasets.base.image import AnomalibDataset

CROP = 128
# rows and columns of the 512x512 photographs that crops are taken from
REGIONS = {
    "train": [(slice(0, 192), slice(0, 320)), (slice(320, 512), slice(0, 320))],
    "held_out": [(slice(192, 320), slice(0, 320))],
    "test": [(slice(0, 512), slice(320, 512))],
}
NUMBERS = {"train": 96, "held_out": 40, "test": 30, "defects": 8}
HELD_OUT = "held_out_"


class DemoTextures(MVTecAD):
    """Brick, grass and gravel, 128x128, with defects of six kinds, made when first used.

    Training, validation and test crops come from disjoint parts of the photographs (public domain, shipped with
    scikit-image). The files are in MVTec AD's layout, below ``root``.

    Args:
        root: Folder to make the images in. Defaults to ``"./datasets/DemoTextures"``.
        category: ``"brick"``, ``"grass"`` or ``"gravel"``. Defaults to ``"brick"``.
        train_batch_size: Training batch size. Defaults to ``32``.
        eval_batch_size: Validation and test batch size. Defaults to ``32``.
        num_workers: Processes that load images. Defaults to ``0``; the images are small.
        val_split_mode: As in anomalib's data modules. Defaults to ``"from_train"``: normal images of a part of the
            photograph that is not trained on.
        seed: Seed of other splits. Defaults to ``0``.

    Raises:
        DskdError: If there is no such category.
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/DemoTextures",
        category: str = "brick",
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TRAIN,
        seed: int | None = 0,
    ) -> None:
        check_choice("category", category, TEXTURES)
        super().__init__(
            root=resolve_dataset_root(root, "DemoTextures"),
            category=category,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            val_split_mode=val_split_mode,
            seed=seed,
        )
        self.train_data: AnomalibDataset

    def prepare_data(self) -> None:
        """Make the category's images unless they are there."""
        if not (self.root / self.category).is_dir():
            make_category(self.root, self.category)

    def _create_val_split(self) -> None:
        if self.val_split_mode != ValSplitMode.FROM_TRAIN:
            super()._create_val_split()
            return
        held_out = self.train_data.samples.image_path.map(lambda path: Path(path).name.startswith(HELD_OUT))
        self.val_data = self.train_data.subsample(held_out[held_out].index.tolist())
        self.train_data = self.train_data.subsample(held_out[~held_out].index.tolist())


def make_category(root: Path, category: str, seed: int = 0) -> None:
    """Write a category's images and masks in MVTec AD's layout.

    Args:
        root: Folder below which the category's folder is made, whole or not at all.
        category: ``"brick"``, ``"grass"`` or ``"gravel"``.
        seed: Seed of crops and defects.
    """
    generator = np.random.default_rng([seed, TEXTURES.index(category)])
    photograph = getattr(photographs, category)()
    part = root / f".{category}.part"
    shutil.rmtree(part, ignore_errors=True)

    def save(image: np.ndarray, folder: str, name: str) -> None:
        path = part / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    for index in range(NUMBERS["train"]):
        save(_to_rgb(_crop(photograph, "train", generator)), "train/good", f"{index:03}.png")
    for index in range(NUMBERS["held_out"]):
        save(_to_rgb(_crop(photograph, "held_out", generator)), "train/good", f"{HELD_OUT}{index:03}.png")
    for index in range(NUMBERS["test"]):
        save(_to_rgb(_crop(photograph, "test", generator)), "test/good", f"{index:03}.png")
    for name, draw in DEFECTS.items():
        for index in range(NUMBERS["defects"]):
            crop = np.repeat(_crop(photograph, "test", generator)[..., None], 3, axis=2)
            image, mask = draw(crop, generator)
            save(_to_rgb(image), f"test/{name}", f"{index:03}.png")
            save(mask.astype(np.uint8) * 255, f"ground_truth/{name}", f"{index:03}_mask.png")
    part.replace(root / category)


def _crop(photograph: np.ndarray, side: str, generator: np.random.Generator) -> np.ndarray:
    """Cut a square out at random, perhaps mirrored, under slightly different light; grey levels in [0, 1]."""
    regions = REGIONS[side]
    region = photograph[regions[generator.integers(len(regions))]]
    top, left = (generator.integers(length - CROP + 1) for length in region.shape)
    crop = region[top : top + CROP, left : left + CROP] / 255
    if generator.random() < 0.5:  # noqa: PLR2004
        crop = crop[:, ::-1]
    return crop * generator.uniform(0.9, 1.1) + generator.normal(0, 0.01, crop.shape)


def _to_rgb(image: np.ndarray) -> np.ndarray:
    image = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)  # noqa: PLR2004


register(DemoTextures)
