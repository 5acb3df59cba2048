# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""False-alarm rates asked for, against those seen on the normal test parts.

Thresholds come from the normal images held out of training (the checkpoint must have been trained with the same
data arguments). A part is an alarm if one of its photographs is; where the data do not tell parts, each image is one.
The interval is the exact binomial one (Clopper and Pearson, 95 %). As one division into held-out and test parts says
little about a rate of 1 %, the last column is the mean rate of 1000 random divisions of the same parts, none of which
was trained on.

python examples/false_alarm_rate.py --ckpt model.ckpt --data MagneticTile
"""

import sys

import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import Dskd
from jsonargparse import ArgumentParser
from scipy.stats import binomtest
from torch.utils.data import DataLoader

from anomalib_dskd.model.threshold import false_alarm_threshold

DIVISIONS = 1000


def raw_scores(model: Dskd, loader: DataLoader, held_out: bool) -> pd.DataFrame:
    """Predict images; return the highest raw score and the label of each part."""
    model.visualizer = None
    network = model.model
    network.predict = lambda *arguments: type(network).predict(network, *arguments[:4], held_out=held_out)
    batches = Engine(accelerator="cpu").predict(model, dataloaders=loader)
    samples = loader.dataset.samples
    table = pd.DataFrame({"part": samples.get("part", samples.image_path)})
    table["score"] = torch.cat([batch.raw_score for batch in batches]).numpy()
    table["defective"] = torch.cat([batch.gt_label for batch in batches]).numpy()
    return table.groupby("part").max()


def mean_rate(scores: np.ndarray, held_out: int, rate: float) -> float:
    """Divide normal scores at random, again and again; return the mean share above the threshold of the held-out."""
    generator = np.random.default_rng(0)
    divisions = (generator.permutation(scores) for _ in range(DIVISIONS))
    return np.mean([np.mean(d[held_out:] > false_alarm_threshold(d[:held_out], rate)) for d in divisions])


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
    held_out = raw_scores(model, config.data.val_dataloader(), held_out=True)
    if held_out.defective.any():
        sys.exit("The validation images are not all normal: give --data.val_split_mode from_train.")
    test = raw_scores(model, config.data.test_dataloader(), held_out=False)
    normal, defective = test.score[~test.defective], test.score[test.defective]
    print(f"{len(held_out)} held-out normal parts, {len(normal)} normal and {len(defective)} defective test parts")
    print("asked   threshold  alarms on normal test parts     defects found   mean of 1000 divisions")
    for rate in config.rates:
        threshold = false_alarm_threshold(held_out.score.to_numpy(), rate)
        seen = binomtest(int((normal > threshold).sum()), len(normal))
        interval = seen.proportion_ci()
        again = mean_rate(np.concatenate([held_out.score, normal]), len(held_out), rate)
        print(
            f"{rate:5.1%}  {threshold:10.4f}  {seen.k}/{seen.n} = {seen.statistic:.1%} "
            f"[{interval.low:.1%}, {interval.high:.1%}]         {(defective > threshold).mean():.1%}     {again:.1%}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])

# Prints:
# 14 held-out normal parts, 35 normal and 76 defective test parts
# asked   threshold  alarms on normal test parts     defects found   mean of 1000 divisions
#  1.0%     16.2458  0/35 = 0.0% [0.0%, 10.0%]         0.0%     3.0%
#  5.0%      8.2045  2/35 = 5.7% [0.7%, 19.2%]         3.9%     6.8%
