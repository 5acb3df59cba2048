# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Verdicts, accuracy and speed of a checkpoint and of all that is exported from it, on the test images.

Bundles in float32 and INT8, and anomalib's own export as its OpenVINOInferencer runs it, with OpenVINO's defaults.
INT8 takes its value ranges from training images. A flip is a verdict other than the checkpoint's: at its threshold,
and at 100 thresholds across the scores, out of a hundred times as many. Times run from the file on the disk to score
and map, one image after the other, measured in turns; a bundle has no students' maps to compute then. anomalib's
inferencer leaves what it compiled in ``openvino_cache``, wherever it is run.

python examples/exported_verdicts.py --ckpt model.ckpt --data MagneticTile
"""

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads else spin beside OpenVINO's

import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import read_image
from anomalib.deploy import ExportType, OpenVINOInferencer
from anomalib.engine import Engine
from anomalib.models import Dskd
from jsonargparse import ArgumentParser
from rich.progress import track

from anomalib_dskd import inspector
from anomalib_dskd.benchmark.image_metrics import image_metrics
from anomalib_dskd.benchmark.interleaved import interleave
from anomalib_dskd.benchmark.pixel_metrics import PixelMetrics
from anomalib_dskd.export import export
from anomalib_dskd.export.verify import Comparison, decode

Judged = tuple[float, np.ndarray, bool]
Judge = Callable[[str], Judged]


@torch.inference_mode()
def by_checkpoint(model: Dskd, path: str) -> Judged:
    """Return normalised score, map and verdict of an image."""
    resized = model.pre_processor.transform(read_image(path, as_tensor=True)[None])
    raw = model.model(resized)
    judged = model.post_processor(raw)
    return float(judged.pred_score), judged.anomaly_map.squeeze().numpy(), bool(judged.pred_label)


def by_bundle(model: inspector.Model, bundle: inspector.Bundle, path: str) -> Judged:
    """Return normalised score, map and verdict of an image."""
    found = model(decode(Path(path)))
    score = inspector.normalise(float(found["score"]), bundle.metadata["normalisation"]["image"])
    return float(score), found["map"], bool(found["score"] > bundle.threshold)


def by_inferencer(inferencer: OpenVINOInferencer, path: str) -> Judged:
    """Return normalised score, map and verdict of an image."""
    judged = inferencer.predict(path)
    return judged.pred_score.item(), np.squeeze(judged.anomaly_map), bool(judged.pred_label.item())


def judges(ckpt: Path, data: AnomalibDataModule, folder: Path) -> dict[str, Judge]:
    """Export a checkpoint in all ways; return by name what judges an image's path."""
    model = Dskd.load_from_checkpoint(ckpt).cpu().eval()
    ways: dict[str, Judge] = {"checkpoint": partial(by_checkpoint, model)}
    good = folder / "good"
    good.mkdir()
    for number, path in enumerate(data.train_data.samples.image_path):
        shutil.copyfile(path, good / f"{number:06}{Path(path).suffix}")
    for precision in ("f32", "int8"):
        bundle = folder / precision
        export(ckpt, bundle, precision, images=good, max_flips=len(data.train_data))
        opened = inspector.Bundle.open(bundle)
        ways[f"bundle {precision}"] = partial(by_bundle, inspector.Model(opened, throughput=False), opened)
    path = Engine(accelerator="cpu").export(model, ExportType.OPENVINO, export_root=folder / "anomalib")
    ways["OpenVINOInferencer"] = partial(by_inferencer, OpenVINOInferencer(path, device="CPU"))
    return ways


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of a trained Dskd")
    parser.add_argument("--rounds", type=int, default=100, help="timed images")
    parser.add_subclass_arguments(AnomalibDataModule, "data")
    config = parser.instantiate_classes(parser.parse_args(arguments))
    config.data.setup()
    test = config.data.test_data
    labels = np.array([int(item.gt_label) for item in test])
    with TemporaryDirectory() as folder:
        ways = judges(config.ckpt, config.data, Path(folder))
        paths = test.samples.image_path.tolist()
        verdicts: dict[str, list[bool]] = {}
        scores: dict[str, list[float]] = {}
        lines = {}
        for name, judge in ways.items():
            pixels, scores[name], verdicts[name] = PixelMetrics(), [], []
            for item in track(test, name, transient=True):
                score, anomaly_map, verdict = judge(item.image_path)
                scores[name].append(score)
                verdicts[name].append(verdict)
                mask = torch.nn.functional.interpolate(item.gt_mask[None, None].float(), anomaly_map.shape)
                pixels.update(anomaly_map[None], mask[0].numpy() > 0)
            image = image_metrics(np.array(scores[name]), labels)["image_AUROC"]
            flips = int(np.sum(np.array(verdicts[name]) != np.array(verdicts["checkpoint"])))
            across = Comparison(0.5, expected=scores["checkpoint"], found=scores[name]).flips_across
            lines[name] = f"{name:20} {image:9.4f} {pixels.compute()['AUPRO_30']:9.4f} {flips:6} {across:7}"
        turns = {name: [lambda turn, judge=judge: judge(paths[turn % len(paths)])] for name, judge in ways.items()}
        seconds = {name: taken[0] for name, taken in interleave(turns, config.rounds).items()}
    print(f"{len(labels)} images, {labels.sum()} of them defective; {torch.get_num_threads()} threads")
    print("                         AUROC     AUPRO  flips  at 100  median ms  p99 ms  times faster than bundle f32")
    for name, taken in seconds.items():
        times = np.median(seconds["bundle f32"] / taken)
        print(f"{lines[name]} {1000 * np.median(taken):10.1f} {1000 * np.quantile(taken, 0.99):7.1f} {times:8.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])

# Prints:
# 592 images, 392 of them defective; 1 threads
#                          AUROC     AUPRO  flips  at 100  median ms  p99 ms  times faster than bundle f32
# checkpoint              0.8737    0.7596      0       0      484.3   684.2     0.66
# bundle f32              0.8737    0.7596      0       0      316.5   351.9     1.00
# bundle int8             0.8759    0.7596      0     734      116.2   144.7     2.71
# OpenVINOInferencer      0.8732    0.7597      0     136      222.3   276.4     1.42
