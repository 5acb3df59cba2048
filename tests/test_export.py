# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Bundles decide as their checkpoints do, or are not written."""

import json
import math
import pickle
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import openvino as ov
import pytest
import torch
from anomalib.data import MVTecAD, PredictDataset
from anomalib.deploy import CompressionType, ExportType
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Normalize, Resize, Transform
from torchvision.transforms.v2.functional import resize

from anomalib_dskd import Dskd, inspector
from anomalib_dskd.errors import DskdError
from anomalib_dskd.export import export, verify
from anomalib_dskd.export.bundle import raw_thresholds, write_metadata
from anomalib_dskd.export.graph import _convertible, _ToFloat, convert, cropped
from anomalib_dskd.export.quantize import (
    LEVEL,
    NEAREST,
    WHITENING,
    WITNESSES,
    _judge,
    _scaled,
    first_convolutions,
    quantize,
    spared,
)
from anomalib_dskd.export.resize import ResizeInBands
from anomalib_dskd.export.rounding import round_weights, second_moments
from anomalib_dskd.export.verify import (
    Comparison,
    compare,
    decode,
    find_images,
    image_pairs,
    refuse_differences,
)

from .conftest import run

SCRIPT = Path(sys.executable).with_name("anomalib-dskd")
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
LEVEL_OF_LOGARITHM = LEVEL.replace("mean/ReduceMean", "exp/Exp")


@pytest.fixture(scope="module")
def model(small_checkpoint) -> Dskd:
    return Dskd.load_from_checkpoint(small_checkpoint).eval()


def predictions(checkpoint: Path, images: Path, tmp_path: Path) -> list:
    """What ``anomalib predict`` says of the images of a folder."""
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, logger=False)
    model = Dskd(teacher_weights="random")
    model.visualizer = None
    batches = engine.predict(model, dataset=PredictDataset(images), ckpt_path=checkpoint)
    return [item for batch in batches for item in batch]


# The graph


