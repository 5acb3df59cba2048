# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Latency of one image in OpenVINO, Dskd beside other models with the same ResNet-18, measured in turns on the CPU.

python examples/latency_beside_peers.py

All have random weights, which cost the same. PatchCore's bank holds a share of the patches of so many training images;
which patches does not matter to its time, so that they are random too.
"""

import os
import tempfile
from pathlib import Path

from anomalib_dskd.benchmark.interleaved import PROCESS_ENVIRONMENT

os.environ.update(PROCESS_ENVIRONMENT)

import timm
import torch
from anomalib.models import AnomalibModule, EfficientAd, Patchcore, ReverseDistillation, Stfpm
from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table
from safetensors.torch import save_file

from anomalib_dskd import Dskd
from anomalib_dskd.benchmark.latency import measure_latency
from anomalib_dskd.local_weights import local_weights

STRIDE = 8  # of the finer of PatchCore's two layers


def models(weights: Path, image_size: int, training_images: int) -> dict[str, AnomalibModule]:
    """Build the models, ready to predict."""
    size = (image_size, image_size)
    dskd = Dskd("resnet18", teacher_weights=weights, image_size=size, visualizer=False)
    dskd.on_fit_start()  # an untrained one does not predict without its teacher
    common = {"pre_processor": Dskd.configure_pre_processor(size), "visualizer": False}
    with local_weights({"resnet18": weights}):
        built: dict[str, AnomalibModule] = {
            "Dskd": dskd,
            "Stfpm": Stfpm("resnet18", **common),
            "ReverseDistillation": ReverseDistillation("resnet18", **common),
        }
        patches = training_images * (image_size // STRIDE) ** 2
        for ratio in (0.005, 0.1):  # what a CPU can choose in minutes, and anomalib's default
            patchcore = Patchcore("resnet18", coreset_sampling_ratio=ratio, **common)
            features = sum(patchcore.model.feature_extractor.out_dims)
            patchcore.model.memory_bank = torch.rand(round(ratio * patches), features)
            built[f"Patchcore, bank {ratio:.1%}"] = patchcore
    efficient_ad = EfficientAd(pre_processor=EfficientAd.configure_pre_processor(size), visualizer=False)
    return {**built, "EfficientAd-S": efficient_ad}


def main(image_size: int = 256, training_images: int = 682, rounds: int = 40, threads: int | None = None) -> None:
    """Print the median latency of each, and the median over rounds of its ratio to Dskd's.

    Args:
        image_size: Height and width of the input in pixels.
        training_images: Number of images behind PatchCore's bank; the default is Magnetic Tile's, a tenth held out.
        rounds: Timed runs of each.
        threads: Number of threads; the default is all cores. One alone is where to compare on a virtual machine, whose
            cores may lie on different chips, which costs models of many small steps most (docs/speed.md).
    """
    torch.manual_seed(0)
    columns = (Column("model", no_wrap=True), "f32 ms", "times Dskd", "INT8 ms", "times Dskd")
    table = Table(*columns, title=f"ResNet-18, {image_size}x{image_size}, {threads or torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        weights, noise = Path(folder, "resnet18.safetensors"), Path(folder, "noise.png")
        save_file(timm.create_model("resnet18").state_dict(), weights)
        Image.effect_noise((image_size, image_size), 64).convert("RGB").save(noise)
        bar = progress.add_task("export")
        rows = measure_latency(
            models(weights, image_size, training_images),
            [noise],
            Path(folder, "exports"),
            (image_size, image_size),
            calibration=[noise] * 4,
            engines=["openvino"],
            batches=[1],
            rounds=rounds,
            threads=threads,
            progress=lambda stage, step, steps: progress.update(bar, description=stage, completed=step, total=steps),
        )
    latencies = {(row["model"], row["precision"]): row for row in rows}
    for name in dict.fromkeys(row["model"] for row in rows):
        figures = []
        for row in (latencies[name, "f32"], latencies[name, "int8"]):
            figures += ["-", "-"] if row["error"] else [f"{row['median_ms']:.1f}", f"{row['ratio']:.2f}"]
        table.add_row(name, *figures)
    Console().print(table)
    for (name, precision), row in latencies.items():
        if row["error"]:
            print(f"{name}, {precision}: {row['error']}")


if __name__ == "__main__":
    auto_cli(main)
