# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Runtimes that a trained model is timed in, each a function from images to what the model says about them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from anomalib.data.utils import read_image
from anomalib.models import AnomalibModule
from torchvision.transforms.v2 import functional as F  # noqa: N812


class Engine(Protocol):
    """A model ready to run: images ``(B, 3, H, W)``, float32 in [0, 1], to anomalib's predictions as arrays."""

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Predict ``pred_score``, ``pred_label`` and, where the model has them, ``anomaly_map`` and ``pred_mask``."""


class TorchEngine:
    """A model in PyTorch, with its pre- and post-processor, as the export has them.

    Args:
        model: Model in evaluation mode on the CPU.
        precision: ``"f32"``, or ``"bf16"`` for autocast.
    """

    def __init__(self, model: AnomalibModule, precision: str) -> None:
        self.model = model
        self.bf16 = precision == "bf16"

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Predict."""
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            predictions = self.model(torch.from_numpy(images))
        return {
            name: (value if value.dtype == torch.bool else value.float()).numpy()
            for name, value in predictions._asdict().items()
            if value is not None
        }


class OpenVinoEngine:
    """An exported model in OpenVINO on the CPU, compiled for one batch size and the shortest latency.

    Args:
        path: Its ``.xml``.
        batch: Number of images that it will be given.
        hint: Precision to compute in where the graph leaves it open: ``"f32"`` or ``"bf16"``.
        threads: Number of threads.
    """

    def __init__(self, path: Path, batch: int, hint: str, threads: int) -> None:
        import openvino  # noqa: PLC0415  # an extra

        core = openvino.Core()
        graph = core.read_model(path)
        if graph.input(0).partial_shape[0].is_dynamic:
            graph.reshape([batch, *list(graph.input(0).partial_shape)[1:]])
        config = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.request = core.compile_model(graph, "CPU", config).create_infer_request()
        outputs = self.request.model_outputs
        known = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
        self.outputs = {name: output for output in outputs for name in known if name in output.names}

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Predict."""
        result = self.request.infer([images], share_inputs=True)
        return {name: result[output] for name, output in self.outputs.items()}


def read_images(paths: Sequence[str | Path], image_size: tuple[int, int]) -> np.ndarray:
    """Read images as they are given to every engine.

    anomalib reads them, and torch resizes them with antialiasing, as in training: exports have the resize without it.

    Args:
        paths: Image files.
        image_size: Height and width in pixels; the aspect ratio is not kept.

    Returns:
        Images ``(N, 3, H, W)``, float32 in [0, 1].
    """
    images = [F.resize(read_image(path, as_tensor=True), list(image_size), antialias=True) for path in paths]
    return torch.stack(images).contiguous().numpy()
