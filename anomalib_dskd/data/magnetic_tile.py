# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Magnetic Tile Defects, with splits that do and do not share tiles between training and test."""

import re
from pathlib import Path

import pandas as pd
from anomalib.data.datamodules.base.image import AnomalibDataModule
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from anomalib.utils.path import resolve_dataset_root
from sklearn.model_selection import GroupShuffleSplit
from torchvision.transforms.v2 import Transform

from anomalib_dskd.errors import check_choice
from anomalib_dskd.registration import register

from .errors import DataError
from .magnetic_tile_splits import DEV_TILES, NORMAL_IMAGES, TEST_TILES

CLASSES = ("Free", "Blowhole", "Break", "Crack", "Fray", "Uneven")
NORMAL = "Free"
PROTOCOLS = ("tile_disjoint", "differnet")
HALVES = ("all", "dev", "report")
LIST = "mtd_train_filenames.txt"
NAME = re.compile(r"exp(\d+)_num_(\d+)")
NEW_TILE_JUMP = 250
SOURCE = (
    "https://github.com/abin24/Magnetic-tile-defect-datasets. (Huang, Qiu, Yuan, Surface defect saliency of magnetic "
    "tile, The Visual Computer 2020; public, please cite)"
)


class MagneticTile(AnomalibDataModule):
    """Magnetic Tile Defects (Huang, Qiu & Yuan, The Visual Computer 2020).

    The images of a tile under up to six exposures are near-duplicates. So there are two protocols: ``differnet``
    trains on the 761 normal images of DifferNet's published list, comparable with the literature, though nearly all
    of its normal test images show a tile that is also trained on; ``tile_disjoint`` trains on 752 images and tests
    on the 200 of 35 other tiles. All 392 defective images are tested on in both. Validation images are held out
    by tile.

    Args:
        root: Folder of ``MT_Free``, ``MT_Blowhole``, ... as published, each with ``Imgs/*.jpg`` and its masks
            ``Imgs/*.png``. Defaults to ``"./datasets/MagneticTile"``.
        protocol: ``"tile_disjoint"`` or ``"differnet"``. Defaults to ``"tile_disjoint"``.
        train_list: DifferNet's list of training images, one file name a line, which ``differnet`` needs. Defaults to
            ``mtd_train_filenames.txt`` in the root.
        half: Of the test images, halved by tile, ``"dev"`` (for choices), ``"report"`` (for figures) or ``"all"``.
        train_batch_size: Training batch size. Defaults to ``32``.
        eval_batch_size: Validation and test batch size. Defaults to ``32``.
        num_workers: Processes that load images. Defaults to ``8``.
        train_augmentations: Augmentations of training images.
        val_augmentations: Augmentations of validation images.
        test_augmentations: Augmentations of test images.
        augmentations: Augmentations where no specific ones are given.
        val_split_mode: As in anomalib's data modules. Defaults to ``"from_train"``: normal images of held-out tiles.
        val_split_ratio: Share of tiles held out. Defaults to ``0.2``.
        seed: Seed of the held-out tiles. Defaults to ``0``.

    Raises:
        DskdError: If an argument has a value that is not offered.
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/MagneticTile",
        protocol: str = "tile_disjoint",
        train_list: Path | str | None = None,
        half: str = "all",
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 8,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TRAIN,
        val_split_ratio: float = 0.2,
        seed: int | None = 0,
    ) -> None:
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=TestSplitMode.FROM_DIR,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        self.root = resolve_dataset_root(root, "MagneticTile")
        self.protocol = check_choice("protocol", protocol, PROTOCOLS)
        self.half = check_choice("half", half, HALVES)
        self.train_list = self.root / LIST if train_list is None else Path(train_list)
        self.category = protocol if half == "all" else f"{protocol}_{half}"

    def prepare_data(self) -> None:
        """Check that the images are there; their source offers no archive to download.

        Raises:
            DataError: If they are not, or not all.
        """
        absent = [f"MT_{name}" for name in CLASSES if not (self.root / f"MT_{name}" / "Imgs").is_dir()]
        if absent:
            msg = (
                f"{self.root} has no {', '.join(absent)}. Get Magnetic Tile Defects from {SOURCE}, put its MT_* "
                "folders there, or give their folder as root (--data.root)."
            )
            raise DataError(msg)
        if self.protocol == "differnet" and not self.train_list.is_file():
            msg = (
                f"There is no {self.train_list}, the training images of protocol='differnet': {LIST} of "
                "https://github.com/marco-rudolph/differnet. Put it there, or give it as train_list."
            )
            raise DataError(msg)

    def _setup(self, _stage: str | None = None) -> None:
        arguments = (self.root, self.protocol, self.train_list, self.half)
        self.train_data = MagneticTileDataset(*arguments, split=Split.TRAIN)
        self.test_data = MagneticTileDataset(*arguments, split=Split.TEST)

    def _create_val_split(self) -> None:
        """Split as anomalib does, but by tile."""
        if self.val_split_mode == ValSplitMode.FROM_TRAIN:
            self.train_data, self.val_data = self._split_by_tile(self.train_data)
        elif self.val_split_mode == ValSplitMode.FROM_TEST:
            self.test_data, self.val_data = self._split_by_tile(self.test_data)
        elif self.val_split_mode == ValSplitMode.SYNTHETIC:
            self.train_data, normal = self._split_by_tile(self.train_data)
            self.val_data = SyntheticAnomalyDataset.from_dataset(normal)
        else:
            super()._create_val_split()

    def _split_by_tile(self, dataset: AnomalibDataset) -> list[AnomalibDataset]:
        split = GroupShuffleSplit(n_splits=1, test_size=self.val_split_ratio, random_state=self.seed)
        return [
            dataset.subsample(indices) for indices in next(split.split(dataset.samples, groups=dataset.samples.part))
        ]


class MagneticTileDataset(AnomalibDataset):
    """Images of one side of a split; arguments as in :class:`MagneticTile`.

    Args:
        root: Folder of the ``MT_*`` folders.
        protocol: ``"tile_disjoint"`` or ``"differnet"``.
        train_list: DifferNet's list, for ``"differnet"``.
        half: ``"all"``, ``"dev"`` or ``"report"``; of the test side only.
        split: ``"train"`` or ``"test"``.
        augmentations: Augmentations of the images.
    """

    def __init__(
        self,
        root: Path | str,
        protocol: str = "tile_disjoint",
        train_list: Path | str | None = None,
        half: str = "all",
        split: Split | str = Split.TRAIN,
        augmentations: Transform | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        self.split = split
        self.category = protocol
        samples = make_magnetic_tile_dataset(root, protocol, train_list)
        samples = samples[samples.split == Split(split).value]
        if half != "all" and Split(split) == Split.TEST:
            samples = samples[samples.half == half]
        samples.attrs["task"] = "segmentation"
        self.samples = samples.reset_index(drop=True)


def make_magnetic_tile_dataset(
    root: Path | str, protocol: str = "tile_disjoint", train_list: Path | str | None = None
) -> pd.DataFrame:
    """List all images with their side of a split.

    A new tile begins, among the images of a class sorted by number, where the exposure does not rise or the number
    jumps by more than 250.

    Args:
        root: Folder of the ``MT_*`` folders.
        protocol: ``"tile_disjoint"`` or ``"differnet"``.
        train_list: DifferNet's list, for ``"differnet"``.

    Returns:
        Table of ``image_path``, ``mask_path``, ``label`` (the class), ``label_index``, ``part`` (the tile), ``split``
        (train or test) and ``half`` (dev, report, or empty for training images).

    Raises:
        DataError: If images or masks are missing, or the list names images that are not there.
    """
    samples = pd.concat([_list_class(Path(root), name) for name in CLASSES], ignore_index=True)
    normal = samples.label == NORMAL
    if protocol == "differnet":
        listed = set(Path(str(train_list)).read_text(encoding="utf-8").split())
        names = samples.image_path.map(lambda path: Path(path).name)
        unknown = sorted(listed - set(names[normal]))
        if unknown:
            msg = f"{train_list} names {len(unknown)} images that {root}/MT_Free/Imgs lacks, such as {unknown[0]}."
            raise DataError(msg)
        train = normal & names.isin(listed)
    else:
        if normal.sum() != NORMAL_IMAGES:
            msg = (
                f"{root}/MT_Free/Imgs has {normal.sum()} images, the published set {NORMAL_IMAGES}; tiles are counted "
                f"off among all of them, so 'tile_disjoint' needs the whole set. Get it from {SOURCE}."
            )
            raise DataError(msg)
        train = normal & ~samples.number.isin(TEST_TILES)
    dev = [row.number in DEV_TILES[protocol][row.label] for row in samples.itertuples()]
    samples["split"] = train.map({True: "train", False: "test"})
    samples["half"] = pd.Series(dev, index=samples.index).map({True: "dev", False: "report"}).mask(train, "")
    samples["mask_path"] = samples.mask_path.mask(normal, "")
    samples["label_index"] = normal.map({True: LabelName.NORMAL, False: LabelName.ABNORMAL}).astype(int)
    return samples.drop(columns="number")


def _list_class(root: Path, name: str) -> pd.DataFrame:
    images = []
    for path in (root / f"MT_{name}" / "Imgs").glob("*.jpg"):
        match = NAME.match(path.name)
        if match is None:
            msg = f"{path} is not named as published, exp<exposure>_num_<number>.jpg."
            raise DataError(msg)
        mask = path.with_suffix(".png")
        if name != NORMAL and not mask.is_file():
            msg = f"{mask}, the mask of {path.name}, is missing."
            raise DataError(msg)
        exposure, number = (int(group) for group in match.groups())
        images.append((number, exposure, str(path), str(mask)))
    samples = pd.DataFrame(sorted(images), columns=["order", "exposure", "image_path", "mask_path"])
    begins = (samples.exposure.diff() <= 0) | (samples.order.diff() > NEW_TILE_JUMP)
    samples["number"] = begins.cumsum()
    samples["part"] = samples.number.map(lambda number: f"{name}-{number:03}")
    samples["label"] = name
    return samples.drop(columns=["order", "exposure"])


register(MagneticTile)
