# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""What a model of anomalib costs, whatever machine it runs on: parameters, operations, bytes."""

import io

import torch
from anomalib.models import AnomalibModule

from anomalib_dskd.model.cost import count_cost

MB = 1e6


def measure_size(model: AnomalibModule, image_size: tuple[int, int]) -> dict[str, float]:
    """Count what a model's inference needs for one image.

    Args:
        model: Trained model of anomalib on any device; it is left as it is.
        image_size: Height and width of the image that the model's pre-processor is given, in pixels.

    Returns:
        ``parameters`` that inference reads; ``gmacs``, 1e9 multiply-accumulates of convolutions and matrix products
        (a search in a memory bank is one, the map's smoothing too); ``bank_mb``, the buffers that inference reads, such
        as PatchCore's memory bank and PaDiM's Gaussians; ``checkpoint_mb``, the size of the saved weights, without an
        optimizer's state. MB are 1e6 bytes.

    Raises:
        ValueError: anomalib's, if the model cannot predict yet, as PatchCore with an empty memory bank.
    """
    image = torch.zeros(1, 3, *image_size, device=model.device)
    cost = count_cost(model.model, image if model.pre_processor is None else model.pre_processor(image))[""]
    checkpoint = io.BytesIO()
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    return {
        "parameters": cost.parameters,
        "gmacs": cost.gmacs,
        "bank_mb": cost.bank_bytes / MB,
        "checkpoint_mb": checkpoint.getbuffer().nbytes / MB,
    }
