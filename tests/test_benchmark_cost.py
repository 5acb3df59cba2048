# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""What models cost: counted independently, exported and run for real, timed in turns."""

import gc
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from anomalib.data.utils import read_image
from anomalib.models import Padim, Patchcore, ReverseDistillation, Stfpm
from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel
from anomalib.models.image.patchcore import torch_model as patchcore_model
from torch import nn

from anomalib_dskd import Dskd
from anomalib_dskd.benchmark.cost import measure_size
from anomalib_dskd.benchmark.engines import OpenVinoEngine, TorchEngine, read_images
from anomalib_dskd.benchmark.environment import environment, has_bf16
from anomalib_dskd.benchmark.exported import export
from anomalib_dskd.benchmark.interleaved import interleave
from anomalib_dskd.benchmark.latency import measure_latency
from anomalib_dskd.benchmark.peak_memory import PeakMemory
from anomalib_dskd.errors import DskdError
from anomalib_dskd.local_weights import local_weights
from anomalib_dskd.model.cost import count_cost

from .conftest import run

SIZE = (64, 64)
ENGINES = [("torch", "f32"), ("torch", "bf16"), ("openvino", "f32"), ("openvino", "bf16"), ("openvino", "int8")]


class Unexportable(Patchcore):
    """Looks into the image to decide what to do, which no graph can."""

    def forward(self, batch, *args, **kwargs):
        return super().forward(batch if float(batch.mean()) < 2 else batch / 2)


def build_dskd() -> Dskd:
    model = Dskd(teacher_weights="random", students="encoder", image_size=SIZE, visualizer=False)
    model._has_teacher = True
    return model


def build_patchcore(bank: int = 200, cls: type[Patchcore] = Patchcore) -> Patchcore:
    model = cls(
        backbone="resnet18",
        layers=["layer1"],
        pre_trained=False,
        visualizer=False,
        pre_processor=Patchcore.configure_pre_processor(SIZE),
    )
    dimensions = sum(model.model.feature_extractor.out_dims)
    model.model.memory_bank = torch.rand(bank, dimensions, generator=torch.Generator().manual_seed(2))
    return model


def build_stfpm(teacher_file) -> Stfpm:
    with local_weights({"resnet18": teacher_file}):
        return Stfpm(pre_processor=Stfpm.configure_pre_processor(SIZE), visualizer=False)


def convolution_macs(network: nn.Module, images: torch.Tensor) -> int:
    """Count by the textbook: each output of a convolution is a sum over its kernel."""
    macs = []

    def count(module, arguments, output):
        positions = arguments[0] if isinstance(module, nn.ConvTranspose2d) else output
        macs.append(positions[0, 0].numel() * module.weight.numel())

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    hooks = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, kinds)]
    with torch.no_grad():
        network.eval()(images)
    for hook in hooks:
        hook.remove()
    return sum(macs)


# What is counted


def test_gmacs_are_those_of_the_textbook(teacher_file):
    networks = {
        "Stfpm": build_stfpm(teacher_file).model,
        "ReverseDistillation": ReverseDistillation("resnet18", pre_trained=False).model,
        "EfficientAd": EfficientAdModel(),
        "Dskd": Dskd(teacher_weights="random", smoothing=0).model,
    }
    images = torch.zeros(1, 3, 256, 256)
    for name, network in networks.items():
        counted = count_cost(network, images)[""]
        expected = convolution_macs(network, images) / 1e9
        if name == "Dskd":  # whitening, functional too, of two students: at three scales, regions on a grid of 16 x 16
            expected += 2 * (3 * 2**24 + (64**2 + 128**2 + 256**2) * 16**2) / 1e9
        # the rest are functional convolutions, blurs of the map, and the products that upsample Dskd's
        assert counted.gmacs == pytest.approx(expected, abs=0.1), name
        assert counted.gmacs >= expected - 1e-9, name


def test_gmacs_at_256_pixels(teacher_file):
    """STFPM with ResNet-18 has twice the teacher's 1.83."""
    stfpm = build_stfpm(teacher_file)
    stfpm.pre_processor = Stfpm.configure_pre_processor((256, 256))
    assert measure_size(stfpm, (256, 256))["gmacs"] == pytest.approx(3.66, abs=0.01)


