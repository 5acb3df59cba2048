# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""8-bit form of a bundle's graph."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import nncf
import numpy as np
import openvino as ov
from nncf.quantization.advanced_parameters import OverflowFix
from nncf.quantization.range_estimator import RangeEstimatorParametersSet
from openvino import opset13 as ops
from openvino.preprocess import PrePostProcessor

from anomalib_dskd.errors import DskdError

from .nncf_log import only_errors
from .rounding import round_weights, second_moments
from .verify import decode

SUBSET = 100
# what comes before and after the networks, but the whitening of distances, and the sums in the decoder's blocks
UNTOUCHED = (
    r"__module\.(resize|transform).*",
    r"__module\.model\.decoder\..*aten::add/Add.*",
    r"aten::.*",
    r".*scale_anomalies\.(?!.*aten::_convolution/Convolution).*",
    r".*image_(level|score).*",
    r".*anomaly_map_generator.*",
)
PARAMETERS = nncf.AdvancedQuantizationParameters(
    # the widest that were seen; by default NNCF takes the mean over images, which clips half of them, and defects more
    activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
    # by default it gives 7 bits to the weights of what follows the first convolutions, as if that read the image
    overflow_fix=OverflowFix.DISABLE,
)
LEVEL = "__module.model.image_level/aten::mean/ReduceMean"
"""Operation of the converted graph that gives the logarithm of the level, of shape ``(B,)``."""
WITNESSES = "__module.model.image_score/aten::stack/Concat"
"""Operation that gives what stands out and the distance of the whole, of shape ``(2, B)``."""
NEAREST = "__module.model.image_score.whole_image/aten::amin/ReduceMin"
"""Operation that takes the least of the distances to the known images, ``(B, N)``."""
CONVOLUTIONS = {"Convolution", "GroupConvolution"}
NETWORK = "__module.model."
TEACHER = f"{NETWORK}teacher."
WHITENING = f"{NETWORK}scale_anomalies."
HEADROOM = 2.0
IMAGE_LEVELS = 256
SAFE_WEIGHT = 64
MANY_WEIGHTS = 100


def quantize(graph: ov.Model, images: Sequence[Path], in_float: Sequence[str] | None = None) -> ov.Model:
    """Quantise the networks of a graph after training.

    Resize, distances and maps stay in float32, and so does what :func:`spared` returns. The convolutions that read the
    image take the range from black to white, since an image brighter than those that ranges were taken from would be
    clipped there; their weights have 7 bits, since the widest range times 8 bits would overflow on a CPU without VNNI,
    and are rounded such that errors cancel, by :func:`~anomalib_dskd.export.rounding.round_weights`. What students miss
    of the teacher is whitened in 8 bits too, of twice the range that it has on normal images: what is clipped there has
    four times their largest distance. What rounding adds to the distances of normal images is taken off again, so that
    the thresholds of the checkpoint stay right: by giving the logarithm of the image's level and what stands out the
    mean and deviation back that they had on these images, and the squared distance of the whole image the mean; then by
    one factor on the maps.

    Args:
        graph: Graph as :func:`~anomalib_dskd.export.graph.convert` returns it.
        images: Normal images that value ranges and corrections are taken from; 100 of them, evenly spread, are used.
        in_float: Names of the layers that stay in float32; by default :func:`spared`.

    Returns:
        Quantised graph with the same input and outputs.

    Raises:
        DskdError: If the inspector would refuse an image, or what is corrected is not found, since OpenVINO names
            operations otherwise.
    """
    chosen = [images[index] for index in np.linspace(0, len(images) - 1, min(SUBSET, len(images))).astype(int)]

    def read(path: Path) -> np.ndarray:
        return decode(path)[None]

    exact_peaks, exact = _judge(graph, map(read, chosen))
    in_float = spared(graph) if in_float is None else list(in_float)
    graph = graph.clone()
    weights = _round_first(graph, in_float, map(read, chosen))
    with only_errors():
        quantised = nncf.quantize(
            graph,
            nncf.Dataset(chosen, read),
            subset_size=len(chosen),
            preset=nncf.QuantizationPreset.MIXED,
            fast_bias_correction=False,
            advanced_parameters=PARAMETERS,
            ignored_scope=nncf.IgnoredScope(
                names=[*in_float, *weights],
                patterns=list(UNTOUCHED),
                validate=False,
            ),
        )
    _quantise_first(quantised, weights)
    _leave_room(quantised)
    for name in exact:  # the level first, since what stands out is told by it
        _, rounded = _judge(quantised, map(read, chosen))
        _correct(quantised, name, exact[name], rounded[name])
    rounded_peaks, _ = _judge(quantised, map(read, chosen))
    factor = np.median(exact_peaks / np.maximum(rounded_peaks, np.finfo(np.float32).tiny))
    return _scaled(quantised, float(factor), kept=frozenset({"score"} if WITNESSES in exact else ()))


