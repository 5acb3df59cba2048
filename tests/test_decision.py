# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds and normalised scores."""

import warnings

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.metrics import AUROC
from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score

from anomalib_dskd.errors import DskdError
from anomalib_dskd.model.batch import DskdBatch
from anomalib_dskd.model.post_processor import DskdPostProcessor
from anomalib_dskd.model.threshold import f1_threshold, false_alarm_threshold


def batch(scores, labels, maps=None, masks=None) -> DskdBatch:
    n = len(scores)
    maps = torch.rand(n, 8, 8) if maps is None else maps
    masks = torch.zeros(n, 8, 8) if masks is None else masks
    made = DskdBatch.from_batch(
        ImageBatch(image=torch.zeros(n, 3, 8, 8), gt_label=torch.as_tensor(labels), gt_mask=masks)
    )
    made.update(pred_score=torch.as_tensor(scores, dtype=torch.float32), anomaly_map=maps)
    return made


def normal(number: int) -> torch.Tensor:
    return torch.zeros(number, dtype=torch.long)


def calibrated(*batches, **kwargs) -> DskdPostProcessor:
    post_processor = DskdPostProcessor(**kwargs)
    for each in batches:
        post_processor.on_validation_batch_end(None, None, each)
    post_processor.on_validation_epoch_end(None, None)
    return post_processor


@pytest.mark.parametrize("rate", [0.01, 0.05])
@pytest.mark.parametrize("number", [5, 10, 30, 100, 1000])
@pytest.mark.parametrize("distribution", ["exponential", "gumbel", "lognormal"])
def test_false_alarms_come_at_the_rate_asked_for(rate, number, distribution):
    """Averaged over many samples: not more often, and not much more seldom; the largest of 5 scores would give 17 %."""
    generator = np.random.default_rng(0)
    sizes = (1000, number)
    draw = {
        "exponential": lambda size: generator.exponential(size=size),
        "gumbel": lambda size: generator.gumbel(size=size) + 10,
        "lognormal": lambda size: generator.lognormal(sigma=0.3, size=size),
    }[distribution]
    fresh = np.sort(draw(100_000))
    thresholds = [false_alarm_threshold(scores, rate) for scores in draw(sizes)]
    seen = 1 - np.searchsorted(fresh, thresholds) / len(fresh)
    assert rate / (2 if number > 5 else 3) < seen.mean() < 1.2 * rate


def test_false_alarm_threshold_of_strange_samples():
    assert false_alarm_threshold(np.array([3.0]), 0.01) == 3.0
    assert false_alarm_threshold(np.full(7, 3.0), 0.01) == 3.0
    assert false_alarm_threshold(np.array([0.0, 1, 1, 1, 1, 1]), 0.9) == 0  # where the tail would go on below
    with pytest.raises(ValueError, match="No scores"):
        false_alarm_threshold(np.array([]), 0.01)
    with pytest.raises(ValueError, match="between 0 and 1"):
        false_alarm_threshold(np.array([1.0, 2.0]), 1.0)


def test_f1_threshold_is_the_best_and_lies_between_scores():
    generator = np.random.default_rng(0)
    for _ in range(50):
        labels = generator.integers(0, 2, 40)
        labels[0] = 1
        scores = generator.gamma(2, size=40) + labels
        threshold = f1_threshold(scores, labels)
        precision, recall, _ = precision_recall_curve(labels, scores)
        best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-9))
        assert f1_score(labels, scores > threshold) == pytest.approx(best)
        below, above = scores[scores < threshold], scores[scores > threshold]
        if below.size:
            assert threshold - below.max() == pytest.approx(above.min() - threshold)
        for noise in (-1e-6, 1e-6):
            assert ((scores + noise > threshold) == (scores > threshold)).all()


