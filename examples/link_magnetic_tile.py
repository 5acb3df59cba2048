# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Arrange Magnetic Tile Defects for anomalib's ``Folder`` by the columns of a split file, with links, not copies.

python examples/link_magnetic_tile.py --root ../shared/data/magnetic_tile --out /tmp/magnetic_tile
"""

from pathlib import Path

import pandas as pd
from jsonargparse import auto_cli


def main(root: Path, out: Path, splits: tuple[str, ...] = ("differnet", "tile_disjoint")) -> None:
    """Write ``OUT/SPLIT/{train/good,test/good,test/defective,masks}``.

    Args:
        root: Folder of the data set; its ``split.csv`` has a column ``path``, ``class``, and one for each split.
        out: Folder to write.
        splits: Columns of the split file to arrange.
    """
    table = pd.read_csv(root / "split.csv")
    for split in splits:
        for path, kind, side in zip(table["path"], table["class"], table[split], strict=True):
            image = (root / path).resolve()
            normal = kind == "Free"
            folder = "train/good" if side == "train" else "test/good" if normal else "test/defective"
            link(image, out / split / folder / f"{kind}_{image.name}")
            if not normal:
                link(image.with_suffix(".png"), out / split / "masks" / f"{kind}_{image.stem}.png")
        print(split, {folder.name: len(list(folder.iterdir())) for folder in sorted((out / split).glob("*/*/"))})


def link(target: Path, path: Path) -> None:
    """Link a file once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.symlink_to(target)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
