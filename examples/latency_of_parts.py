# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""What each part of Dskd adds to the latency of one image in OpenVINO, measured in turns on this machine's CPU.

python examples/latency_of_parts.py --precision f32
"""

import os
import warnings
from collections.abc import Callable
from typing import Literal

from anomalib_dskd.benchmark.interleaved import PROCESS_ENVIRONMENT, interleave

os.environ.update(PROCESS_ENVIRONMENT)

import numpy as np
import openvino as ov
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import nn

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
    return [scale for scales in anomalies.values() for scale in scales]


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


def main(
    backbone: str = "resnet18",
    image_size: int = 256,
    precision: Literal["f32", "bf16"] = "f32",
    rounds: int = 100,
) -> None:
    """Print the latency up to each part, and what the part adds to it.

    Args:
        backbone: timm CNN of teacher and student encoder; the weights are random, which costs the same.
        image_size: Height and width of the input in pixels.
        precision: In which OpenVINO computes.
        rounds: Timed runs of each.
    """
    torch.manual_seed(0)
    model = DskdModel(backbone).eval()
    image = torch.rand(1, 3, image_size, image_size)
    tasks, gmacs = {}, {}
    for name, way in PARTS.items():
        part = UpTo(model, way)
        gmacs[name] = count_cost(part, image)[""].gmacs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # it has one size only
            converted = ov.convert_model(part, example_input=image, input=[1, 3, image_size, image_size])
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        request = ov.Core().compile_model(converted, "CPU", hints).create_infer_request()
        tasks[name] = [lambda _, request=request: request.infer({0: image.numpy()})]
    seconds = {name: times[0] for name, times in interleave(tasks, rounds).items()}
    table = Table(
        "up to", "ms", "added ms", "times the teacher", "GMACs", title=f"{backbone}, {image_size}, {precision}"
    )
    before = 0.0
    for name, times in seconds.items():
        milliseconds = float(np.median(times) * 1e3)
        ratio = np.median(times / seconds["teacher"])
        table.add_row(name, f"{milliseconds:.1f}", f"{milliseconds - before:.1f}", f"{ratio:.2f}", f"{gmacs[name]:.2f}")
        before = milliseconds
    Console().print(table)


if __name__ == "__main__":
    auto_cli(main)
