# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Data modules that anomalib 2.7 does not have, and checks of images."""

from .check import check_images, check_samples
from .demo import DemoTextures
from .errors import DataError
from .folder import NoImagesError
from .magnetic_tile import MagneticTile
from .mvtec import MVTec

__all__ = ["DataError", "DemoTextures", "MVTec", "MagneticTile", "NoImagesError", "check_images", "check_samples"]
