# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Error of data."""

from anomalib_dskd.errors import DskdError


class DataError(DskdError, OSError):
    """Data that are absent or not as published; an ``OSError`` too, as a failed download has always been."""