def test_memory_bank_costs_space_and_time():
    small, large = (measure_size(build_patchcore(bank), SIZE) for bank in (200, 1000))
    patches, dimensions = 16 * 16, 64
    assert large["bank_mb"] - small["bank_mb"] == pytest.approx(800 * dimensions * 4 / 1e6, abs=1e-9)
    # every patch is compared with every entry; so is the one patch whose neighbourhood weights the score
    assert large["gmacs"] - small["gmacs"] == pytest.approx((patches + 1) * 800 * dimensions / 1e9, rel=1e-6)
    assert large["parameters"] == small["parameters"]


def test_gaussians_are_no_parameters():
    model = Padim(backbone="resnet18", pre_trained=False, pre_processor=Padim.configure_pre_processor(SIZE))
    model.model.gaussian.mean = torch.rand(100, 256)
    model.model.gaussian.inv_covariance = torch.eye(100).expand(256, 100, 100).contiguous()
    size = measure_size(model, SIZE)
    assert size["bank_mb"] == pytest.approx((100 + 100 * 100) * 256 * 4 / 1e6, rel=0.01)
    assert size["parameters"] == 2_782_784  # ResNet-18 to layer3


def test_parameters_are_those_that_inference_reads():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
            self.tied = nn.Conv2d(8, 8, 1)
            self.tied.weight = self.trunk[2].weight
            self.for_training = nn.Conv2d(8, 100, 3)
            self.register_buffer("bank", torch.ones(1, 8, 1, 1))
            self.register_buffer("unread_bank", torch.ones(1000))

        def forward(self, images):
            features = self.tied(self.trunk(images)) - self.bank
            return self.for_training(features) if self.training else features

    network = Network().train()
    cost = count_cost(network, torch.zeros(2, 3, 10, 10), ["trunk", "for_training"])
    assert cost[""].parameters == 3 * 8 * 9 + 16 + 8 * 8 + 8 + 8
    assert cost["trunk"].parameters == 3 * 8 * 9 + 16 + 8 * 8 + 8
    assert cost["for_training"] == (0, 0, 0)
    assert cost[""].bank_bytes == 8 * 4
    assert cost[""].gmacs * 1e9 == pytest.approx(2 * 64 * (3 * 8 * 9 + 2 * 8 * 8))
    assert cost["trunk"].gmacs * 1e9 == pytest.approx(2 * 64 * (3 * 8 * 9 + 8 * 8))
    assert network.training


def test_measuring_leaves_the_model_as_it_was(tmp_path):
    model = build_patchcore().train()
    model.model.feature_extractor.eval()
    before = {name: module.training for name, module in model.named_modules()}
    size = measure_size(model, SIZE)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert len(set(before.values())) == 2
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.ckpt")
    assert size["checkpoint_mb"] == pytest.approx((tmp_path / "model.ckpt").stat().st_size / 1e6, rel=0.01)


# Timing in turns


def test_ratios_within_a_round_survive_a_noisy_machine():
    """A machine that is up to ten times slower in some rounds slows both; medians alone would depend on the draw."""
    noise = np.random.default_rng(0).choice([1, 2, 5, 10], 40)

    def task(milliseconds):
        return [lambda turn: time.sleep(milliseconds * noise[turn] / 1e3)]

    seconds = interleave({"a": task(1), "b": task(3)}, rounds=20, warmup=2)
    ratios = seconds["b"][0] / seconds["a"][0]
    assert np.median(ratios) == pytest.approx(3, rel=0.25)
    assert seconds["a"].max() / seconds["a"].min() > 5


def test_order_is_drawn_anew_and_repeatable():
    def record(seed):
        calls = []
        tasks = {
            name: [lambda turn, name=name: calls.append((turn, name)), lambda turn, name=name: calls.append((turn, 0))]
            for name in "abc"
        }
        seconds = interleave(tasks, rounds=6, warmup=2, seed=seed)
        assert {name: values.shape for name, values in seconds.items()} == dict.fromkeys("abc", (2, 6))
        return calls

    calls = record(seed=1)
    assert calls == record(seed=1) != record(seed=2)
    assert [turn for turn, _ in calls] == [turn for turn in range(-2, 6) for _ in range(9)]
    orders = {tuple(name for turn, name in calls[start : start + 9 : 3]) for start in range(0, len(calls), 9)}
    assert len(orders) > 2
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)


