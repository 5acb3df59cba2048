# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Parameters and multiply-accumulates of each part of the network.

``python -m anomalib_dskd.model.cost --backbone resnet18 --image_size 256`` prints them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .lightning_model import height_and_width
from .torch_model import DskdModel

PARTS = ("teacher", "encoder", "embedding", "decoder")


class Cost(NamedTuple):
    """Cost of a network or a part of it.

    Attributes:
        parameters: Number of parameters that inference reads, shared ones once.
        gmacs: Multiply-accumulates of convolutions and matrix products, in units of 1e9.
        bank_bytes: Size of the buffers that inference reads: PatchCore's memory bank, PaDiM's Gaussians, blur kernels.
            The statistics of batch norm are not among them.
    """

    parameters: int
    gmacs: float
    bank_bytes: int = 0


def count_cost(network: nn.Module, images: torch.Tensor, parts: Sequence[str] = ()) -> dict[str, Cost]:
    """Count what a network reads and computes in evaluation.

    Args:
        network: Network to measure; its mode is left as it is.
        images: Input ``(B, 3, H, W)``; the GMACs are those of the whole batch.
        parts: Names of direct children to count too; those that are ``None`` are left out.

    Returns:
        Cost of the whole under the empty name, and that of each part under its name.
    """
    with evaluating(network), torch.no_grad(), FlopCounterMode(display=False) as counter, _Reads() as reads:
        network(images)
    flops = counter.get_flop_counts()
    modules = {part: module for part in parts if (module := getattr(network, part)) is not None}
    return {
        "": Cost(reads.parameters(network), counter.get_total_flops() / 2e9, reads.bank_bytes(network)),
        **{
            part: Cost(
                reads.parameters(module),
                sum(flops.get(f"{type(network).__name__}.{part}", {}).values()) / 2e9,
                reads.bank_bytes(module),
            )
            for part, module in modules.items()
        },
    }


def part_costs(model: DskdModel, image_size: int | tuple[int, int] = 256) -> dict[str, Cost]:
    """Count parameters and GMACs of each part that the model has.

    Args:
        model: Network to measure; its mode is left as it is.
        image_size: Height and width of the input, or one number for both.

    Returns:
        Cost of teacher, encoder, embedding and decoder.
    """
    costs = count_cost(model, torch.zeros(1, 3, *height_and_width(image_size)), PARTS)
    return {part: cost for part, cost in costs.items() if part}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode and, at the end, each of its parts into the mode that it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


class _Reads(TorchDispatchMode):
    """Note which memory the operations read: a network may hold more than its inference needs."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        leaves = tree_leaves((args, kwargs or {}))
        self.storages |= {leaf.untyped_storage().data_ptr() for leaf in leaves if isinstance(leaf, torch.Tensor)}
        return func(*args, **(kwargs or {}))

    def parameters(self, module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters() if self._has_read(parameter))

    def bank_bytes(self, module: nn.Module) -> int:
        parts = (part for part in module.modules() if not isinstance(part, _NormBase))
        buffers = {buffer for part in parts for buffer in part.buffers(recurse=False) if self._has_read(buffer)}
        return sum(buffer.nbytes for buffer in buffers)

    def _has_read(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.storages


def main(
    backbone: str = "resnet18",
    image_size: int = 256,
    students: str = "both",
    embedding: bool = True,
    decoder_blocks: int = 1,
) -> None:
    """Print the cost of each part.

    Args:
        backbone: timm CNN of teacher and student encoder.
        image_size: Height and width of the input in pixels.
        students: ``both``, ``encoder`` or ``decoder``.
        embedding: Whether the decoder reads the embedding of all scales.
        decoder_blocks: Residual blocks in each of the decoder's stages.
    """
    model = DskdModel(backbone, students=students, embedding=embedding, decoder_blocks=decoder_blocks)
    costs = part_costs(model, image_size)
    total = Cost(sum(cost.parameters for cost in costs.values()), sum(cost.gmacs for cost in costs.values()))
    table = Table("part", "parameters (M)", "GMACs", title=f"{backbone}, {image_size}x{image_size}, without fusion")
    for part, cost in {**costs, "total": total}.items():
        table.add_row(part, f"{cost.parameters / 1e6:.2f}", f"{cost.gmacs:.2f}")
    Console().print(table)


if __name__ == "__main__":
    auto_cli(main)
