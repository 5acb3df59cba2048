# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""From a checkpoint to a bundle for the factory.

``graph.py`` is what is converted, ``quantize.py`` its 8-bit form, ``bundle.py`` the folder that is written, and
``verify.py`` shows that it decides as the checkpoint does. What runs it is :mod:`anomalib_dskd.inspector`.
"""

from .bundle import export
from .verify import verify

__all__ = ["export", "verify"]