def test_garbage_is_collected_again_after_an_error():
    def fail(turn):
        raise KeyError(turn)

    with pytest.raises(KeyError):
        interleave({"a": [fail]}, rounds=1)
    assert gc.isenabled()


# Exports and engines


@pytest.fixture(scope="module")
def image_files(mvtec_root) -> list[Path]:
    return sorted(mvtec_root.glob("stripes/train/good/*.png"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory, image_files):
    """Dskd, PatchCore with its batch built into the graph as at 256 pixels, and two models that fail."""
    folder = tmp_path_factory.mktemp("exports")
    models = {
        "Dskd": build_dskd().train(),
        "Patchcore": build_patchcore(bank=10_000).eval(),  # more than what allocators differ by
        "Unexportable": build_patchcore(cls=Unexportable),
        "Untrained": Padim(backbone="resnet18", pre_trained=False),
    }
    modes = {name: model.training for name, model in models.items()}
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patchcore_model, "DEFAULT_CHUNK_SIZE", 100)
        rows = measure_latency(
            models, image_files, folder, SIZE, image_files[:4], batches=(1, 3), rounds=4, warmup=1, threads=1
        )
    assert {name: model.training for name, model in models.items()} == modes
    assert torch.get_num_threads() == threads
    return {(row["model"], row["engine"], row["precision"], row["batch"]): row for row in rows}, folder


def expected_engines() -> list[tuple[str, str]]:
    return [(engine, precision) for engine, precision in ENGINES if has_bf16() or precision != "bf16"]


@pytest.mark.parametrize("model", ["Dskd", "Patchcore"])
def test_every_engine_and_batch_is_timed(measured, model):
    rows, _ = measured
    for engine, precision in expected_engines():
        for batch in (1, 3):
            row = rows[model, engine, precision, batch]
            assert row["error"] is None, row
            assert 0 < row["q1_ms"] <= row["median_ms"] <= row["q3_ms"] <= row["p99_ms"]
            assert row["images_per_second"] == pytest.approx(batch / row["median_ms"] * 1e3)
            assert row["peak_memory_mib"] > 2
            assert row["threads"] == 1
            assert row["rounds"] == 4
            assert (row["file_to_verdict_ms"] is None) == (batch > 1)
            assert row["ratio"] == 1 if model == "Dskd" else row["ratio"] > 0
            assert (row["ratio_to_torch"] == 1) == ((engine, precision) == ("torch", "f32"))
        best = [batch for batch in (1, 3) if rows[model, engine, precision, batch]["best_batch"]]
        speeds = {batch: rows[model, engine, precision, batch]["images_per_second"] for batch in (1, 3)}
        assert best == [max(speeds, key=speeds.get)]


@pytest.mark.parametrize("model", ["Dskd", "Patchcore"])
def test_engines_say_what_torch_says(measured, model):
    rows, _ = measured
    limits = {("torch", "f32"): 0.0, ("openvino", "f32"): 1e-5}
    for engine, precision in expected_engines():
        for batch in (1, 3):
            error = rows[model, engine, precision, batch]["map_error"]
            assert error <= limits.get((engine, precision), 0.1), (engine, precision, batch)
            assert (error == 0) == ((engine, precision) == ("torch", "f32"))


def test_failures_are_rows_that_say_why(measured):
    rows, _ = measured
    for batch in (1, 3):
        assert rows["Unexportable", "torch", "f32", batch]["error"] is None
        for precision in ("f32", "int8"):
            row = rows["Unexportable", "openvino", precision, batch]
            assert row["error"].startswith("GuardOnDataDependentSymNode: Could not guard on data-dependent expression")
            assert "\n" not in row["error"]
            assert row["median_ms"] is row["exported_mb"] is None
            assert not row["best_batch"]
        assert rows["Untrained", "torch", "f32", batch]["error"]
        assert rows["Untrained", "openvino", "f32", batch]["error"]
    json.dumps(list(rows.values()), allow_nan=False)