def first_convolutions(graph: ov.Model) -> list[ov.Node]:
    """Return the convolutions that an image reaches before any other."""
    found: dict[str, ov.Node] = {}
    reached = [graph.inputs[0].get_node()]
    seen = set()
    while reached:
        node = reached.pop()
        name = node.get_friendly_name()
        if name in seen or node.get_type_name() == "ShapeOf":
            continue
        seen.add(name)
        if node.get_type_name() in CONVOLUTIONS:
            found[name] = node
        else:
            reached += _readers(node)
    return list(found.values())


def spared(graph: ov.Model) -> list[str]:
    """Return the names of the convolutions that stay in float32.

    First ones with few weights: in a sum of 147 values, as ResNet's 7x7 kernels are, what rounding to grey levels does
    is averaged out, and the errors of weights can cancel; in EfficientNet's of 27 less, which take no time either. And
    depthwise ones of the teacher, which in 8 bits cost EfficientNet-Lite0 a sixth of its image AUROC on the demo's
    bricks, while without them INT8 is no slower.
    """
    first = [node.get_friendly_name() for node in first_convolutions(graph) if _weights_each(node) < MANY_WEIGHTS]
    return first + [
        node.get_friendly_name()
        for node in graph.get_ordered_ops()
        if _is_depthwise(node) and _named_by_network(node).startswith(TEACHER)
    ]


def _weights_each(convolution: ov.Node) -> int:
    """Return the number of weights of an output channel."""
    return int(np.prod(convolution.input_value(1).get_shape()[1:]))


def _is_depthwise(node: ov.Node) -> bool:
    if node.get_type_name() != "GroupConvolution":
        return False
    _, outputs, inputs, *_ = node.input_value(1).get_shape()  # of each group
    return outputs == inputs == 1


def _named_by_network(node: ov.Node) -> str:
    """Return the first name with a module in it from a node on: OpenVINO names convolutions that it folds anew."""
    while not node.get_friendly_name().startswith(NETWORK) and (readers := _readers(node)):
        node = readers[0]
    return node.get_friendly_name()


def _readers(node: ov.Node) -> list[ov.Node]:
    return [reader.get_node() for output in node.outputs() for reader in output.get_target_inputs()]


