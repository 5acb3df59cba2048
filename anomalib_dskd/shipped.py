# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Configurations that ship with the package."""

from pathlib import Path


def find_config(name: str) -> Path | None:
    """Find a configuration in the wheel or beside a checkout's package.

    Args:
        name: Path under ``configs``, such as ``"demo.yaml"``.

    Returns:
        The file; ``None`` where there is none of that name.
    """
    package = Path(__file__).parent
    folders = (package / "configs", package.parent / "configs")
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