def test_a_batch_built_into_the_graph_is_exported_for_each(measured):
    rows, folder = measured

    def batches(model):
        files = sorted((folder / model).rglob("f32*.xml"))
        return {path.name: str(openvino.Core().read_model(path).input(0).partial_shape) for path in files}

    assert batches("Dskd") == {"f32.xml": "[?,3,64,64]"}
    assert batches("Patchcore") == {"f32_batch1.xml": "[1,3,64,64]", "f32_batch3.xml": "[3,3,64,64]"}
    size = sum(path.stat().st_size for path in (folder / "Dskd").rglob("f32.*")) / 1e6
    assert rows["Dskd", "openvino", "f32", 1]["exported_mb"] == pytest.approx(size)
    f16, int8 = (sum(path.stat().st_size for path in (folder / "Dskd").rglob(f"{p}.*")) / 1e6 for p in ("f16", "int8"))
    assert int8 < f16 < size


def test_engines_judge_each_image_alike(measured, image_files):
    _, folder = measured
    images = read_images(image_files[:3], SIZE)
    exported = OpenVinoEngine(next((folder / "Dskd").rglob("f32.xml")), 3, "f32", threads=1)(images)
    in_torch = TorchEngine(build_dskd().eval(), "f32")(images)
    assert set(exported) == set(in_torch)
    assert np.ptp(in_torch["pred_score"]) > 0
    for name, values in in_torch.items():
        np.testing.assert_allclose(exported[name].reshape(values.shape), values, atol=1e-4)


def test_the_network_sees_what_it_was_trained_on(image_files):
    """anomalib's exports resize without antialiasing; images that come in the right size are spared that."""
    pre_processor = Dskd.configure_pre_processor(SIZE)
    expected = pre_processor.transform(read_image(image_files[0], as_tensor=True)[None])
    images = read_images(image_files[:1], SIZE)
    assert images.dtype == np.float32
    torch.testing.assert_close(pre_processor(torch.from_numpy(images)), expected)
    raw = pre_processor(read_image(image_files[0], as_tensor=True)[None])
    assert (raw - expected).abs().mean() > 0.01


def test_without_openvino_torch_is_timed(monkeypatch, tmp_path, image_files):
    bf16 = has_bf16()
    monkeypatch.setitem(sys.modules, "openvino", None)
    exported = export(build_dskd(), tmp_path, SIZE)
    assert {one.error for one in exported.values()} == {
        "OpenVINO is not installed: pip install 'anomalib-dskd[openvino]'."
    }
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        assert has_bf16() == bf16
    rows = measure_latency(
        {"Dskd": build_dskd()}, image_files, tmp_path, SIZE, engines=["torch"], batches=[1], rounds=2, warmup=0
    )
    assert [row["error"] for row in rows] == [None] * len(rows)


def test_nothing_to_time_is_refused(image_files, tmp_path):
    with pytest.raises(DskdError, match="0 images"):
        measure_latency({"Dskd": build_dskd()}, [], tmp_path, SIZE)


# Memory and machine

ALLOCATE = """
import torch
from anomalib_dskd.benchmark.peak_memory import PeakMemory

def in_small_pieces():
    pieces = [torch.ones(25_000) for _ in range(2_000)]
    return sum(float(piece[0]) for piece in pieces)

peaks = []
for _ in range(2):
    with PeakMemory() as memory:
        in_small_pieces()
    peaks.append(memory.mib)
    keep = torch.ones(1000)
print(*peaks)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what the allocator keeps is given back on Linux only")
def test_memory_taken_twice_counts_twice():
    """The allocator keeps what small pieces were freed of: a second model would seem to need nothing."""
    first, second = map(float, run([sys.executable, "-c", ALLOCATE]).stdout.split())
    assert first == pytest.approx(2_000 * 25_000 * 4 / 2**20, rel=0.15)
    assert second == pytest.approx(first, rel=0.1)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not forget peaks here")
def test_short_peak_below_an_earlier_one_is_seen():
    """A hundredth of a second, between two samples, in a process that had needed more before."""
    higher = torch.ones(2**26)
    del higher
    with PeakMemory() as memory:
        short = torch.ones(2**24)
        del short
    assert memory.mib == pytest.approx(64, rel=0.15)


def test_environment_is_this_one():
    described = json.loads(json.dumps(environment(), allow_nan=False))
    assert described["anomalib"] == version("anomalib")
    assert described["torch"] == version("torch")
    assert described["threads"] == torch.get_num_threads()
    assert described["cores"] <= os.cpu_count()
    assert described["cpu"]
    if Path("/proc/cpuinfo").is_file():
        assert described["bf16"] == bool({"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split()))
