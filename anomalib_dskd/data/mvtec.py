# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The name under which MVTec AD is known."""

from anomalib.data.datamodules.image.mvtecad import MVTecAD

from anomalib_dskd.registration import register


class MVTec(MVTecAD):
    """MVTec AD under the name that anomalib's documentation uses and 2.7 removed; same arguments and defaults."""


register(MVTec)
