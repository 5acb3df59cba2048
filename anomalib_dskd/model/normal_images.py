# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""One look at the normal images before training."""

from collections.abc import Iterator, Sequence

import torch
from anomalib.data.utils import LabelName, ValSplitMode
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from rich.progress import track
from torch.utils.data import DataLoader, IterableDataset, Subset, SubsetRandomSampler

MOST = 4096
TITLE = "Looking at the normal images"


def normal_images(trainer: Trainer) -> Iterator[tuple[torch.Tensor, Sequence[str | None], bool]]:
    """Yield each normal image once, as training will see it, on every process of a distributed run.

    First those of training, of more than 4096 as many, evenly spread; then those that were held out of them for a
    threshold (``val_split_mode="from_train"``). The process's random state is left as it was. Without one data set of
    known length there is nothing to look at before training, and a warning says so.

    Args:
        trainer: Trainer that is about to train.

    Yields:
        Images ``(B, 3, H, W)``, not yet normalised, their paths, ``None`` where they have none, and whether they are
        held out.
    """
    loader = trainer.fit_loop._data_source.dataloader()  # noqa: SLF001  # no public name leads to it before training
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        rank_zero_warn(
            "The training images are not one data set of known length, so that none was looked at before training: the "
            "image score will not know how unusual an image is as a whole (whole_image)."
        )
        return
    sampler = loader.sampler
    seen = sorted(sampler.indices) if isinstance(sampler, SubsetRandomSampler) else range(len(loader.dataset))  # type: ignore[arg-type]
    total = len(seen)
    chosen = Subset(loader.dataset, [seen[index * total // min(total, MOST)] for index in range(min(total, MOST))])
    batches = DataLoader(chosen, loader.batch_size or 1, num_workers=loader.num_workers, collate_fn=loader.collate_fn)
    looks = [(batches, False)]
    if getattr(trainer.datamodule, "val_split_mode", None) == ValSplitMode.FROM_TRAIN:
        looks.append((trainer.datamodule.val_dataloader(), True))
    silent = not trainer.is_global_zero or trainer.progress_bar_callback is None
    with isolate_rng(), torch.no_grad():
        for images, held_out in looks:
            for batch in track(images, TITLE, disable=silent):
                number = len(batch.image)
                normal = [True] * number if batch.gt_label is None else (batch.gt_label == LabelName.NORMAL).tolist()
                paths = [None] * number if batch.image_path is None else batch.image_path
                of_normal = [path for path, is_normal in zip(paths, normal, strict=True) if is_normal]
                yield batch.image[normal], of_normal, held_out
