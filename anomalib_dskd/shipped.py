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
    return next((folder / name for folder in _folders() if (folder / name).is_file()), None)


def list_configs(folder: str) -> list[str]:
    """Return the names of the configurations in a folder under ``configs``, without ``.yaml``."""
    return sorted({path.stem for parent in _folders() for path in (parent / folder).glob("*.yaml")})


def _folders() -> tuple[Path, Path]:
    package = Path(__file__).parent
    return package / "configs", package.parent / "configs"
