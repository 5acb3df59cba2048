# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""One look at the training images before training."""

from collections.abc import Iterator

import torch
from anomalib.data.utils import LabelName
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from rich.progress import track
from torch.utils.data import DataLoader, Subset

MOST = 4096
TITLE = "Looking at the training images"


def normal_images(trainer: Trainer) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """Yield each normal training image once, as training will see it, on every process of a distributed run.

    Of more than 4096 images as many, evenly spread. The process's random state is left as it was.

    Args:
        trainer: Trainer that is about to train.

    Yields:
        Images ``(B, 3, H, W)``, not yet normalised, and their paths.
    """
    loader = trainer.fit_loop._data_source.dataloader()  # noqa: SLF001  # no public name leads to it before training
    if not isinstance(loader, DataLoader):  # several at once: training will say what it thinks of it
        return
    total = len(loader.dataset)  # type: ignore[arg-type]
    chosen = Subset(loader.dataset, [index * total // min(total, MOST) for index in range(min(total, MOST))])
    batches = DataLoader(chosen, loader.batch_size or 1, num_workers=loader.num_workers, collate_fn=loader.collate_fn)
    silent = not trainer.is_global_zero or trainer.progress_bar_callback is None
    with isolate_rng(), torch.no_grad():
        for batch in track(batches, TITLE, disable=silent):
            normal = batch.gt_label == LabelName.NORMAL
            yield (
                batch.image[normal],
                [path for path, is_normal in zip(batch.image_path, normal, strict=True) if is_normal],
            )
