# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Dual-Student Knowledge Distillation (DSKD, arXiv 2402.00448) for anomalib.

This file is imported inside ``import torch`` (see :mod:`anomalib_dskd.registration`), so it imports nothing itself.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import Dskd, DskdModel

__version__ = "0.1.0"
__all__ = ["Dskd", "DskdModel"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("anomalib_dskd.model"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
