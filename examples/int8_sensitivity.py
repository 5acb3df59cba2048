# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Which layers INT8 must leave in float32: scores of normal images with all layers in INT8 but those of one scale.

Value ranges come from every second training image, the differences from the others; no test image is seen. The
export's corrections have been made, so what is printed is what they leave: the standard deviation and the largest of
the scores' relative differences. The Gaussian of the maps, on the finest grid, is in float32 anyway.

python examples/int8_sensitivity.py --ckpt model.ckpt --images DATA/train/good
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import openvino as ov
from anomalib.models import Dskd
from jsonargparse import ArgumentParser
from rich.progress import track

from anomalib_dskd.export.graph import convert
from anomalib_dskd.export.quantize import CONVOLUTIONS, first_convolutions, quantize
from anomalib_dskd.export.verify import decode, find_images


def layers_by_scale(graph: ov.Model) -> dict[str, list[str]]:
    """Return the names of the convolutions, those that read the image first and the others by their output's height."""
    first = [node.get_friendly_name() for node in first_convolutions(graph)]
    scales: dict[str, list[str]] = defaultdict(list)
    for node in graph.get_ordered_ops():
        if node.get_type_name() in CONVOLUTIONS and node.get_friendly_name() not in first:
            scales[str(node.get_output_partial_shape(0)[2])].append(node.get_friendly_name())
    read = {"none": [], "those that read the image": first}
    return read | {f"output height {scale}": names for scale, names in scales.items()}


def scores(graph: ov.Model, images: list[np.ndarray]) -> np.ndarray:
    """Return the scores of images."""
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array([float(compiled(image[None])["score"][0]) for image in images])


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of a trained Dskd")
    parser.add_argument("--images", type=Path, required=True, help="folder of normal training images")
    parser.add_argument("--number", type=int, default=200, help="images to use, half of them for value ranges")
    config = parser.parse_args(arguments)
    graph = convert(Dskd.load_from_checkpoint(config.ckpt).cpu().eval())
    found = find_images(config.images)
    paths = [found[index] for index in np.linspace(0, len(found) - 1, min(config.number, len(found))).astype(int)]
    judged = [decode(path) for path in paths[1::2]]
    exact = scores(graph, judged)
    lines = []
    for name, layers in track(layers_by_scale(graph).items(), "Quantising", transient=True):
        ratio = scores(quantize(graph, paths[::2], layers), judged) / exact
        rank = np.corrcoef(exact, exact * ratio)[0, 1]
        lines.append(f"{name:28} {len(layers):6} {ratio.std():8.4f} {np.abs(ratio - 1).max():8.4f} {rank:8.4f}")
    print(f"{len(judged)} normal images")
    print("convolutions in float32      number   spread  largest  correlation of scores")
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])

# Prints:
# 50 normal images
# convolutions in float32      number   spread  largest  correlation of scores
# none                              0   0.1232   0.5095   0.9974
# those that read the image         2   0.0867   0.2008   0.9976
# output height 32                 11   0.0822   0.2428   0.9995
# output height 16                 16   0.1047   0.4085   0.9977
# output height 8                  24   0.1129   0.4582   0.9972
# output height 4                  11   0.1228   0.5171   0.9972
