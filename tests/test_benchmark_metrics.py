# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmark's metrics, against scikit-learn, anomalib and brute force."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from anomalib.metrics.aupro import _AUPRO
from skimage.measure import label
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from anomalib_dskd.benchmark.bootstrap import paired_bootstrap
from anomalib_dskd.benchmark.image_metrics import IMAGE_METRICS, image_metrics
from anomalib_dskd.benchmark.pixel_metrics import PixelMetrics
from anomalib_dskd.benchmark.ranking import RankCurve
from anomalib_dskd.errors import DskdError

from .conftest import REPO

PIXEL_METRICS = ["pixel_AUROC", "pixel_AP", "pixel_F1max", "AUPRO_30", "AUPRO_5", "core_recall", "ring_false_alarms"]
CHANGES = {
    "raw": lambda x: x,
    "shifted up": lambda x: x + 20,
    "shifted down": lambda x: x - 20,
    "scaled": lambda x: x * 1e-6 - 3e-6,
    "tied": lambda x: np.round(2 * x) / 2,
    "constant": lambda x: np.full_like(x, -7.0),
}
changed = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())


def f1_max(labels, scores) -> float:
    precision, recall, _ = precision_recall_curve(labels, scores)
    return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))


def disks(number: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Maps that blur defects of all sizes, every third image normal; some defects merge, some are cut off."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    masks = np.zeros((number, side, side), dtype=bool)
    maps = random.lognormal(size=masks.shape)
    for i in range(number):
        for _ in range(4 if i % 3 else 0):
            y, x = random.integers(0, side, 2)
            radius = side * random.choice([0.01, 0.02, 0.1, 0.3])
            distance = np.hypot(rows - y, columns - x)
            masks[i] |= distance <= radius
            maps[i] += 3 * np.exp(-((distance / (radius + side / 30)) ** 2))
    masks[1, :4, :4] |= np.eye(4, dtype=bool)  # one region, joined at the corners
    return maps.astype(np.float32), masks


def measure(maps, masks, batch: int = 4, **kwargs) -> PixelMetrics:
    metrics = PixelMetrics(**kwargs)
    for i in range(0, len(maps), batch):
        metrics.update(maps[i : i + batch], masks[i : i + batch])
    return metrics


def brute_pro(maps, masks, limit: float) -> float:
    """Region overlap threshold by threshold."""
    regions = [
        maps[i][numbered == n]
        for i, numbered in enumerate(label(mask, connectivity=2) for mask in masks)
        for n in range(1, numbered.max() + 1)
    ]
    normal = maps[~masks]
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        fpr.append((normal >= threshold).mean())
        pro.append(np.mean([(region >= threshold).mean() for region in regions]))
    fpr, pro = np.array(fpr), np.array(pro)
    below = fpr <= limit
    x, y = np.append(fpr[below], limit), np.append(pro[below], np.interp(limit, fpr, pro))
    return auc(x, y) / limit


def brute_core_and_ring(maps, masks) -> tuple[float, float]:
    """Core and ring from the distances between all pairs of pixels."""
    normal = np.sort(maps[~masks.any((1, 2))].ravel())[::-1]
    called = (maps > normal[int(0.01 * len(normal))]).reshape(len(maps), -1)
    rows, columns = (index.ravel() for index in np.indices(masks[0].shape))
    pairs = np.hypot(rows[:, None] - rows, columns[:, None] - columns)
    reach = np.sqrt(masks[0].size) / 32
    cores, rings = [], []
    for i, mask in enumerate(masks):
        numbered = label(mask, connectivity=2).ravel()
        defects = [numbered == n for n in range(1, numbered.max() + 1)]
        for defect in defects:
            if defect.mean() >= 0.02:
                cores.extend(called[i, defect & (pairs[:, ~defect].min(axis=1) > reach)])
        small, other = (
            np.min([pairs[:, d].min(axis=1) for d in defects if (d.mean() <= 0.002) == kind] or [np.inf], axis=0)
            for kind in (True, False)
        )
        rings.extend(called[i, (numbered == 0) & (small <= reach) & (small <= other)])
    assert len(cores) > 50
    assert len(rings) > 50
    return np.mean(cores), np.mean(rings)


@changed
@pytest.mark.parametrize("number", [2, 37, 600])
def test_image_metrics_are_those_of_scikit_learn(change, number):
    random = np.random.default_rng(number)
    labels = np.arange(number) % 3 == 0
    scores = change(random.normal(size=number) + labels)
    fpr, recall, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert image_metrics(scores, labels.astype(int)) == pytest.approx(
        {
            "image_AUROC": roc_auc_score(labels, scores),
            "image_AP": average_precision_score(labels, scores),
            "image_F1max": f1_max(labels, scores),
            "image_FPR95": fpr[np.argmax(recall >= 0.95 - 1e-12)],
            "image_FPR100": fpr[np.argmax(recall >= 1)],
        }
    )


@pytest.mark.parametrize("labels", [[], [0, 0, 0], [1, 1, 1]])
def test_image_metrics_of_one_class_are_nan(labels):
    values = image_metrics(np.arange(len(labels)), np.array(labels))
    assert list(values) == list(IMAGE_METRICS)
    assert np.isnan(list(values.values())).all()


def test_image_scores_that_cannot_be_ranked():
    with pytest.raises(DskdError, match="1 of 2 image scores are NaN"):
        image_metrics(np.array([1.0, np.nan]), np.array([0, 1]))
    with pytest.raises(DskdError, match=r"shape \(2, 1\) and labels of shape \(2,\)"):
        image_metrics(np.ones((2, 1)), np.array([0, 1]))


@changed
def test_pixel_metrics_are_those_of_scikit_learn_and_anomalib(change):
    maps, masks = disks(12, 64)
    maps = change(maps)
    values = measure(maps, masks).compute()
    assert list(values) == PIXEL_METRICS
    assert values["pixel_AUROC"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert values["pixel_AP"] == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert values["pixel_F1max"] == pytest.approx(f1_max(masks.ravel(), maps.ravel()), abs=1e-12)
    for name, limit in {"AUPRO_30": 0.3, "AUPRO_5": 0.05}.items():
        anomalib = _AUPRO(fpr_limit=limit)
        anomalib.update(torch.from_numpy(maps), torch.from_numpy(masks).int())
        # anomalib adds up in float32
        assert values[name] == pytest.approx(float(anomalib.compute()), abs=2e-5)


@changed
def test_aupro_is_that_of_brute_force(change):
    maps, masks = disks(6, 28, seed=1)
    maps = change(maps)
    values = measure(maps, masks).compute()
    assert values["AUPRO_30"] == pytest.approx(brute_pro(maps, masks, 0.3), abs=1e-12)
    assert values["AUPRO_5"] == pytest.approx(brute_pro(maps, masks, 0.05), abs=1e-12)


@pytest.mark.parametrize("change", ["raw", "shifted down", "tied"])
@pytest.mark.parametrize("shape", [(64, 64), (48, 72)])
def test_core_and_ring_are_those_of_brute_force(change, shape):
    maps, masks = disks(9, 72, seed=1)
    maps, masks = CHANGES[change](maps[:, : shape[0], : shape[1]]), masks[:, : shape[0], : shape[1]]
    # a ring of which a larger defect takes a part, and many rings
    masks[2, :20, :20] = False
    masks[2, 5, 5] = masks[2, 6, 6] = masks[2, 8:14, 7:14] = True
    masks[1] = False
    masks[1, 4::9, 4::9] = True
    values = measure(maps, masks).compute()
    assert (values["core_recall"], values["ring_false_alarms"]) == pytest.approx(brute_core_and_ring(maps, masks))


def test_core_and_ring_see_the_weaknesses_they_are_for():
    rows, columns = np.mgrid[:256, :256]
    distance = np.hypot(rows - 128, columns - 128)
    masks = np.stack([distance < 0, distance < 40, distance < 5])
    noise = np.random.default_rng(0).uniform(0, 0.1, masks.shape)

    rim_only = measure(noise + np.stack([distance < 0, (distance > 33) & (distance < 40), distance < 5]), masks)
    assert rim_only.compute()["core_recall"] < 0.04
    assert rim_only.compute()["ring_false_alarms"] < 0.04
    too_wide = measure(noise + np.stack([distance < 0, distance < 60, distance < 25]), masks)
    assert too_wide.compute()["core_recall"] == 1
    assert too_wide.compute()["ring_false_alarms"] == 1


def test_a_wholly_defective_image_is_all_core():
    masks = np.array([np.zeros((16, 16)), np.ones((16, 16))], dtype=bool)
    assert measure(masks.astype(np.float32), masks).compute()["core_recall"] == 1


@pytest.mark.parametrize(
    ("defects", "normal_images", "absent"),
    [
        ("none", True, PIXEL_METRICS),
        ("all", False, PIXEL_METRICS),
        ("disk", False, ["core_recall", "ring_false_alarms"]),
        ("disk", True, ["ring_false_alarms"]),
    ],
)
@pytest.mark.parametrize("bins", [None, 2, 64])
def test_what_cannot_be_computed_is_nan(defects, normal_images, absent, bins):
    rows, columns = np.mgrid[:32, :32]
    mask = {"none": rows < 0, "all": rows >= 0, "disk": np.hypot(rows - 16, columns - 16) < 8}[defects]
    masks = np.stack([mask, np.zeros_like(mask)]) if normal_images else mask[None]
    maps = np.random.default_rng(0).normal(size=masks.shape)
    metrics = measure(maps, masks, **({"exact_pixels": 100, "bins": bins} if bins else {}))
    assert [name for name, value in metrics.compute().items() if np.isnan(value)] == absent
    assert [name for name, value in metrics.error_bounds().items() if np.isnan(value)] == absent
    assert metrics.curves()["ROC"][0].size == (0 if "pixel_AUROC" in absent else metrics.curves()["PRO"][0].size)


def test_an_image_whose_defect_its_mask_has_lost_is_no_normal_one():
    """Its pixels are negatives, but they do not set the threshold of normal images."""
    random = np.random.default_rng(0)
    maps, masks = random.normal(size=(4, 64, 64)), np.zeros((4, 64, 64), dtype=bool)
    masks[0, 4:6, 4:6] = True
    maps[0, 2:8, 2:8] += 3
    maps[1] += 10
    with_label, without = PixelMetrics(), PixelMetrics()
    with_label.update(maps, masks, np.array([True, True, False, False]))
    without.update(maps, masks)
    figures, others = with_label.compute(), without.compute()
    assert figures["ring_false_alarms"] > others["ring_false_alarms"]
    for name in ("pixel_AUROC", "pixel_AP", "AUPRO_30"):
        assert figures[name] == others[name]
    apart = PixelMetrics()
    apart.update(maps[[0, 2, 3]], masks[[0, 2, 3]])
    assert figures["ring_false_alarms"] == apart.compute()["ring_false_alarms"]


def test_no_images_at_all():
    assert np.isnan(list(PixelMetrics().compute().values())).all()


def test_maps_that_cannot_be_used():
    metrics = PixelMetrics()
    with pytest.raises(DskdError, match=r"\(1, 1, 8, 8\) and masks of shape \(1, 8, 8\)"):
        metrics.update(np.zeros((1, 1, 8, 8)), np.zeros((1, 8, 8), bool))
    with pytest.raises(DskdError, match="64 pixels of the anomaly maps are NaN"):
        metrics.update(np.full((1, 8, 8), np.nan), np.zeros((1, 8, 8), bool))
    with pytest.raises(DskdError, match="bins=1"):
        PixelMetrics(bins=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_give_what_arrays_give(dtype):
    maps, masks = disks(6, 32)
    tensor = torch.from_numpy(maps).to(dtype).requires_grad_()
    metrics = PixelMetrics()
    metrics.update(tensor, torch.from_numpy(masks).to(torch.uint8) * 255)
    assert metrics.compute() == pytest.approx(measure(tensor.detach().float().numpy(), masks).compute(), nan_ok=True)


@changed
@pytest.mark.parametrize("bins", [4, 100, 5000])
@pytest.mark.parametrize("seed", [0, 1])
def test_binned_is_within_its_error_bounds(change, bins, seed):
    maps, masks = disks(12, 128, seed)
    maps = change(maps)
    maps[::2] *= -1
    exact, binned = measure(maps, masks), measure(maps, masks, exact_pixels=50_000, bins=bins)
    assert set(exact.error_bounds().values()) == {0}
    bounds = binned.error_bounds()
    for name, value in exact.compute().items():
        assert abs(value - binned.compute()[name]) <= bounds[name] + 1e-12, name
    assert max(len(counts.keys) for counts in vars(binned).values() if hasattr(counts, "keys")) <= bins
    if bins == 5000:
        assert max(bounds.values()) < 0.02


@pytest.mark.parametrize("limit", [1.0, 0.4])
def test_bounds_hold_for_every_order_within_bins(limit):
    bins = np.array([2, 2, 2, 1, 1, 1, 0])
    labels = np.array([0, 1, 0, 1, 1, 0, 0], dtype=bool)
    binned = RankCurve.of(bins, labels)
    orders = [RankCurve.of(bins + np.array(order) / 3, labels) for order in itertools.product(range(3), repeat=7)]
    areas, precisions, f1 = np.array([(c.area(limit), c.average_precision(), c.f1_max()) for c in orders]).T
    assert [min(areas), max(areas)] == pytest.approx(np.array(binned.area_bounds(limit)))
    assert [min(f1), max(f1)] == pytest.approx(np.array([binned.f1_max(), binned.f1_max_bound()]))
    low, high = binned.average_precision_bounds()
    assert low <= min(precisions) <= max(precisions) <= high
    assert low > min(precisions) - 0.15
    assert high < max(precisions) + 0.15


def test_zeros_of_both_signs_are_equal():
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[1, 1:3, 1:3] = True
    assert measure(np.where(masks, 0.0, -0.0), masks).compute()["pixel_AUROC"] == 0.5


def test_few_different_values_stay_exact_for_any_number_of_pixels():
    maps, masks = disks(12, 64)
    maps = np.round(maps, 1) + 20
    binned = measure(maps, masks, exact_pixels=5000, bins=500)
    assert binned.compute() == pytest.approx(measure(maps, masks).compute(), abs=1e-12)
    assert set(binned.error_bounds().values()) == {0}


@pytest.mark.parametrize("kwargs", [{}, {"exact_pixels": 9000, "bins": 300}])
def test_neither_batches_nor_looking_in_between_change_the_result(kwargs):
    maps, masks = disks(12, 64)
    expected = measure(maps, masks, **kwargs).compute()
    metrics = PixelMetrics(**kwargs)
    for image, mask in zip(maps, masks, strict=True):
        metrics.update(image[None], mask[None])
        metrics.compute()
    assert metrics.compute() == pytest.approx(expected, abs=1e-12)


@changed
@pytest.mark.parametrize("limit", [1.0, 0.3, 0.05])
def test_points_for_a_plot_lie_on_the_curve(change, limit):
    maps, masks = disks(12, 64)
    maps = change(maps)
    metrics = measure(maps, masks)
    fpr, recall, _ = roc_curve(masks.ravel(), maps.ravel(), drop_intermediate=False)
    for name, (x, y) in metrics.curves(limit).items():
        assert len(x) == len(y) < 210
        assert (np.diff(x) >= 0).all()
        assert (np.diff(y) >= 0).all()
        assert (x[0], y[0], x[-1]) == (0, 0, limit)
        if name == "ROC":
            assert np.abs(y - np.interp(x, fpr, recall)).max() < 0.03
            assert auc(x, y) == pytest.approx(auc(fpr, recall), abs=2e-3) or limit < 1
    for name in ("AUPRO_30", "AUPRO_5"):
        if limit == {"AUPRO_30": 0.3, "AUPRO_5": 0.05}[name]:
            assert auc(*metrics.curves(limit)["PRO"]) / limit == pytest.approx(metrics.compute()[name], abs=2e-3)


MEMORY = """
import json, sys
import numpy as np
from anomalib_dskd.benchmark.pixel_metrics import PixelMetrics

def peak():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2**20

def fill(metrics, images, share, seed=0):
    random = np.random.default_rng(seed)
    for _ in range(images // 4):
        masks = random.random((4, 256, 256)) < share
        masks[::2] = False
        masks[:, 50:100, 50:100] |= masks.any(axis=(1, 2), keepdims=True)
        metrics.update(random.lognormal(size=masks.shape) + masks, masks)
    return metrics

images, share = int(sys.argv[1]), float(sys.argv[2])
fill(PixelMetrics(), 4, share).compute()
before = peak()
metrics = fill(PixelMetrics(), images, share)
values, bounds = metrics.compute(), metrics.error_bounds()
metrics.curves()
report = {"pixels": metrics.pixels, "peak": peak() - before, "bounds": bounds, "values": values}
if len(sys.argv) > 3:
    report["exact"] = fill(PixelMetrics(exact_pixels=10**9), images, share).compute()
print(json.dumps(report))
"""


def run_memory(*args: object) -> dict:
    command = [sys.executable, "-c", MEMORY, *map(str, args)]
    run = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_and_error_beyond_20_million_pixels():
    report = run_memory(320, 0.01, "exact")
    assert report["pixels"] > 20_000_000
    assert report["peak"] < 2
    assert 0 < report["bounds"]["pixel_AUROC"] < 1e-6
    for name in ["pixel_AUROC", "pixel_AP", "pixel_F1max", "AUPRO_30", "AUPRO_5", "core_recall"]:
        assert report["bounds"][name] < 1e-5
        assert abs(report["values"][name] - report["exact"][name]) <= report["bounds"][name] + 1e-12


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(("images", "share"), [(304, 0.01), (304, 0.99), (592, 0.99)])
def test_memory_at_its_worst(images, share):
    assert run_memory(images, share)["peak"] < 2


@pytest.mark.parametrize("metric", IMAGE_METRICS)
def test_bootstrap_interval_is_that_of_a_plain_loop(metric):
    random = np.random.default_rng(3)
    labels = np.arange(90) % 3 == 0
    b = random.normal(size=90) + labels
    a = np.round(b + 0.5 * random.normal(size=90) + labels, 1)
    drawn = []
    for _ in range(1500):
        rows = np.concatenate(
            [random.choice(np.flatnonzero(labels == kind), (labels == kind).sum()) for kind in (0, 1)]
        )
        drawn.append(image_metrics(a[rows], labels[rows])[metric] - image_metrics(b[rows], labels[rows])[metric])
    difference, low, high = paired_bootstrap(a, b, labels, metric)
    assert difference == pytest.approx(image_metrics(a, labels)[metric] - image_metrics(b, labels)[metric])
    assert low <= difference <= high
    assert (low, high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.1 * (high - low))
    assert paired_bootstrap(b, a, labels, metric) == pytest.approx((-difference, -high, -low))
    assert paired_bootstrap(a, 3 * a + 20, labels, metric) == (0, 0, 0)


def test_weighted_curves_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    labels, scores = np.arange(60) % 3 == 0, np.round(random.normal(size=60), 1)
    weights = random.integers(0, 4, (5, 60))
    curve = RankCurve.of(scores, labels, weights)
    for i, weight in enumerate(weights):
        assert curve.area()[i] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weight))
        assert curve.average_precision()[i] == pytest.approx(
            average_precision_score(labels, scores, sample_weight=weight)
        )


@pytest.mark.parametrize("metric", IMAGE_METRICS)
def test_images_of_one_part_are_drawn_together(metric):
    random = np.random.default_rng(0)
    labels = np.arange(80) % 2 == 0
    a, b = random.normal(size=(2, 80)) + labels
    parts = np.tile(np.arange(80), 4)
    alone = paired_bootstrap(a, b, labels, metric, rounds=300)
    four_photographs = [np.tile(values, 4) for values in (a, b, labels)]
    assert paired_bootstrap(*four_photographs, metric, rounds=300, groups=parts) == pytest.approx(alone)
    _, low, high = paired_bootstrap(*four_photographs, metric, rounds=300)
    assert high - low < 0.75 * (alone[2] - alone[1])


def test_parts_with_both_kinds_of_images_leave_no_round_without_a_class():
    random = np.random.default_rng(0)
    labels = np.tile([0, 1], 4)
    interval = paired_bootstrap(*random.normal(size=(2, 8)), labels, groups=np.repeat(list("abcd"), 2))
    assert np.isfinite(interval).all()
    assert interval[1] < interval[2]


def test_bootstrap_of_one_class_is_nan_and_wrong_arguments_are_named():
    assert np.isnan(paired_bootstrap(np.arange(3), np.arange(3), np.ones(3))).all()
    labels = np.array([0, 1])
    with pytest.raises(DskdError, match="metric='AUROC' is not one of 'image_AUROC'"):
        paired_bootstrap(labels, labels, labels, "AUROC")
    with pytest.raises(DskdError, match="rounds=0"):
        paired_bootstrap(labels, labels, labels, rounds=0)
    with pytest.raises(DskdError, match=r"groups of shape \(3,\) for 2 images"):
        paired_bootstrap(labels, labels, labels, groups=np.arange(3))


def test_importing_the_package_is_cheap():
    code = "import sys, anomalib_dskd.benchmark; print({'numpy', 'torch', 'anomalib', 'scipy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
