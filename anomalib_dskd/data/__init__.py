# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Data modules that anomalib 2.7 does not have."""

from .mvtec import MVTec

__all__ = ["MVTec"]
