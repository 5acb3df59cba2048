# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""What each part of Dskd adds to the latency of one image in OpenVINO, measured in turns on this machine's CPU.

Beside them a stack of plain 3x3 convolutions of the same kind, for how many milliseconds a GMAC takes at best, and the
INT8 bundle, which takes an 8-bit image: of the network's size, and as a camera takes it.

python examples/latency_of_parts.py --precision f32
"""

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from anomalib_dskd.benchmark.interleaved import PROCESS_ENVIRONMENT, interleave

os.environ.update(PROCESS_ENVIRONMENT)

import numpy as np
import openvino as ov
import torch
from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from anomalib_dskd import Dskd, inspector
from anomalib_dskd.export.graph import convert
from anomalib_dskd.export.quantize import quantize
from anomalib_dskd.model.cost import count_cost
from anomalib_dskd.model.torch_model import DskdModel


class UpTo(nn.Module):
    """The way of an image up to one part; its outputs are all that the next part needs, so that nothing is left out."""

    def __init__(self, model: DskdModel, way: Callable[[DskdModel, torch.Tensor], list[torch.Tensor]]) -> None:
        super().__init__()
        self.model, self.way = model, way

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute what the part and those before it give."""
        return self.way(self.model, images)


def encoder(model: DskdModel, images: torch.Tensor) -> list[torch.Tensor]:
    """Teacher's and encoder's maps."""
    return [*model.teacher(images), *model.encoder(images)]


def decoder(model: DskdModel, images: torch.Tensor) -> list[torch.Tensor]:
    """Maps of teacher and both students."""
    teacher, students = model.features(images)
    return [*teacher, *(features for maps in students.values() for features in maps)]


def distances(model: DskdModel, images: torch.Tensor) -> list[torch.Tensor]:
    """Distances of both students at all scales."""
    anomalies = model.anomalies(*model.features(images))
    return [distance for scales in anomalies.values() for scale in scales for distance in scale]


def verdict(model: DskdModel, images: torch.Tensor) -> list[torch.Tensor]:
    """Image score and anomaly map."""
    predicted = model(images)
    return [predicted.pred_score, predicted.anomaly_map]


PARTS: dict[str, Callable[[DskdModel, torch.Tensor], list[torch.Tensor]]] = {
    "teacher": lambda model, images: model.teacher(images),
    "encoder": encoder,
    "embedding and decoder": decoder,
    "distances, of regions too": distances,
    "anomaly map and score": verdict,
}
CAMERAS = ((1024, 1024), (1536, 2048))


def main(
    backbone: str = "resnet18",
    image_size: int = 256,
    precision: Literal["f32", "bf16"] = "f32",
    rounds: int = 100,
    threads: int | None = None,
) -> None:
    """Print the latency up to each part, and what the part adds to it.

    Args:
        backbone: timm CNN of teacher and student encoder; the weights are random, which costs the same.
        image_size: Height and width of the input in pixels.
        precision: In which OpenVINO computes.
        rounds: Timed runs of each.
        threads: Number of threads; the default is all cores. One alone is where to compare on a virtual machine, whose
            cores may lie on different chips, which costs small steps most (docs/speed.md).
    """
    torch.manual_seed(0)
    dskd = Dskd(backbone, teacher_weights="random", image_size=image_size, visualizer=False).eval()
    dskd.on_fit_start()  # an untrained one does not predict without its teacher
    image = torch.rand(1, 3, image_size, image_size)
    networks: dict[str, tuple[nn.Module, torch.Tensor]] = {
        name: (UpTo(dskd.model, way), image) for name, way in PARTS.items()
    }
    plain = nn.Sequential(*(nn.Conv2d(128, 128, 3, padding=1) for _ in range(8))).eval()
    networks["plain convolutions alone"] = (plain, torch.rand(1, 128, image_size // 8, image_size // 8))
    tasks = {name: [_compile(network, x, precision, threads)] for name, (network, x) in networks.items()}
    bundle = _quantized(dskd, image_size)
    for height, width in ((image_size, image_size), *CAMERAS):
        name = f"bundle in INT8, {width}x{height}"
        networks[name] = networks["anomaly map and score"]
        bundle.reshape([1, height, width, 3])
        photograph = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        tasks[name] = [_predictor(bundle, photograph, "f32", threads)]
    seconds = {name: times[0] for name, times in interleave(tasks, rounds).items()}
    columns = ("up to", "ms", "times the teacher", "GMACs", "ms a GMAC")
    table = Table(*columns, title=f"{backbone}, {image_size}, {precision}, {threads or os.cpu_count()} threads")
    for name, times in seconds.items():
        milliseconds = float(np.median(times) * 1e3)
        ratio = np.median(times / seconds["teacher"])
        gmacs = count_cost(*networks[name])[""].gmacs
        table.add_row(name, f"{milliseconds:.1f}", f"{ratio:.2f}", f"{gmacs:.2f}", f"{milliseconds / gmacs:.1f}")
    Console().print(table)


def _compile(network: nn.Module, x: torch.Tensor, precision: str, threads: int | None) -> Callable[[int], object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # it has one size only
        converted = ov.convert_model(network, example_input=x, input=list(x.shape))
    return _predictor(converted, x.numpy(), precision, threads)


def _quantized(model: Dskd, image_size: int) -> ov.Model:
    noise = Image.effect_noise((image_size, image_size), 64).convert("RGB")
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        noise.save(file.name)
        quantized = quantize(convert(model), [Path(file.name)])
    inspector.leave_out_students(quantized)
    return quantized


def _predictor(graph: ov.Model, x: np.ndarray, precision: str, threads: int | None) -> Callable[[int], object]:
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    if threads:
        hints["INFERENCE_NUM_THREADS"] = str(threads)
    request = ov.Core().compile_model(graph, "CPU", hints).create_infer_request()
    return lambda _: request.infer({0: x})


if __name__ == "__main__":
    auto_cli(main)
