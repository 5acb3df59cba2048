# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Image and pixel AUROC of the fused map and of each student alone, on raw scores.

anomalib's own table ranks scores that were clamped to [0, 1]; this one ranks what the network gives, with scikit-learn.

python examples/student_scores.py --ckpt model.ckpt --data MVTec --data.category toothbrush
"""

import sys

import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import Dskd
from jsonargparse import ArgumentParser
from sklearn.metrics import roc_auc_score


def raw_maps(model: Dskd, data: AnomalibDataModule) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Predict the test images.

    Args:
        model: Trained model; its post-processor is left out, so that maps and scores stay raw.
        data: Data whose test images are predicted.

    Returns:
        Maps ``(N, H, W)`` by name, labels ``(N,)`` and masks ``(N, H, W)``.
    """
    model.post_processor = model.visualizer = model.evaluator = None
    batches = Engine(accelerator="cpu").predict(model, datamodule=data)
    maps = {"fused": torch.cat([batch.anomaly_map.squeeze(1) for batch in batches]).numpy()}
    for student in ("encoder", "decoder"):
        if getattr(batches[0], f"{student}_map") is not None:
            maps[student] = torch.cat([getattr(batch, f"{student}_map") for batch in batches]).numpy()
    labels = torch.cat([batch.gt_label for batch in batches]).numpy()
    masks = torch.cat([batch.gt_mask for batch in batches]).numpy()
    return maps, labels, masks


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=str, required=True, help="checkpoint of a trained Dskd")
    parser.add_subclass_arguments(AnomalibDataModule, "data")
    config = parser.instantiate_classes(parser.parse_args(arguments))
    maps, labels, masks = raw_maps(Dskd.load_from_checkpoint(config.ckpt), config.data)
    print(f"{labels.size} images, {int(labels.sum())} of them defective")
    print("map      image AUROC  pixel AUROC")
    for name, values in maps.items():
        image = roc_auc_score(labels, values.max(axis=(1, 2)))
        pixel = roc_auc_score(masks.ravel() > 0, values.ravel())
        print(f"{name:8} {image:11.4f}  {pixel:11.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])

# Prints:
# 592 images, 392 of them defective
# map      image AUROC  pixel AUROC
# fused         0.7727       0.6842
# encoder       0.7431       0.6850
# decoder       0.7733       0.6810