@pytest.mark.parametrize(("few", "warned"), [(50, True), (120, False)])
def test_only_good_parts_give_a_threshold(few, warned):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(few, 8, 8, generator=generator)
    scores = maps.amax(dim=(1, 2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        post_processor = calibrated(
            batch(scores[:20], normal(20), maps[:20]),
            batch(scores[20:], normal(few - 20), maps[20:]),
        )
    expected = false_alarm_threshold(scores.numpy(), 0.01)
    assert post_processor.image_threshold == pytest.approx(expected)
    assert post_processor.pixel_threshold == pytest.approx(expected), "a region appears where the score is too high"
    assert any(f"{few} held-out normal parts" in str(w.message) for w in caught) == warned


@pytest.mark.parametrize("defects", [0, 7])
def test_data_without_masks_have_a_threshold_of_their_maps_all_the_same(defects):
    """From good parts alone, since nobody knows which pixels of the others are; scores are on another scale."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(30 + defects, 8, 8, generator=generator)
    maps[:defects] += 5
    labels = torch.arange(30 + defects) < defects
    scores = torch.rand(30 + defects, generator=generator) / 10 + labels
    order = torch.randperm(30 + defects, generator=generator)
    shown = batch(scores[order], labels[order].long(), maps[order])
    shown.gt_mask = None
    post_processor = calibrated(shown)
    highest = maps[defects:].amax(dim=(1, 2)).numpy()
    assert post_processor.pixel_threshold == pytest.approx(false_alarm_threshold(highest, 0.01))
    assert post_processor.image_threshold < 1


def test_defects_without_masks_alone_give_no_threshold_of_maps():
    shown = batch([1.0, 2.0], torch.ones(2, dtype=torch.long))
    shown.gt_mask = None
    post_processor = calibrated(shown)
    assert post_processor.pixel_threshold == post_processor.image_threshold == 0.5, "anomalib's way out"


def test_photographs_of_one_part_count_once():
    """Five exposures of each of 40 parts: the threshold is that of the 40 highest scores and highest pixels."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.arange(200) // 5
    maps = torch.rand(200, 8, 8, generator=generator) * torch.rand(200, 1, 1, generator=generator).exp()
    scores = 2 * maps.amax(dim=(1, 2))
    order = torch.randperm(200, generator=generator)
    photographs = batch(scores[order], normal(200), maps[order])
    photographs.part = parts[order]
    post_processor = calibrated(photographs)
    highest = scores.reshape(40, 5).amax(dim=1).numpy()
    assert post_processor.image_threshold == pytest.approx(false_alarm_threshold(highest, 0.01))
    assert post_processor.pixel_threshold == pytest.approx(false_alarm_threshold(highest / 2, 0.01))
    assert post_processor.image_threshold != pytest.approx(false_alarm_threshold(scores.numpy(), 0.01))


def test_a_larger_rate_gives_a_lower_threshold():
    scores = torch.rand(200, generator=torch.Generator().manual_seed(0))
    strict, lax = (calibrated(batch(scores, normal(200)), false_alarm_rate=r).image_threshold for r in (0.01, 0.1))
    assert lax < strict
    with pytest.raises(DskdError, match="false_alarm_rate=1"):
        DskdPostProcessor(false_alarm_rate=1)


def test_pixel_threshold_is_the_best_f1_of_all_pixels():
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(12, 8, 8, generator=generator) > 0.8).float()
    maps = torch.rand(12, 8, 8, generator=generator) + 0.5 * masks
    labels = torch.ones(12, dtype=torch.long)
    post_processor = calibrated(
        batch(maps[:7].amax(dim=(1, 2)), labels[:7], maps[:7], masks[:7]),
        batch(maps[7:].amax(dim=(1, 2)), labels[7:], maps[7:], masks[7:]),
    )
    precision, recall, _ = precision_recall_curve(masks.flatten(), maps.flatten())
    best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-9))
    found = f1_score(masks.flatten(), maps.flatten() > post_processor.pixel_threshold)
    assert found == pytest.approx(best, abs=1e-3)


def test_normalised_scores_keep_their_order():
    """anomalib's AUROC of normalised scores and maps is scikit-learn's of raw ones, to the last digit."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (300,), generator=generator)
    maps = 20 * torch.rand(300, 8, 8, generator=generator) ** 4 + 1e-3
    masks = (maps + torch.rand(300, 8, 8, generator=generator) > 5).float() * labels[:, None, None]
    scores = maps.amax(dim=(1, 2))
    post_processor = calibrated(batch(scores[:50] / 5, normal(50), maps[:50] / 5))
    predicted = batch(scores, labels, maps, masks)
    post_processor.on_test_batch_end(None, None, predicted)

    assert predicted.pred_score.min() > 0
    assert predicted.pred_score.max() < 1
    assert len(predicted.pred_score.unique()) == len(scores.unique())
    assert (predicted.pred_score.argsort() == scores.argsort()).all()
    torch.testing.assert_close(predicted.raw_score, scores)
    torch.testing.assert_close(predicted.raw_map, maps)
    for fields, target, raw in (
        (["pred_score", "gt_label"], labels, scores),
        (["anomaly_map", "gt_mask"], masks.flatten(), maps.flatten()),
    ):
        metric = AUROC(fields=fields)
        metric.update(predicted)
        assert float(metric.compute()) == pytest.approx(roc_auc_score(target, raw), abs=1e-6)


@pytest.mark.parametrize("sensitivity", [0, 1, -0.5, float("nan")])
def test_a_sensitivity_that_gives_no_threshold_is_refused(sensitivity):
    with pytest.raises(DskdError, match=r"image_sensitivity=.* must lie between 0 and 1"):
        DskdPostProcessor(image_sensitivity=sensitivity)


def test_half_is_the_threshold_and_sensitivity_moves_it():
    post_processor = calibrated(batch(torch.rand(200) + 1, normal(200)))
    threshold = float(post_processor.image_threshold)

    def verdicts(*scores: float) -> list[bool]:
        maps = torch.rand(len(scores), 1, 8, 8)
        return post_processor(InferenceBatch(torch.tensor(scores), None, maps, None)).pred_label.tolist()

    normalized = post_processor(
        InferenceBatch(torch.tensor([threshold]), None, torch.rand(1, 1, 8, 8), None)
    ).pred_score
    assert float(normalized) == pytest.approx(0.5)
    assert verdicts(0.999 * threshold, 1.001 * threshold) == [False, True]
    post_processor.image_sensitivity = 0.8
    assert verdicts(0.49 * threshold, 0.51 * threshold) == [False, True]
    post_processor.image_sensitivity = 0.2
    assert verdicts(1.99 * threshold, 2.01 * threshold) == [False, True]


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_zero_scores_are_normal(threshold):
    post_processor = DskdPostProcessor()
    post_processor._image_threshold.fill_(threshold)
    post_processor._pixel_threshold.fill_(threshold)
    result = post_processor(InferenceBatch(torch.tensor([0.0, 1.0]), None, torch.zeros(2, 1, 8, 8), None))
    assert result.pred_score[0] == 0
    assert result.pred_label.tolist() == [False, True]
