# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The graph of a bundle: from decoded images to raw scores and maps."""

import warnings
from copy import deepcopy

import openvino as ov
import torch
from anomalib.pre_processing.utils.transform import convert_center_crop_transform
from torch import nn
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Resize
from torchvision.transforms.v2.functional import to_dtype

from anomalib_dskd.errors import DskdError
from anomalib_dskd.model import Dskd

from .nncf_log import only_errors
from .resize import LARGEST, ResizeInBands

BILINEAR = (InterpolationMode.BILINEAR, InterpolationMode.BILINEAR.value)  # which of them depends on torchvision


class DecisionGraph(nn.Module):
    """All that happens between decoding and comparing with the threshold, as in training and testing.

    anomalib's own exports resize without antialiasing, unlike its training; here the transform of training is used.

    Args:
        model: Trained model.

    Raises:
        DskdError: If the model has no pre-processor, so that images of any size would go into the network.
    """

    def __init__(self, model: Dskd) -> None:
        super().__init__()
        if model.pre_processor is None or model.pre_processor.transform is None:
            msg = "The model has no pre-processor, so it does not resize images: train it with the default one."
            raise DskdError(msg)
        self.resize, self.transform = _convertible(model.pre_processor.transform)
        self.model = model.model

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Judge images.

        Args:
            images: RGB images as they were decoded, ``(B, H, W, 3)`` in ``uint8``, of any size.

        Returns:
            ``score`` of shape ``(B,)``; ``map``, ``encoder_map`` and ``decoder_map``, those that the model has, of
            shape ``(B, h, w)``; all raw.
        """
        resized = self.transform(self.resize(images))
        teacher, students = self.model.features(resized)
        anomalies, size = self.model.anomalies(teacher, students), resized.shape[-2:]
        level = self.model.level(anomalies)
        predicted = self.model.predict(teacher, anomalies, level, size)
        maps = {f"{student}_map": each for student, each in self.model.student_maps(anomalies, level, size).items()}
        return {
            "score": predicted.pred_score,
            **{name: each.squeeze(1) for name, each in {"map": predicted.anomaly_map, **maps}.items()},
        }


class _ToFloat(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return to_dtype(images.permute(0, 3, 1, 2), torch.float32, scale=True)


def _convertible(transform: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return what makes decoded images the transform's first step, and the steps that follow.

    A resize to a fixed size, of no unusual length, becomes the quicker one, and what is cropped from images of one
    size is cropped by constants; torchvision's own crop cannot be traced.
    """
    first = transform.transforms[0] if isinstance(transform, Compose) else None
    if not isinstance(first, Resize) or len(first.size or []) != 2:  # noqa: PLR2004  # of one number the aspect ratio stays
        return _ToFloat(), transform
    transform = convert_center_crop_transform(deepcopy(transform))
    if first.interpolation not in BILINEAR or not first.antialias or max(first.size) > LARGEST:
        return _ToFloat(), transform
    return ResizeInBands(*first.size), Compose(transform.transforms[1:])


def cropped(transform: nn.Module) -> list[int]:
    """Return what a transform crops of an image that it has resized, in its pixels: left, top, right, bottom.

    Raises:
        DskdError: If it crops more than there is, which adds a black margin.
    """
    first, *others = transform.transforms if isinstance(transform, Compose) else [transform]
    left = top = right = bottom = 0
    for crop in (step for step in others if isinstance(step, CenterCrop)):
        height, width = first.size[0] - top - bottom, first.size[1] - left - right
        down, across = height - crop.size[0], width - crop.size[1]
        if min(down, across) < 0:
            msg = f"CenterCrop({crop.size}) is larger than the image of {height}x{width} pixels that it crops."
            raise DskdError(msg)
        left, top = left + round(across / 2), top + round(down / 2)  # torchvision's rounding
        right, bottom = right + across - round(across / 2), bottom + down - round(down / 2)
    return [left, top, right, bottom]


def convert(model: Dskd) -> ov.Model:
    """Convert a trained model to an OpenVINO graph of images of any size and number.

    Args:
        model: Trained model on the CPU.

    Returns:
        Graph with input ``images`` and the outputs of :class:`DecisionGraph`.

    Raises:
        DskdError: If the model's transform cannot be converted, or does not resize all images to one size.
    """
    graph = DecisionGraph(model).eval()
    # no side of the network's input has these lengths; a resize to the same size would leave no trace
    example = torch.zeros(2, 331, 517, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", FutureWarning)  # of torch about tracing, which OpenVINO does
        try:
            with only_errors():
                converted = ov.convert_model(graph, example_input=example)  # by way of ONNX antialiasing would be lost
        except Exception as error:
            transform = model.pre_processor.transform
            msg = (
                f"The model cannot be converted ({type(error).__name__}). Its pre-processor's transform is\n"
                f"{transform}\nA bundle takes Resize to a fixed size first, then CenterCrop and Normalize."
            )
            raise DskdError(msg) from error
        sizes = {
            tuple(graph(torch.zeros(1, *size, 3, dtype=torch.uint8))["map"].shape) for size in ((90, 70), (70, 90))
        }
    converted.reshape({0: ov.PartialShape([-1, -1, -1, 3])})
    shape = converted.output("map").partial_shape
    if len(sizes) > 1 or shape[1].is_dynamic or shape[2].is_dynamic:
        msg = "The pre-processor's transform does not resize all images to one size, which a bundle needs."
        raise DskdError(msg)
    return converted