@pytest.mark.parametrize("height_and_width", [(64, 96), (80, 70), (900, 1200), (331, 517), (40, 2000)])
@pytest.mark.parametrize("number", [1, 3])
def test_maps_are_the_checkpoints_at_any_size_and_batch(model, compiled, height_and_width, number):
    """Noise shows a resize without antialiasing at once."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (number, *height_and_width, 3), dtype=np.uint8)
    found = compiled(images)
    with torch.no_grad():
        resized = model.pre_processor.transform(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        teacher, students = model.model.features(resized)
        anomalies = model.model.anomalies(teacher, students)
        level = model.model.level(anomalies)
        expected = model.model.predict(teacher, anomalies, level, resized.shape[-2:])
        students = model.model.student_maps(anomalies, level, resized.shape[-2:])
    np.testing.assert_allclose(found["score"], expected.pred_score, rtol=1e-4)
    for name, maps in {"map": expected.anomaly_map, **{f"{s}_map": m for s, m in students.items()}}.items():
        assert found[name].shape == (number, 64, 96)
        assert np.abs(found[name] - maps.squeeze(1).numpy()).max() <= 1e-4 * float(maps.max()), name


@pytest.fixture(scope="module")
def compiled(model):
    graph = convert(model)
    resizes = [each for each in graph.get_ops() if each.get_attributes().get("mode") == "bilinear_pillow"]
    assert not resizes, "which would be slow"
    return ov.Core().compile_model(graph, "CPU", F32)


def test_a_model_that_does_not_resize_is_refused(model):
    bare = Dskd(teacher_weights="random", layers=["layer1", "layer2"], pre_processor=False)
    with pytest.raises(DskdError, match="no pre-processor"):
        convert(bare)


def with_transform(model: Dskd, *transforms: Transform) -> Dskd:
    other = Dskd(
        teacher_weights="random",
        layers=["layer1", "layer2"],
        image_size=(64, 96),
        pre_processor=PreProcessor(Compose([*transforms, Normalize([0.5] * 3, [0.2] * 3)])),
    )
    other.model.load_state_dict(model.model.state_dict())
    return other.eval()


def test_images_may_be_cropped_after_they_are_resized(model):
    with_crop = with_transform(model, Resize((73, 110), antialias=True), CenterCrop((64, 96)))
    compiled = ov.Core().compile_model(convert(with_crop), "CPU", F32)
    for size in ((200, 310), (331, 517)):
        images = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
        with torch.no_grad():
            resized = with_crop.pre_processor.transform(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
            expected = with_crop.model(resized).pred_score
        np.testing.assert_allclose(compiled(images)["score"], expected, rtol=1e-4)
    assert isinstance(with_crop.pre_processor.transform.transforms[1], CenterCrop)  # the model's own is left alone


def test_what_is_cropped_is_known():
    image = torch.arange(73 * 110.0).reshape(1, 1, 73, 110)
    for crops in ([], [CenterCrop((64, 96))], [CenterCrop((70, 101)), CenterCrop((64, 96))]):
        transform = Compose([Resize((73, 110)), *crops, Normalize([0.5], [0.2])])
        left, top, right, bottom = cropped(transform)
        kept = Compose(crops)(image) if crops else image
        assert torch.equal(kept, image[..., top : 73 - bottom, left : 110 - right])
    with pytest.raises(DskdError, match="larger than the image of 64x64 pixels"):
        cropped(Compose([Resize((64, 64)), CenterCrop((64, 96))]))


def test_a_resize_of_another_kind_is_kept(model):
    cubic = Resize((64, 96), interpolation=InterpolationMode.BICUBIC, antialias=True)
    rough = Resize((64, 96), antialias=False)
    images = np.random.default_rng(0).integers(0, 256, (1, 331, 517, 3), dtype=np.uint8)
    scores = []
    for first in (cubic, rough, Resize((64, 96), antialias=True)):
        other = with_transform(model, first)
        with torch.no_grad():
            resized = other.pre_processor.transform(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
            scores.append(float(other.model(resized).pred_score))
        found = ov.Core().compile_model(convert(other), "CPU", F32)(images)["score"]
        np.testing.assert_allclose(found, scores[-1], rtol=1e-4)
    assert len({round(score, 2) for score in scores}) == 3, "which this image tells apart"


@pytest.mark.parametrize("target", [(64, 96), (73, 110), (1, 7)])
@pytest.mark.parametrize("height_and_width", [(64, 96), (1, 1), (5, 300), (63, 2001), (1024, 97)])
def test_resize_in_bands_is_torchvisions(target, height_and_width):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, *height_and_width, 3), dtype=torch.uint8, generator=generator)
    expected = resize(images.permute(0, 3, 1, 2) / 255, list(target), antialias=True)
    torch.testing.assert_close(ResizeInBands(*target)(images), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("target", [(64, 96), (1024, 1023)])
def test_resize_in_bands_keeps_its_places_in_16_bits(target, tmp_path):
    network = ResizeInBands(*target)
    graph = ov.convert_model(network, example_input=torch.zeros(2, 331, 517, 3, dtype=torch.uint8))
    graph.reshape([1, -1, -1, 3])
    ov.save_model(graph, tmp_path / "resize.xml", compress_to_fp16=True)
    images = np.random.default_rng(0).integers(0, 256, (1, 300, 700, 3), dtype=np.uint8)
    found = ov.Core().compile_model(ov.Core().read_model(tmp_path / "resize.xml"), "CPU", F32)(images)[0]
    expected = resize(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, list(target), antialias=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_a_resize_to_more_than_16_bits_can_place_is_kept():
    for size, kind in (((1024, 64), ResizeInBands), ((1025, 64), _ToFloat)):
        first, rest = _convertible(Compose([Resize(size, antialias=True), Normalize([0.5] * 3, [0.2] * 3)]))
        assert type(first) is kind
        assert [type(each) for each in rest.transforms] == (
            [Normalize] if kind is ResizeInBands else [Resize, Normalize]
        )


@pytest.mark.parametrize(
    "transforms",
    [
        [CenterCrop((64, 96)), Resize((64, 96), antialias=True)],
        [Resize(100, antialias=True), CenterCrop((64, 96))],  # where the crop lies depends on the image's shape
    ],
)
def test_a_transform_that_cannot_be_converted_is_named(model, transforms):
    with pytest.raises(DskdError, match=r"(?s)cannot be converted .*CenterCrop\(.*Resize to a fixed size first"):
        convert(with_transform(model, *transforms))


# Thresholds


@pytest.mark.parametrize("sensitivity", [0.2, 0.5, 0.8])
def test_raw_threshold_is_where_the_verdict_of_anomalib_turns(model, sensitivity):
    processor = model.post_processor
    processor.image_sensitivity = sensitivity
    try:
        threshold = raw_thresholds(model)["image_verdict"]
        scores = torch.tensor([0.9999, 1.0001]) * threshold
        normalised = processor._normalize(scores, None, None, processor.image_threshold)
        assert (normalised > processor.normalized_image_threshold).tolist() == [False, True]
        ours = [inspector.normalise(float(score), raw_thresholds(model)["image"]) for score in scores]
        np.testing.assert_allclose(ours, normalised, rtol=1e-6)
    finally:
        processor.image_sensitivity = 0.5


def test_flips_are_counted_but_for_images_at_the_threshold():
    generator = np.random.default_rng(0)
    expected = generator.gamma(2, size=50)
    found = expected * (1 + generator.normal(0, 0.05, 50))
    comparison = Comparison(float(np.median(expected)), [str(i) for i in range(50)], expected.tolist(), found.tolist())
    levels = np.linspace(expected.min(), expected.max(), 100)
    brute = [
        sum((a > t) != (b > t) and abs(a - t) > 1e-4 * t for a, b in zip(expected, found, strict=True)) for t in levels
    ]
    assert comparison.flips_across == sum(brute) > 0
    against = np.maximum(expected, comparison.threshold)
    assert comparison.score_difference == pytest.approx(np.max(np.abs(found - expected) / against))
    for index in comparison.flips:
        assert (expected[index] > comparison.threshold) != (found[index] > comparison.threshold)
        assert f"{found[index]:.6g}  {index}" in comparison.report()
    assert Comparison(1.0, ["a"], [1.00005], [0.99995]).flips == []
    assert Comparison(1.0, ["a"], [1.0002], [0.99995]).flips == [0]


# The bundle


def test_bundle_says_what_it_is(small_bundle, small_checkpoint):
    metadata = json.loads((small_bundle / "metadata.json").read_text())
    assert set(metadata["files"]) == {path.name for path in small_bundle.iterdir()} - {"metadata.json"}
    assert {"inspector.py", "model.xml", "model.bin", "requirements.txt", "README.md"} == set(metadata["files"])
    processor = Dskd.load_from_checkpoint(small_checkpoint).post_processor
    assert metadata["threshold"]["image"] == float(processor.image_threshold)
    assert metadata["normalisation"]["pixel"] == float(processor.pixel_threshold)
    assert metadata["false_alarm_rate"] == 0.01
    assert metadata["verification"]["images"] == "none were given"
    assert metadata["verification"]["drawn_pictures"]["largest_map_difference"] < 1e-4
    assert metadata["input"]["width"] is None
    assert metadata["input"]["cropped"] == [0, 0, 0, 0]
    assert metadata["teacher"] == {"backbone": "resnet18", "weights": "random"}
    assert math.isfinite(metadata["threshold"]["pixel"])


def test_command_writes_a_bundle_with_the_verdicts_of_anomalib(small_checkpoint, mvtec_root, tmp_path):
    good, test = mvtec_root / "stripes/train/good", mvtec_root / "stripes/test"
    command = [SCRIPT, "export", "--ckpt", small_checkpoint, "--out", tmp_path / "new/bundle"]
    result = run([*command, "--images", good, "--verify", test, "--max-flips", 0], cwd=tmp_path)
    assert "16 images" in result.stdout
    assert "0 verdicts flipped" in result.stdout
    metadata = json.loads((tmp_path / "new/bundle/metadata.json").read_text())
    assert metadata["verification"]["images"]["images"] == 16
    assert metadata["verification"]["images"]["flips_at_100_thresholds"] == 0
    assert (metadata["input"]["width"], metadata["input"]["height"]) == (96, 80)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bundle"]

    inspected = run([SCRIPT, "inspect", tmp_path / "new/bundle", test, "--json"], cwd=tmp_path, check=False)
    records = {record["file"]: record for record in map(json.loads, inspected.stdout.splitlines())}
    expected = predictions(small_checkpoint, test, tmp_path)
    assert len(records) == len(expected) == 8
    for item in expected:
        record = records[item.image_path]
        assert record["score"] == pytest.approx(float(item.raw_score), rel=1e-4)
        assert record["normalised"] == pytest.approx(float(item.pred_score), rel=1e-4)
        assert record["verdict"] == ("NG" if item.pred_label else "OK")
    assert inspected.returncode == (3 if any(item.pred_label for item in expected) else 0)


@pytest.fixture(scope="module")
def int8_bundle(small_checkpoint, mvtec_root, tmp_path_factory) -> Path:
    bundle = tmp_path_factory.mktemp("int8") / "bundle"
    export(small_checkpoint, bundle, "int8", images=mvtec_root / "stripes/train/good", max_flips=8)
    return bundle


def test_int8_bundle(small_checkpoint, small_bundle, int8_bundle, mvtec_root, capsys):
    assert size(int8_bundle) < 0.35 * size(small_bundle)
    graph = ov.Core().read_model(int8_bundle / "model.xml")
    reads = [each.input_value(0).get_node() for each in first_convolutions(graph)]
    assert [each.get_type_name() for each in reads] == ["FakeQuantize"] * 2, "the teacher's and the encoder's"
    sums = [each for each in graph.get_ops() if re.search(r"aten::add_?/Add$", each.get_friendly_name())]
    rounded = {
        each.get_friendly_name().split(".")[2].split("/")[0]
        for each in sums
        if "FakeQuantize" in {value.get_node().get_type_name() for value in each.input_values()}
    }
    assert {"teacher", "encoder"} <= rounded
    assert "decoder" not in rounded
    for operation in graph.get_ops():
        if operation.get_type_name() == "FakeQuantize":
            readers = [reader.get_node() for reader in operation.output(0).get_target_inputs()]
            names = [reader.get_friendly_name() for reader in readers if reader.get_type_name() != "ShapeOf"]
            assert not [name for name in names if name.startswith(("aten::", "__module.resize", "__module.transform"))]
            assert not [name for name in names if "image_score" in name or "anomaly_map_generator" in name]
            assert all(name.endswith("aten::_convolution/Convolution") for name in names if "scale_anomalies" in name)
    verify(small_checkpoint, int8_bundle, mvtec_root / "stripes/test", max_flips=8)
    assert capsys.readouterr().out.startswith("8 images: largest relative difference")


def test_int8_clips_nothing_that_it_was_shown(int8_bundle, mvtec_root):
    graph = ov.Core().read_model(int8_bundle / "model.xml")
    ranges = [
        operation
        for operation in graph.get_ops()
        if operation.get_type_name() == "FakeQuantize" and not is_constant(operation.input_value(0).get_node())
    ]
    highest = np.array([operation.input_value(2).get_node().data.max() for operation in ranges])
    graph.add_outputs([operation.input_value(0) for operation in ranges])
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled.outputs[-len(ranges) :]
    for path in find_images(mvtec_root / "stripes/train/good"):
        found = compiled(decode(path)[None])
        reached = np.array([found[output].max() for output in outputs])
        assert (reached < 1.05 * highest).all()


def test_int8_leaves_room_for_defects_where_distances_are_whitened(int8_bundle, mvtec_root):
    graph = ov.Core().read_model(int8_bundle / "model.xml")
    whitening = [
        node
        for node in graph.get_ops()
        if node.get_type_name() == "Convolution" and node.get_friendly_name().startswith(WHITENING)
    ]
    assert len(whitening) == 12, "of two students, two scales, locations and regions of two widths"
    roundings = [node.input_value(0).get_node() for node in whitening]
    assert {each.get_type_name() for each in roundings} == {"FakeQuantize"}
    ends = np.array(
        [max(np.abs(each.input_value(index).get_node().data).max() for index in (1, 2)) for each in roundings]
    )
    reads = [each.input_value(0) for each in roundings]
    compiled = ov.Core().compile_model(
        ov.Model(reads, graph.get_parameters()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    reached = np.max(
        [
            [np.abs(values).max() for values in compiled(decode(path)[None]).to_tuple()]
            for path in find_images(mvtec_root / "stripes/train/good")
        ],
        axis=0,
    )
    assert (reached < 0.6 * ends).all(), "twice the range, but for what rounding before it adds"
    assert (reached > 0.25 * ends).all()


@pytest.fixture(scope="module")
def image_weights(small_bundle, mvtec_root) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a first convolution in steps of 7 bits, and the second moment of what it reads."""
    graph = ov.Core().read_model(small_bundle / "model.xml")
    convolution = first_convolutions(graph)[0]
    images = [decode(path)[None] for path in find_images(mvtec_root / "stripes/train/good")]
    (moment,) = second_moments(graph, [convolution], iter(images))
    values = convolution.input_value(1).get_node().data
    compiled = ov.Core().compile_model(
        ov.Model([convolution.output(0)], graph.get_parameters()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    squares = np.mean([np.square(compiled(image)[0]).mean(axis=(0, 2, 3)) for image in images], axis=0)
    flat = values.reshape(len(values), -1)
    np.testing.assert_allclose(np.einsum("nk,kl,nl->n", flat, moment, flat), squares, rtol=1e-3)
    return values / np.abs(values).max(axis=(1, 2, 3), keepdims=True) * 64, moment


def test_errors_of_rounded_weights_cancel_in_what_they_compute(image_weights):
    weights, moment = image_weights

    def missed(rounded: np.ndarray) -> float:
        differences = (rounded - weights).reshape(len(weights), -1)
        return float(np.trace(differences @ moment @ differences.T))

    rounded = round_weights(weights, moment, 64)
    assert rounded.dtype == np.int8
    assert np.abs(rounded).max() == 64
    assert missed(rounded) < 0.1 * missed(np.round(weights))


def test_weights_of_values_that_have_nothing_in_common_are_rounded_to_the_nearest(image_weights):
    weights, moment = image_weights
    np.testing.assert_array_equal(round_weights(weights, np.eye(len(moment)), 64), np.round(weights))


def test_int8_sees_black_and_white_as_they_are(int8_bundle):
    """Whatever the ranges were taken from; beyond the border there is zero, which rounding has to keep."""
    graph = ov.Core().read_model(int8_bundle / "model.xml")
    readers = [node.input_value(0).get_node() for node in first_convolutions(graph)]
    assert len({each.get_friendly_name() for each in readers}) == 1, "rounded once for both networks"
    rounding = readers[0]
    assert rounding.get_type_name() == "FakeQuantize"
    low, high = (float(rounding.input_value(index).get_node().data.item()) for index in (1, 2))
    step = (high - low) / 255
    assert low / step == pytest.approx(round(low / step), abs=1e-3)
    graph.add_outputs([rounding.input_value(0), rounding.output(0)])
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shade in (0, 255):
        found = list(compiled(np.full((1, 80, 70, 3), shade, np.uint8)).values())
        np.testing.assert_allclose(found[-1], found[-2], atol=0.51 * step)


def test_int8_weights_have_all_of_8_bits_but_those_that_read_the_image(int8_bundle):
    """The image has the widest range there is: two products with 127 overflow 16 bits on a CPU without VNNI."""
    graph = ov.Core().read_model(int8_bundle / "model.xml")
    reading = {node.get_friendly_name() for node in first_convolutions(graph)}
    convolutions = {node.get_friendly_name(): node for node in graph.get_ops() if node.get_type_name() == "Convolution"}
    weights = {name: levels(node.input_value(1).get_node()) for name, node in convolutions.items()}
    highest = {name: np.abs(each).max() for name, each in weights.items() if each is not None and each.any()}
    assert len(highest) > 20
    assert highest == {name: 64 if name in reading else 127 for name in highest}


def test_int8_spares_depthwise_convolutions_of_the_teacher(mvtec_root):
    """In 8 bits they cost EfficientNet-Lite0 more accuracy than all else."""
    model = Dskd(backbone="tf_efficientnet_lite0", teacher_weights="random", image_size=64, whole_image=False).eval()
    graph = convert(model)
    names = spared(graph)
    assert set(names[:2]) == {node.get_friendly_name() for node in first_convolutions(graph)}, "of 27 weights each"
    quantised = quantize(graph, find_images(mvtec_root / "stripes/train/good"))
    grouped = [node for node in quantised.get_ordered_ops() if node.get_type_name() == "GroupConvolution"]
    in_float = {node.get_friendly_name() for node in grouped if levels(node.input_value(1).get_node()) is None}
    assert in_float == set(names[2:])
    assert len(grouped) == 2 * len(in_float), "the encoder has as many, in 8 bits"


def levels(weights: ov.Node) -> np.ndarray | None:
    """Return the 8-bit numbers that weights are computed from, none for those in float32."""
    while weights.get_type_name() != "Constant":
        weights = weights.input_value(0).get_node()
    return weights.data.astype(int) if weights.get_element_type() == ov.Type.i8 else None


def is_constant(node: ov.Node) -> bool:
    """Tell whether a node depends on no input, as weights do on the way to their rounding."""
    return node.get_type_name() != "Parameter" and all(is_constant(value.get_node()) for value in node.input_values())


def test_int8_keeps_the_scale_of_normal_scores(small_checkpoint, small_bundle, int8_bundle, mvtec_root):
    """Rounding makes students and teacher differ on every image; that is taken off scores and maps again."""
    exact, rounded = (
        inspector.Model(inspector.Bundle.open(bundle), throughput=False, students=True)
        for bundle in (small_bundle, int8_bundle)
    )
    images = [np.asarray(Image.open(path)) for path in sorted((mvtec_root / "stripes/train/good").iterdir())]
    found = [(exact(image), rounded(image)) for image in images]
    assert np.median([b["map"].max() / a["map"].max() for a, b in found]) == pytest.approx(1, abs=1e-3)
    for a, b in found:
        assert b["score"] == pytest.approx(a["score"], rel=0.3)
        assert set(a) == set(b) == {"score", "map", "encoder_map", "decoder_map"}


def test_int8_keeps_the_score_of_images_that_are_unusual_as_a_whole(small_bundle, int8_bundle, mvtec_root):
    """Which the images that it was corrected on, being those of the training, are not."""
    exact, rounded = (
        inspector.Model(inspector.Bundle.open(bundle), throughput=False) for bundle in (small_bundle, int8_bundle)
    )
    for path in sorted((mvtec_root / "stripes/train/good").iterdir()):
        dark = np.asarray(Image.open(path)) // 3
        score = float(exact(dark)["score"])
        assert score > 10
        assert rounded(dark)["score"] == pytest.approx(score, rel=0.2)


def test_int8_keeps_mean_and_deviation_of_the_levels_of_images(small_bundle, int8_bundle, mvtec_root):
    levels = []
    for bundle in (small_bundle, int8_bundle):
        graph = ov.Core().read_model(bundle / "model.xml")
        (exponential,) = (node for node in graph.get_ops() if node.get_friendly_name() == LEVEL_OF_LOGARITHM)
        graph.add_outputs(exponential.input_value(0))
        compiled = ov.Core().compile_model(graph, "CPU", F32)
        levels.append([compiled(decode(path)[None])[-1].item() for path in find_images(mvtec_root / "stripes/train")])
    exact, rounded = np.array(levels)
    assert (exact != rounded).all()
    assert rounded.mean() == pytest.approx(exact.mean(), abs=1e-3)
    assert rounded.std() == pytest.approx(exact.std(), rel=1e-2)


def test_int8_is_corrected_by_the_second_nearest_of_known_images(small_bundle, mvtec_root):
    """What corrections are taken from is known: at no distance, to which rounding adds more than to others."""
    graph = ov.Core().read_model(small_bundle / "model.xml")
    images = [np.asarray(Image.open(path))[None] for path in sorted((mvtec_root / "stripes/train/good").iterdir())]
    second = _judge(graph, iter(images))[1][WITNESSES][1]
    operations = {node.get_friendly_name(): node for node in graph.get_ops()}
    distances, witnesses = operations[NEAREST].input_value(0), operations[WITNESSES].output(0)
    graph.add_outputs([distances, witnesses])
    compiled = ov.Core().compile_model(graph, "CPU", F32)
    for image, expected in zip(images, second, strict=True):
        *_, to_each, found = compiled(image).values()
        least, next_to_least, *_ = np.sort(to_each[0])
        assert expected == pytest.approx(found[1, 0] + next_to_least - least, rel=1e-3)
        assert expected > 1 > found[1, 0]


@pytest.mark.parametrize("name", [LEVEL, WITNESSES, NEAREST])
def test_int8_says_so_where_openvino_names_operations_otherwise(small_bundle, mvtec_root, name):
    graph = ov.Core().read_model(small_bundle / "model.xml")
    for node in graph.get_ops():
        if node.get_friendly_name() == name:
            node.set_friendly_name("otherwise")
    images = find_images(mvtec_root / "stripes/train/good")
    with pytest.raises(DskdError, match=r"OpenVINO .* names it otherwise. Export with --precision f32"):
        quantize(graph, images)


def test_f16_bundle(small_checkpoint, small_bundle, mvtec_root, tmp_path):
    export(small_checkpoint, tmp_path / "bundle", "f16", images=mvtec_root / "stripes/train/good")
    assert size(tmp_path / "bundle") < 0.6 * size(small_bundle)
    metadata = json.loads((tmp_path / "bundle/metadata.json").read_text())
    assert 0 < metadata["verification"]["images"]["largest_map_difference"] < 1e-2


def size(bundle: Path) -> int:
    return (bundle / "model.bin").stat().st_size


def test_a_bundle_of_another_checkpoint_is_found_out(small_checkpoint, small_bundle, mvtec_root, tmp_path, capsys):
    """The same network with its encoder slightly off; its verdicts are compared where they differ most."""
    state = torch.load(small_checkpoint, weights_only=True)
    for name, value in state["state_dict"].items():
        if name.startswith("model.encoder") and value.is_floating_point():
            value.mul_(1.05)
    torch.save(state, tmp_path / "other.ckpt")
    scores = sorted(float(item.raw_score) for item in predictions(small_checkpoint, mvtec_root / "stripes", tmp_path))
    bundle = shutil.copytree(small_bundle, tmp_path / "bundle")
    set_threshold(bundle, (scores[0] + scores[1]) / 2)
    with pytest.raises(DskdError, match="verdicts are flipped, more than max_flips=0"):
        verify(tmp_path / "other.ckpt", bundle, mvtec_root / "stripes")
    assert "  flipped from " in capsys.readouterr().out


def test_verify_refuses_what_export_does(small_checkpoint, small_bundle, mvtec_root, tmp_path, capsys):
    """A checkpoint whose maps differ, though no verdict does; and images of a size that the bundle does not take."""
    state = torch.load(small_checkpoint, weights_only=True)
    state["state_dict"]["model.encoder.conv1.weight"].mul_(1.01)
    torch.save(state, tmp_path / "other.ckpt")
    bundle = shutil.copytree(small_bundle, tmp_path / "bundle")
    set_threshold(bundle, 1e6)
    with pytest.raises(DskdError, match="maps differ from the checkpoint's by"):
        verify(tmp_path / "other.ckpt", bundle, mvtec_root / "stripes/test")
    metadata = json.loads((bundle / "metadata.json").read_text())
    metadata["input"].update(width=80, height=96)
    (bundle / "metadata.json").write_text(json.dumps(metadata))
    capsys.readouterr()
    with pytest.raises(DskdError, match="None of the 8 images to verify with is 80x96"):
        verify(small_checkpoint, bundle, mvtec_root / "stripes/test")
    assert capsys.readouterr().out.count("Not verified, since it is not 80x96") == 8
    images = shutil.copytree(mvtec_root / "stripes/test", tmp_path / "images")
    with Image.open(next(images.rglob("*.png"))) as image:
        image.resize((80, 96)).save(images / "fits.png")
    verify(small_checkpoint, bundle, images)
    assert capsys.readouterr().out.count("1 images: largest") == 1


def test_a_bundle_that_returns_no_number_is_refused(model, small_bundle, mvtec_root, tmp_path):
    pairs = list(image_pairs(find_images(mvtec_root / "stripes/test")[:1]))
    bundle = shutil.copytree(small_bundle, tmp_path / "bundle")
    ov.save_model(_scaled(convert(model), math.inf), bundle / "model.xml", compress_to_fp16=False)
    write_metadata(bundle, json.loads((bundle / "metadata.json").read_text()))
    with pytest.raises(DskdError, match="is no number"):
        compare(model, bundle, pairs)


@pytest.mark.parametrize("differing", ["score", "map"])
def test_a_difference_without_a_flip_is_refused_in_float32(differing):
    """Both scores are above the threshold, at which alone drawn pictures would tell nothing."""
    scores = [9.0, 5.0] if differing == "score" else [9.0, 9.0]
    comparison = Comparison(1.0, ["a"], scores[:1], scores[1:], 0.2 if differing == "map" else 0.0)
    with pytest.raises(DskdError, match=f"{differing}s differ from the checkpoint's by"):
        refuse_differences([Comparison(1.0), comparison], 0, "f32", 0)
    refuse_differences([comparison], 0, "int8", 0)


def test_images_that_cannot_be_judged_are_named(small_checkpoint, tmp_path):
    (tmp_path / "deep").mkdir()
    cv2.imwrite(str(tmp_path / "deep/a.png"), np.zeros((80, 96, 3), np.uint16))
    for precision in ("f32", "int8"):
        with pytest.raises(DskdError, match=r"deep/a\.png: 16-bit or float levels"):
            export(small_checkpoint, tmp_path / "bundle", precision, images=tmp_path / "deep")
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(DskdError, match=r"deep/a\.png: it has 16-bit .* The inspector refuses"):
        decode(tmp_path / "deep/a.png")


def set_threshold(bundle: Path, threshold: float) -> None:
    metadata = json.loads((bundle / "metadata.json").read_text())
    metadata["threshold"]["image"] = threshold
    (bundle / "metadata.json").write_text(json.dumps(metadata))


def test_a_bundle_that_flips_verdicts_is_not_written(small_checkpoint, int8_bundle, mvtec_root, tmp_path):
    """Quantised, with the threshold between an image's score and its quantised one."""
    good = mvtec_root / "stripes/train/good"
    exact = {item.image_path: float(item.raw_score) for item in predictions(small_checkpoint, good, tmp_path)}
    quantised = inspector.Model(inspector.Bundle.open(int8_bundle), throughput=False)
    rounded = {path: float(quantised(np.asarray(Image.open(path).convert("RGB")))["score"]) for path in exact}
    farthest = max(exact, key=lambda path: abs(exact[path] - rounded[path]))
    state = torch.load(small_checkpoint, weights_only=True)
    state["state_dict"]["post_processor._image_threshold"].fill_((exact[farthest] + rounded[farthest]) / 2)
    torch.save(state, tmp_path / "moved.ckpt")
    with pytest.raises(DskdError, match="verdicts are flipped, more than max_flips=0"):
        export(tmp_path / "moved.ckpt", tmp_path / "refused", "int8", images=good)
    assert not list(tmp_path.glob("*refused*"))


class Evil:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_what_cannot_be_exported_is_refused(small_checkpoint, small_bundle, tmp_path):
    with pytest.raises(DskdError, match="exists already"):
        export(small_checkpoint, small_bundle)
    with pytest.raises(DskdError, match="needs images"):
        export(small_checkpoint, tmp_path / "out", "int8")
    with pytest.raises(DskdError, match="has no images"):
        export(small_checkpoint, tmp_path / "out", images=tmp_path)
    with pytest.raises(DskdError, match="precision='bf16' is not one of"):
        export(small_checkpoint, tmp_path / "out", "bf16")
    for name, side in (("good", 64), ("others", 80)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (side, side)).save(tmp_path / name / "0.png")
    with pytest.raises(DskdError, match="None of the 1 images to verify with is 64x64"):
        export(small_checkpoint, tmp_path / "out", images=tmp_path / "good", verify=tmp_path / "others")
    with pytest.raises(DskdError, match="does not exist"):
        export(tmp_path / "absent.ckpt", tmp_path / "out")
    (tmp_path / "damaged.ckpt").write_bytes(small_checkpoint.read_bytes()[:10_000])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "page.ckpt").write_text("Repository not found")
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    for name in ("damaged", "empty", "page", "tensor"):
        with pytest.raises(DskdError, match=r"or damaged|damaged, or"):
            export(tmp_path / f"{name}.ckpt", tmp_path / "out")
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"state_dict": Evil(tmp_path / "run")}))
    torch.save({"state_dict": Evil(tmp_path / "run")}, tmp_path / "evil_zip.ckpt")
    for name in ("evil.ckpt", "evil_zip.ckpt"):
        with pytest.raises(DskdError, match="is not loaded: it could run code") as refused:
            export(tmp_path / name, tmp_path / "out")
        assert "weights_only" not in str(refused.value)  # torch says how to run it all the same
    assert not (tmp_path / "run").exists()
    state = torch.load(small_checkpoint, weights_only=True)
    for name in ("_image_threshold", "_pixel_threshold"):
        state["state_dict"][f"post_processor.{name}"].fill_(float("nan"))
    torch.save(state, tmp_path / "no_threshold.ckpt")
    with pytest.raises(DskdError, match="no image threshold"):
        export(tmp_path / "no_threshold.ckpt", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


# anomalib's own export


@pytest.mark.parametrize(
    "compression",
    [
        pytest.param(each, marks=[pytest.mark.long] if each == CompressionType.INT8_ACQ else [])
        for each in (None, *CompressionType)
    ],
)
def test_anomalibs_export_takes_every_compression(model, small_checkpoint, mvtec_root, tmp_path, compression):
    """Its images are as large as its network's input: anomalib's export resizes without antialiasing."""
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, logger=False)
    path = engine.export(
        Dskd(teacher_weights="random"),
        ExportType.OPENVINO,
        export_root=tmp_path,
        compression_type=compression,
        datamodule=MVTecAD(mvtec_root, "stripes", num_workers=0),
        ckpt_path=small_checkpoint,
    )
    compiled = ov.Core().compile_model(path, "CPU", F32)
    good = Image.open(mvtec_root / "stripes/test/good/000.png").resize((96, 64))
    image = torch.from_numpy(np.array(good)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = model(image)
    found = compiled(image.numpy())
    tolerance = {None: 1e-4, CompressionType.FP16: 5e-3}.get(compression, 0.2)
    assert np.abs(found["anomaly_map"] - expected.anomaly_map.numpy()).max() <= tolerance
    assert np.abs(found["pred_score"] - expected.pred_score.numpy()).max() <= tolerance
