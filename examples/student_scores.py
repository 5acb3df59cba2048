# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Image and pixel AUROC of the fused map and of each student alone, on raw scores, and by how much the fused one leads.

anomalib's own table ranks scores that were clamped to [0, 1]; this one ranks what the network gives, with scikit-learn.
The lead is in image AUROC, its 95 % interval a paired bootstrap's over the test images, or over the parts they show.

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

from anomalib_dskd.benchmark.bootstrap import paired_bootstrap


def raw_maps(model: Dskd, data: AnomalibDataModule) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Predict the test images.

    Args:
        model: Trained model; its post-processor is left out, so that maps and scores stay raw.
        data: Data whose test images are predicted.

    Returns:
        Maps ``(N, H, W)`` by name, labels ``(N,)``, masks ``(N, H, W)``, and which part each image shows ``(N,)``.
    """
    model.post_processor = model.visualizer = model.evaluator = None
    batches = Engine(accelerator="cpu").predict(model, datamodule=data)
    maps = {"fused": torch.cat([batch.anomaly_map.squeeze(1) for batch in batches]).numpy()}
    for student in ("encoder", "decoder"):
        if getattr(batches[0], f"{student}_map") is not None:
            maps[student] = torch.cat([getattr(batch, f"{student}_map") for batch in batches]).numpy()
    labels = torch.cat([batch.gt_label for batch in batches]).numpy()
    masks = torch.cat([batch.gt_mask for batch in batches]).numpy()
    samples = data.test_data.samples.set_index("image_path")
    parts = samples.get("part", samples.index.to_series()).loc[[path for batch in batches for path in batch.image_path]]
    return maps, labels, masks, parts.to_numpy()


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=str, required=True, help="checkpoint of a trained Dskd")
    parser.add_subclass_arguments(AnomalibDataModule, "data")
    config = parser.instantiate_classes(parser.parse_args(arguments))
    maps, labels, masks, parts = raw_maps(Dskd.load_from_checkpoint(config.ckpt), config.data)
    print(f"{labels.size} images, {int(labels.sum())} of them defective")
    print("map      image AUROC  pixel AUROC  fused leads by")
    scores = {name: values.max(axis=(1, 2)) for name, values in maps.items()}
    for name, values in maps.items():
        image = roc_auc_score(labels, scores[name])
        pixel = roc_auc_score(masks.ravel() > 0, values.ravel())
        lead, low, high = paired_bootstrap(scores["fused"], scores[name], labels, groups=parts)
        print(f"{name:8} {image:11.4f}  {pixel:11.4f}  {lead:+.4f} ({low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main(sys.argv[1:])

# Prints:
# 592 images, 392 of them defective
# map      image AUROC  pixel AUROC  fused leads by
# fused         0.8235       0.7631  +0.0000 (+0.0000 to +0.0000)
# encoder       0.8200       0.7450  +0.0035 (-0.0040 to +0.0110)
# decoder       0.8226       0.7759  +0.0010 (-0.0058 to +0.0081)
