# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Accuracy in the course of training."""

import time
from copy import deepcopy

import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from anomalib.models.components.base import MemoryBankMixin
from lightning.pytorch import Callback, Trainer

from .image_metrics import image_metrics

FILE = "training_curve.csv"


class TrainingCurve(Callback):
    """Test a copy of the model at equal distances of steps, without taking part in its training.

    A model that is not trained by gradient has nothing to show before its end, and is left alone. The figures are there
    to be looked at: nothing is chosen by them.

    Args:
        data: Data module that is set up; its test images are tested.
        tests: Number of tests, the last one after the last step; 0 for none.

    Attributes:
        points: Step, seconds of training until then without those of the tests, and image AUROC, one for each test.
        paused: Seconds that the tests took.
    """

    def __init__(self, data: AnomalibDataModule, tests: int) -> None:
        self.data, self.tests = data, tests
        self.points: list[dict[str, float]] = []
        self.paused = 0.0
        self._started = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Start the clock, before what a model does ahead of its first step."""
        del trainer, pl_module
        self._started = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: AnomalibModule, *args, **kwargs) -> None:
        """Test, where it is time to."""
        del args, kwargs
        total, step = trainer.estimated_stepping_batches, trainer.global_step
        if isinstance(pl_module, MemoryBankMixin) or np.isinf(total) or step * self.tests // total <= len(self.points):
            return
        began = time.monotonic()
        seconds = began - self._started - self.paused
        self.points.append({"step": step, "seconds": seconds, "image_AUROC": self._test(pl_module)})
        self.paused += time.monotonic() - began

    @torch.no_grad()
    def _test(self, model: AnomalibModule) -> float:
        network, labels, scores = deepcopy(model.model).eval(), [], []
        with torch.random.fork_rng():  # a loader draws a number, and training would go on otherwise
            for batch in self.data.test_dataloader():
                output = network(model.pre_processor(batch.image.to(model.device)))
                score = output.anomaly_map.flatten(1).amax(dim=1) if output.pred_score is None else output.pred_score
                scores.append(score.flatten().float().cpu())
                labels.append(batch.gt_label)
        return image_metrics(torch.cat(scores).numpy(), torch.cat(labels).bool().numpy())["image_AUROC"]

    def table(self) -> pd.DataFrame:
        """Return the points as a table, empty where there was nothing to test."""
        return pd.DataFrame(self.points, columns=["step", "seconds", "image_AUROC"])
