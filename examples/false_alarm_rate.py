# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""False-alarm rates asked for, against those seen on the normal test images.

Thresholds come from the normal images held out of training (the checkpoint must have been trained with the same
data arguments); the interval is the exact binomial one (Clopper and Pearson, 95 %).

python examples/false_alarm_rate.py --ckpt model.ckpt --data MagneticTile
"""

import sys

import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import Dskd
from jsonargparse import ArgumentParser
from scipy.stats import binomtest
from torch.utils.data import DataLoader

from anomalib_dskd.model.threshold import false_alarm_threshold


def raw_scores(model: Dskd, loader: DataLoader) -> tuple[np.ndarray, np.ndarray]:
    """Predict images; return raw scores and labels, both ``(N,)``."""
    model.visualizer = None
    batches = Engine(accelerator="cpu").predict(model, dataloaders=loader)
    scores = torch.cat([batch.raw_score for batch in batches]).numpy()
    return scores, torch.cat([batch.gt_label for batch in batches]).numpy()


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=str, required=True, help="checkpoint of a trained Dskd")
    parser.add_argument("--rates", type=list[float], default=[0.01, 0.05], help="false-alarm rates")
    parser.add_subclass_arguments(AnomalibDataModule, "data")
    config = parser.instantiate_classes(parser.parse_args(arguments))
    model = Dskd.load_from_checkpoint(config.ckpt)
    config.data.setup()
    for data in (config.data.val_data, config.data.test_data):
        data.augmentations = model.pre_processor.transform.transforms[0]  # the resize
    held_out, held_out_labels = raw_scores(model, config.data.val_dataloader())
    scores, labels = raw_scores(model, config.data.test_dataloader())
    if held_out_labels.any():
        sys.exit("The validation images are not all normal: give --data.val_split_mode from_train.")
    print(f"{held_out.size} held-out normal images, {(~labels).sum()} normal and {labels.sum()} defective test images")
    print("asked   threshold  alarms on normal test images         defects found")
    for rate in config.rates:
        threshold = false_alarm_threshold(held_out, rate)
        alarms = scores > threshold
        seen = binomtest(int(alarms[~labels].sum()), int((~labels).sum()))
        interval = seen.proportion_ci()
        print(
            f"{rate:5.1%}  {threshold:10.4f}  {seen.k}/{seen.n} = {seen.statistic:.1%} "
            f"[{interval.low:.1%}, {interval.high:.1%}]         {alarms[labels].mean():.1%}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])

# Prints:
# 153 held-out normal images, 200 normal and 392 defective test images
# asked   threshold  alarms on normal test images         defects found
#  1.0%      1.1090  7/200 = 3.5% [1.4%, 7.1%]         29.6%
#  5.0%      0.9704  16/200 = 8.0% [4.6%, 12.7%]         45.9%
