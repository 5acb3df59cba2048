# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Callbacks that watch a cell's training and test without taking part."""

import time
from pathlib import Path

import numpy as np
import torch
from anomalib.data import ImageBatch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch.nn import functional as F  # noqa: N812

from .pixel_metrics import PixelMetrics
from .store import PROGRESS, write_json

GALLERY_SIDE = 96
TENTH = 10
STILL_IMPROVING = 0.02


class LossCurve(Callback):
    """Record the training loss of each step, to tell whether the model was still improving at the end."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, *args, **kwargs
    ) -> None:
        """Record a step's loss."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            self.losses.append(float(loss))

    @property
    def converged(self) -> bool | None:
        """Tell whether the mean loss of the last tenth of the steps is within 2 % of that of the tenth before.

        ``True`` for models that are not trained by gradient, whose loss is constant; ``None`` below 20 steps.
        """
        if len(set(self.losses)) <= 1:
            return True
        tenth = len(self.losses) // TENTH
        if tenth < 2:  # noqa: PLR2004
            return None
        last, before = np.mean(self.losses[-tenth:]), np.mean(self.losses[-2 * tenth : -tenth])
        return bool(before - last <= STILL_IMPROVING * abs(before))


class Progress(Callback):
    """Write twice a second how far a cell is, for the runner to show.

    Args:
        folder: The cell's working folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / PROGRESS
        self._written = 0.0

    def on_train_batch_end(self, trainer: Trainer, *args, **kwargs) -> None:
        """Tell the step."""
        if time.monotonic() - self._written < 0.5:  # noqa: PLR2004
            return
        self._written = time.monotonic()
        total = trainer.estimated_stepping_batches
        write_json(
            self.path,
            {
                "stage": "train",
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                "steps": None if total == float("inf") else int(total),
            },
        )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the stage."""
        write_json(self.path, {"stage": "validate"})

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the stage."""
        write_json(self.path, {"stage": "test"})


class RawPredictions(Callback):
    """Take raw scores and maps before anomalib's post-processor, whose callback comes later, normalises them.

    Attributes:
        paths: Image files in the order of the test.
        scores: Raw image scores, ``(N,)`` once joined.
        labels: Whether images are defective.
        maps: Raw maps of at most 96x96 for the gallery, float16.
        pixels: Metrics of all pixels at the resolution of the map.
    """

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.scores: list[float] = []
        self.labels: list[bool] = []
        self.maps: list[np.ndarray] = []
        self.pixels = PixelMetrics()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: ImageBatch,
        *args,
        **kwargs,
    ) -> None:
        """Take a batch."""
        maps, scores = outputs.anomaly_map, outputs.pred_score
        if maps is not None:
            maps = maps.detach().float().cpu().reshape(len(maps), *maps.shape[-2:])
        if scores is None:
            scores = maps.amax(dim=(-2, -1))
        self.paths += outputs.image_path
        self.scores += scores.detach().float().flatten().tolist()
        self.labels += outputs.gt_label.bool().flatten().tolist()
        if maps is None:
            return
        side = [min(GALLERY_SIDE, length) for length in maps.shape[-2:]]
        self.maps.append(F.adaptive_avg_pool2d(maps[:, None], side)[:, 0].half().numpy())
        if outputs.gt_mask is not None:
            masks = outputs.gt_mask.float().reshape(len(maps), *outputs.gt_mask.shape[-2:])
            # the highest value, so that a defect of few pixels does not vanish
            masks = F.adaptive_max_pool2d(masks, maps.shape[-2:])
            self.pixels.update(maps, masks.bool(), outputs.gt_label.flatten().bool())
