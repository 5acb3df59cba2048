# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Parameters and multiply-accumulates of each part of the network.

``python -m anomalib_dskd.model.cost --backbone resnet18 --image_size 256`` prints them.
"""

from typing import NamedTuple

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from .lightning_model import height_and_width
from .torch_model import DskdModel

PARTS = ("teacher", "encoder", "embedding", "decoder")


class Cost(NamedTuple):
    """Cost of one part: its parameters, and its multiply-accumulates for one image in units of 1e9."""

    parameters: int
    gmacs: float


def part_costs(model: DskdModel, image_size: int | tuple[int, int] = 256) -> dict[str, Cost]:
    """Count parameters and GMACs of each part that the model has.

    Args:
        model: Network to measure; its mode is left as it is.
        image_size: Height and width of the input, or one number for both.

    Returns:
        Cost of teacher, encoder, embedding and decoder.
    """
    training = model.training
    images = torch.zeros(1, 3, *height_and_width(image_size))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(images)
    model.train(training)
    flops = counter.get_flop_counts()
    return {
        part: Cost(
            sum(parameter.numel() for parameter in getattr(model, part).parameters()),
            sum(flops[f"{type(model).__name__}.{part}"].values()) / 2e9,
        )
        for part in PARTS
        if getattr(model, part) is not None
    }


def main(backbone: str = "resnet18", image_size: int = 256, students: str = "both", embedding: bool = True) -> None:
    """Print the cost of each part.

    Args:
        backbone: timm CNN of teacher and student encoder.
        image_size: Height and width of the input in pixels.
        students: ``both``, ``encoder`` or ``decoder``.
        embedding: Whether the decoder reads the embedding of all scales.
    """
    costs = part_costs(DskdModel(backbone, students=students, embedding=embedding), image_size)
    total = Cost(sum(cost.parameters for cost in costs.values()), sum(cost.gmacs for cost in costs.values()))
    table = Table("part", "parameters (M)", "GMACs", title=f"{backbone}, {image_size}x{image_size}, without fusion")
    for part, cost in {**costs, "total": total}.items():
        table.add_row(part, f"{cost.parameters / 1e6:.2f}", f"{cost.gmacs:.2f}")
    Console().print(table)


if __name__ == "__main__":
    auto_cli(main)