def _round_first(
    graph: ov.Model, in_float: Sequence[str], images: Iterator[np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Round the weights of first convolutions in a graph, so that whatever is learned from it next knows them so.

    Without VNNI two products at a time are added up in 16 bits: ``2 * 255 * 64`` fits, ``2 * 255 * 127`` does not.

    Returns:
        For each convolution that is not to stay in float32 its weights in 8 bits, and the step of each output channel.
    """
    convolutions = [
        node
        for node in first_convolutions(graph)
        if node.get_type_name() == "Convolution" and node.get_friendly_name() not in in_float
    ]
    found = {}
    for convolution, moment in zip(convolutions, second_moments(graph, convolutions, images), strict=True):
        values = convolution.input_value(1).get_node().data
        widest = np.abs(values).max(axis=(1, 2, 3), keepdims=True)
        steps = np.maximum(widest / SAFE_WEIGHT, np.finfo(np.float32).tiny).astype(np.float32)
        rounded = round_weights(values / steps, moment, SAFE_WEIGHT)
        convolution.input(1).replace_source_output(ops.constant(rounded * steps).output(0))
        found[convolution.get_friendly_name()] = rounded, steps
    graph.validate_nodes_and_infer_types()
    return found


def _quantise_first(graph: ov.Model, weights: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Let first convolutions compute in 8 bits, of all grey levels from black to white."""
    grey: dict[str, ov.Output] = {}
    for convolution in first_convolutions(graph):
        name = convolution.get_friendly_name()
        if name not in weights:
            continue
        rounded, steps = weights[name]
        convolution.input(1).replace_source_output(
            ops.multiply(ops.convert(ops.constant(rounded), np.float32), steps).output(0)
        )
        read = convolution.input_value(0)
        image = read.get_node().get_friendly_name()
        if image not in grey:
            low, high = _values_of_black_and_white(graph, read.get_node())
            step = (high - low) / (IMAGE_LEVELS - 2)  # one less, so that zero, which is beyond the border, can be one
            low = step * round(low / step)
            ends = np.float32(low), np.float32(low + (IMAGE_LEVELS - 1) * step)
            grey[image] = ops.fake_quantize(read, *ends, *ends, levels=IMAGE_LEVELS).output(0)
        convolution.input(0).replace_source_output(grey[image])
    graph.validate_nodes_and_infer_types()


def _leave_room(graph: ov.Model) -> None:
    """Widen what is whitened to :data:`HEADROOM` times the range that it has on normal images."""
    reads = [
        node.input_value(0).get_node()
        for node in graph.get_ops()
        if node.get_type_name() == "Convolution" and node.get_friendly_name().startswith(WHITENING)
    ]
    for rounding in reads:
        if rounding.get_type_name() != "FakeQuantize":
            continue
        for index in range(1, 5):
            end = rounding.input_value(index).get_node().data
            rounding.input(index).replace_source_output(ops.constant(np.float32(HEADROOM * end)).output(0))
    graph.validate_nodes_and_infer_types()


def _values_of_black_and_white(graph: ov.Model, node: ov.Node) -> tuple[float, float]:
    """Return the range, with zero in it, of what a node gives of a black and of a white image."""
    part = ov.Model([node.output(0)], graph.get_parameters())
    compiled = ov.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    values = [compiled(np.full((1, 64, 64, 3), shade, np.uint8))[0] for shade in (0, 255)]
    return min(0.0, *(float(each.min()) for each in values)), max(0.0, *(float(each.max()) for each in values))


def _judge(graph: ov.Model, images: Iterator[np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the maximum of each image's map, ``(N,)``, and the values, ``(V, N)``, of what is corrected in the graph.

    The images are among the known ones, and what rounding adds to no distance is more than it adds to a new image's. So
    the distance is that to the second nearest, which is as selected among others as a new image's to the nearest.
    """
    graph = graph.clone()
    for nearest in _operation(graph, NEAREST):
        distances = nearest.get_node().input_value(0)
        known = distances.get_partial_shape()[1].get_length()
        second = ops.reduce_max(ops.topk(distances, min(2, known), 1, "min", "value").output(0), [1])
        for reader in nearest.get_target_inputs():
            reader.replace_source_output(second.output(0))
    corrected = {name: output for name in (LEVEL, WITNESSES) for output in _operation(graph, name)}
    first = len(graph.outputs)
    graph.add_outputs(list(corrected.values()))
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    peaks: list[float] = []
    values: dict[str, list[np.ndarray]] = {name: [] for name in corrected}
    for image in images:
        found = compiled(image)
        peaks.append(found["map"].max())
        for index, of_images in enumerate(values.values()):
            of_images.append(found[first + index].flatten())
    return np.array(peaks), {name: np.stack(of_images, axis=1) for name, of_images in values.items()}


def _operation(graph: ov.Model, name: str) -> list[ov.Output]:
    """Return the output of an operation, none where its module has none: a score that is the map's maximum.

    Raises:
        DskdError: If the module has operations, but none of this name.
    """
    operations = {node.get_friendly_name(): node for node in graph.get_ops()}
    if name in operations:
        return [operations[name].output(0)]
    if any(each.startswith(name.partition("aten::")[0]) for each in operations):
        msg = (
            f"The graph has no operation {name!r}, which INT8 needs: OpenVINO {ov.__version__} names it "
            "otherwise. Export with --precision f32, or with OpenVINO 2026.4."
        )
        raise DskdError(msg)
    return []


def _correct(graph: ov.Model, name: str, exact: np.ndarray, rounded: np.ndarray) -> None:
    """Give an operation's values, ``(V, N)``, the mean over images that they had before, and the first its spread too.

    The second witness is only moved: what rounding does to a descriptor comes on top of whatever squared distance it
    has.
    """
    spreads = rounded.std(axis=1, keepdims=True)
    scale = np.divide(exact.std(axis=1, keepdims=True), spreads, out=np.ones_like(spreads), where=spreads > 0)
    scale[1:] = 1
    shift = exact.mean(axis=1, keepdims=True) - scale * rounded.mean(axis=1, keepdims=True)
    (operation,) = _operation(graph, name)
    readers = operation.get_target_inputs()
    of_values = -1, *[1] * (len(operation.get_partial_shape()) - 1)
    scale, shift = (np.float32(each).reshape(of_values) for each in (scale, shift))
    corrected = ops.add(ops.multiply(operation, scale), shift)
    for reader in readers:
        reader.replace_source_output(corrected.output(0))
    graph.validate_nodes_and_infer_types()


def _scaled(graph: ov.Model, factor: float, kept: frozenset[str] = frozenset()) -> ov.Model:
    process = PrePostProcessor(graph)
    names = [output.get_names() for output in graph.outputs]
    for output in graph.outputs:
        if not output.get_names() & kept:
            process.output(output.get_any_name()).postprocess().custom(
                lambda values: ops.multiply(values, np.float32(factor)).output(0)
            )
    scaled = process.build()
    for output, named in zip(scaled.outputs, names, strict=True):
        output.set_names(named)  # which the step takes from a graph that has not been quantised
    return scaled
