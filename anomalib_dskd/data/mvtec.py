# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""MVTec AD under the name by which it is known, and a helping hand where it or MVTec 3D-AD is absent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pandas as pd
from anomalib.data.datamodules.depth.mvtec_3d import MVTec3D
from anomalib.data.datamodules.image.mvtecad import MVTecAD
from anomalib.data.datasets.depth.mvtec_3d import CATEGORIES as CATEGORIES_3D
from anomalib.data.datasets.image.mvtecad import CATEGORIES
from lightning.pytorch.trainer.states import TrainerFn
from wrapt import wrap_function_wrapper

from anomalib_dskd.registration import register

from .errors import DataError

# folder of normal training images within a category
TRAIN = {MVTecAD: "train/good", MVTec3D: "train/good/rgb"}
PUBLISHED = {MVTecAD: CATEGORIES, MVTec3D: CATEGORIES_3D}
SOURCES = {
    MVTecAD: "MVTec AD: https://www.mvtec.com/company/research/datasets/mvtec-ad",
    MVTec3D: "MVTec 3D-AD: https://www.mvtec.com/company/research/datasets/mvtec-3d-ad",
}


class MVTec(MVTecAD):
    """MVTec AD under the name that anomalib's documentation uses and 2.7 removed; same arguments and defaults."""


def prepare_data(
    wrapped: Callable[..., None], instance: MVTecAD | MVTec3D, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Have anomalib prepare the data, and say what to do where it cannot.

    Raises:
        DataError: If the category does not exist, has no normal images, or can be neither found nor downloaded.
    """
    kind = MVTecAD if isinstance(instance, MVTecAD) else MVTec3D
    root, category = Path(instance.root), instance.category
    there = sorted(path.parents[len(Path(TRAIN[kind]).parts) - 1].name for path in root.glob(f"*/{TRAIN[kind]}"))
    folder = root / category
    if not folder.is_dir() and category not in PUBLISHED[kind]:
        known = (
            f"{root} has {', '.join(there)}"
            if there
            else f"{root} has none; the published ones are " + ", ".join(PUBLISHED[kind])
        )
        msg = f"There is no category {category!r}: {known}."
        raise DataError(msg)
    new_root = not root.exists()
    try:
        wrapped(*args, **kwargs)
    except URLError as error:
        if new_root and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
        also = f" There are {', '.join(there)}." if there else ""
        msg = (
            f"{folder} does not exist, and the data set cannot be downloaded ({error.reason}).{also} Get "
            f"{SOURCES[kind]} (CC BY-NC-SA 4.0), unpack it so that {folder / TRAIN[kind]} holds images, or give its "
            "folder as root (--data.root)."
        )
        raise DataError(msg) from error
    is_training = instance.trainer is not None and instance.trainer.state.fn == TrainerFn.FITTING
    searched = folder / TRAIN[kind] if is_training else folder
    if not any(path.suffix.lower() == ".png" for path in searched.rglob("*")):
        msg = (
            f"{searched} has no .png images. Good parts to train on belong into {folder / TRAIN[kind]}; for images of "
            "other formats or in other folders use --data Folder."
        )
        raise DataError(msg)


def _without_nan(
    wrapped: Callable[..., pd.DataFrame], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> pd.DataFrame:
    """Give images without a mask an empty path; pandas 3 leaves them the NaN that anomalib then refuses."""
    return wrapped(*args, **kwargs).fillna({"mask_path": ""})


wrap_function_wrapper("anomalib.data.datasets.depth.mvtec_3d", "make_mvtec_3d_dataset", _without_nan)
for datamodule in TRAIN:
    wrap_function_wrapper(datamodule, "prepare_data", prepare_data)
register(MVTec)
