# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""A helping hand where one of the folders of anomalib's ``Folder`` has no images."""

from collections.abc import Callable
from typing import Any

import pandas as pd
from wrapt import wrap_function_wrapper

from .errors import DataError


class NoImagesError(DataError, RuntimeError):
    """A folder that is absent or has no images; a ``RuntimeError`` too, as anomalib's of an empty one is."""


def make_folder_dataset(
    wrapped: Callable[..., pd.DataFrame], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> pd.DataFrame:
    """Have anomalib list the images, and say what to do where it finds none.

    Raises:
        NoImagesError: If a folder is absent or has no images.
    """
    try:
        return wrapped(*args, **kwargs)
    except (RuntimeError, FileNotFoundError) as error:
        msg = (
            f"{error}. Good parts belong into normal_dir (--data.normal_dir), defective ones, if there are any, into "
            "abnormal_dir, each relative to root (--data.root)."
        )
        raise NoImagesError(msg) from error


wrap_function_wrapper("anomalib.data.datasets.image.folder", "make_folder_dataset", make_folder_dataset)
