# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Rounding of a convolution's weights such that their errors cancel in what it computes."""

from collections.abc import Iterable, Sequence

import numpy as np
import openvino as ov
import torch
from torch.nn import functional as F  # noqa: N812

DAMPING = 1e-3
TINY = 1e-12


def second_moments(graph: ov.Model, convolutions: Sequence[ov.Node], images: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Measure what convolutions multiply their weights with.

    Args:
        graph: Graph with one input.
        convolutions: Convolutions of it, of one group and without dilation.
        images: What the graph reads, one after the other.

    Returns:
        For each convolution the mean over images and places of the outer product of the values under its kernel,
        ``(K, K)`` with K the number of weights of an output channel.
    """
    reads = [convolution.input_value(0) for convolution in convolutions]
    part = ov.Model(reads, graph.get_parameters())
    compiled = ov.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: list[list[np.ndarray]] = [[] for _ in convolutions]
    for image in images:
        for index, (convolution, values) in enumerate(zip(convolutions, compiled(image).to_tuple(), strict=True)):
            attributes = convolution.get_attributes()
            (top, left), (bottom, right) = attributes["pads_begin"], attributes["pads_end"]
            padded = F.pad(torch.from_numpy(values.copy()), (left, right, top, bottom))
            kernel = convolution.input_value(1).get_shape()[2:]
            places = F.unfold(padded, kernel, stride=attributes["strides"])[0].double()
            found[index].append((places @ places.T / places.shape[1]).numpy())
    return [np.mean(each, axis=0) for each in found]


def round_weights(weights: np.ndarray, second_moment: np.ndarray, largest: int) -> np.ndarray:
    """Round weights one by one, and let those that are still to be rounded make up for what was missed so far.

    Neighbouring pixels are much alike, so that an error of one weight is nearly undone by the opposite error of the
    next, where rounding each to the nearest leaves a sum of errors that adds to every pixel. The method is that of
    Frantar, Ashkboos, Hoefler & Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", arXiv 2210.17323.

    Args:
        weights: Weights in steps of their rounding, output channels first: ``(N, ...)`` with K in each.
        second_moment: See :func:`second_moments`, ``(K, K)``.
        largest: Largest absolute value of the result.

    Returns:
        Integers from ``-largest`` to ``largest``, ``int8``, of the same shape.
    """
    damping = DAMPING * np.trace(second_moment) / len(second_moment) + TINY
    inverse = np.linalg.inv(second_moment + damping * np.eye(len(second_moment)))
    share = np.linalg.cholesky(inverse).T
    left: np.ndarray = weights.reshape(len(weights), -1).astype(np.float64)
    rounded = np.zeros_like(left)
    for index in range(left.shape[1]):
        rounded[:, index] = np.clip(np.round(left[:, index]), -largest, largest)
        missed = (left[:, index] - rounded[:, index]) / share[index, index]
        left[:, index:] -= np.outer(missed, share[index, index:])
    return rounded.astype(np.int8).reshape(weights.shape)
