# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Make Dskd known to every anomalib process, though anomalib has no plugin mechanism.

PyTorch calls the entry points of the group ``torch.backends`` at the end of ``import torch``, and anomalib imports
torch. :func:`autoload` is such an entry point. At that moment anomalib may be absent, half imported or complete, so
it does no more than wait for the last module that ``anomalib.data`` and ``anomalib.models`` import; only then are
the plugin's classes imported and put where anomalib looks for its own.

Switch it off with ``TORCH_DEVICE_BACKEND_AUTOLOAD=0``; ``--model anomalib_dskd.Dskd`` works all the same.
"""

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

DOORS = (
    # last module imported by the package, package, plugin module, class
    ("anomalib.data.predict", "anomalib.data", "anomalib_dskd.data.mvtec", "MVTec"),
    ("anomalib.data.predict", "anomalib.data", "anomalib_dskd.data.magnetic_tile", "MagneticTile"),
    ("anomalib.data.predict", "anomalib.data", "anomalib_dskd.data.demo", "DemoTextures"),
    ("anomalib.models.video", "anomalib.models", "anomalib_dskd.model.lightning_model", "Dskd"),
)
SUPPORTED_MAJOR, SUPPORTED_MINOR = 2, 7


def autoload() -> None:
    """Wait for anomalib. Called inside ``import torch``: must not fail, print, or take time."""
    try:
        from wrapt import register_post_import_hook

        for trigger, package, module, name in DOORS:
            register_post_import_hook(_guarded(package, module, name), trigger)
    except Exception as error:  # noqa: BLE001
        _warn(error)


def register(cls: type[Any]) -> None:
    """Put a class where anomalib looks for its own; called at the end of the module that defines it.

    The package may be half imported, and so may the plugin's module have been when anomalib was complete: whichever
    of the two comes last finds the other.
    """
    for _, package, module, name in DOORS:
        if (cls.__module__, cls.__name__) == (module, name) and package in sys.modules:
            vars(sys.modules[package]).setdefault(name, cls)


def _guarded(package: str, module: str, name: str) -> Callable[[object], None]:
    def hook(_: object) -> None:
        try:
            _check_version()
            cls = getattr(import_module(module), name, None)  # None: half imported, and registers itself later
            if cls is not None:
                vars(sys.modules[package]).setdefault(name, cls)
        except Exception as error:  # noqa: BLE001
            _warn(error)

    return hook


def _check_version() -> None:
    from importlib.metadata import version

    installed = version("anomalib")
    major, minor = (int(part) for part in installed.split(".")[:2])
    if major != SUPPORTED_MAJOR or minor < SUPPORTED_MINOR:
        msg = (
            f"anomalib>={SUPPORTED_MAJOR}.{SUPPORTED_MINOR},<{SUPPORTED_MAJOR + 1} is needed, {installed} is installed"
        )
        raise ImportError(msg)


def _warn(error: Exception) -> None:
    if getattr(_warn, "done", False):
        return
    _warn.done = True  # type: ignore[attr-defined]
    warnings.warn(
        f"anomalib-dskd is not available in this process: {type(error).__name__}: {error}. Other models work. "
        "TORCH_DEVICE_BACKEND_AUTOLOAD=0 silences this.",
        stacklevel=2,
    )
