# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The image score: what stands out in the map, and how unusual the image is as a whole."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, MVTecAD
from anomalib.engine import Engine
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from anomalib_dskd import Dskd
from anomalib_dskd.model.components import WholeImage
from anomalib_dskd.model.components.whitening import LEAST_SPREAD
from anomalib_dskd.model.components.whole_image import SHRINKAGE
from anomalib_dskd.model.image_score import ImageScore, map_contrast
from anomalib_dskd.model.torch_model import DskdModel

CHANNELS, STRIDES = (8, 16), (4, 16)


def descriptors(number: int, length: int = 48, a_part: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated samples; those of a part share half of their variance."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.arange(number) // a_part
    own, shared = (torch.randn(number, length, generator=generator) for _ in range(2))
    mixing = torch.randn(length, length, generator=torch.Generator().manual_seed(99)) / length**0.5
    return (own + shared[parts]) @ mixing + 3, parts


def feature_maps(number: int = 2, size: int = 64, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(number, c, size // s, size // s, generator=generator)
        for c, s in zip(CHANNELS, STRIDES, strict=True)
    ]


# As a whole


def distances(samples: torch.Tensor, learned: torch.Tensor, known: torch.Tensor | None = None) -> np.ndarray:
    """Squared distances of samples to the nearest of those known, by numpy, in the shrunk metric of those learned."""
    covariance = np.cov(learned.double().numpy(), rowvar=False, bias=True)
    shrunk = covariance + SHRINKAGE * np.diag(covariance).mean() * np.eye(len(covariance))
    differences = (samples[:, None] - (learned if known is None else known)[None]).double().numpy()
    return np.einsum("bni,ij,bnj->bn", differences, np.linalg.inv(shrunk), differences).min(axis=1)


@pytest.mark.parametrize("a_part", [1, 5])
def test_usual_is_the_distance_of_each_tenth_of_the_parts_to_the_others(a_part):
    """Or of each part, where they are fewer; those that were learned from are at no distance."""
    samples, parts = descriptors(30, a_part=a_part)
    whole = WholeImage(CHANNELS, STRIDES)
    whole.learn(samples, parts)
    folds = np.split(np.arange(30), 10 if a_part == 1 else 6)
    expected = np.concatenate([distances(samples[fold], np.delete(samples, fold, axis=0)) for fold in folds])
    assert whole.usual == pytest.approx(np.log(expected).mean(), rel=1e-4)
    assert whole.spread == pytest.approx(np.log(expected).std(ddof=1), rel=1e-3)
    assert not distances(samples, samples).any()


@pytest.mark.parametrize(("number", "a_part"), [(60, 1), (60, 4), (1000, 1)])
def test_new_normal_images_are_usual_and_others_are_not(number, a_part):
    whole = WholeImage(CHANNELS, STRIDES)
    samples, parts = descriptors(number + 400, a_part=a_part)
    whole.learn(samples[:number], parts[:number])
    new = samples[number:]
    unusual, moved = (
        whole.deviations(torch.from_numpy(distances(each, samples[:number])))
        for each in (new, new + 1.5 * new.std(dim=0))
    )
    assert -0.5 < unusual.mean() < 0.5
    assert (0.6 if number == 1000 else 0.3) < unusual.std() < 1.6
    assert moved.mean() > unusual.mean() + 3 * unusual.std()


def test_forward_is_the_formula():
    whole = WholeImage(CHANNELS, STRIDES)
    samples, parts = descriptors(100)
    whole.learn(samples, parts)
    maps = feature_maps()
    distance = distances(whole.describe(maps), samples)
    np.testing.assert_allclose(whole(maps), distance, rtol=1e-4)
    expected = (np.log(distance) - whole.usual.numpy()) / whole.spread.numpy()
    np.testing.assert_allclose(whole.deviations(whole(maps)), expected, rtol=1e-3)


def test_a_known_image_has_three_deviations_of_doubts_benefit_at_most():
    whole = WholeImage(CHANNELS, STRIDES)
    maps = feature_maps()
    samples, parts = descriptors(100)
    whole.learn(torch.cat([samples, whole.describe(maps)]), torch.cat([parts, torch.tensor([100, 101])]))
    assert whole(maps).abs().max() < 0.1
    assert whole.deviations(whole(maps)).tolist() == [-3, -3]


def test_held_out_images_are_learned_from_and_as_new_as_others_for_their_threshold():
    whole = WholeImage(CHANNELS, STRIDES)
    samples, parts = descriptors(100)
    held_out = torch.arange(100) >= 80
    whole.learn(samples, parts, held_out)
    maps = feature_maps()
    for is_held_out, known in ((False, samples), (True, samples[:80])):
        expected = distances(whole.describe(maps), samples[:80], known)
        np.testing.assert_allclose(whole(maps, is_held_out), expected, rtol=1e-4)
    alone = WholeImage(CHANNELS, STRIDES)
    alone.learn(samples, parts)
    assert torch.equal(alone(maps), alone(maps, held_out=True)), "none is held out"


def test_descriptor_is_mean_and_largest_window_of_32_pixels():
    """Any window, at steps of 16 pixels, at either scale."""
    whole = WholeImage(CHANNELS, STRIDES)
    maps = feature_maps(1)
    directions = [torch.nn.functional.normalize(features, dim=1)[0] for features in maps]
    expected = []
    for direction, stride in zip(directions, STRIDES, strict=True):
        side, step = 32 // stride, 16 // stride
        corners = range(0, 64 // stride - side + 1, step)
        windows = [
            direction[:, row : row + side, column : column + side].mean(dim=(1, 2))
            for row in corners
            for column in corners
        ]
        expected += [direction.mean(dim=(1, 2)), torch.stack(windows).amax(dim=0)]
    torch.testing.assert_close(whole.describe(maps)[0], torch.cat(expected))


def test_the_last_pixels_of_sizes_that_are_no_multiple_of_16_count():
    """18 locations at stride 4 are four blocks of 16 pixels and one of 8."""
    whole = WholeImage(CHANNELS[:1], STRIDES[:1])
    maps = feature_maps(1, size=72)[0]
    changed = maps.clone()
    changed[..., -2:, :] = changed[..., -2:, :].abs() + 1
    windows, others = (whole.describe([each])[0, CHANNELS[0] :] for each in (maps, changed))
    assert not torch.equal(windows, others)


@pytest.mark.parametrize("samples", [descriptors(2)[0], descriptors(1)[0].repeat(20, 1)])
def test_two_images_and_copies_of_one_do_not_call_all_others_defective(samples):
    """Their distances do not vary."""
    whole = WholeImage(CHANNELS, STRIDES)
    whole.learn(samples, torch.arange(len(samples)))
    assert whole.spread >= LEAST_SPREAD
    whole.describe = lambda teacher: teacher[0]
    assert abs(whole.deviations(whole([samples[:1] + 1e-5]))) < 50


@pytest.mark.parametrize("images", [1, 3])
def test_images_of_one_part_alone_teach_nothing(images):
    """Then the image as a whole says nothing, in place of not a number."""
    whole = WholeImage(CHANNELS, STRIDES)
    whole.learn(descriptors(images)[0], torch.zeros(images))
    assert whole.deviations(whole(feature_maps())).tolist() == [0, 0]


# The score


def test_score_is_what_stands_out_and_what_is_unusual():
    score = ImageScore(CHANNELS, STRIDES)
    score.whole_image.learn(*descriptors(100))
    generator = torch.Generator().manual_seed(2)
    normal, levels = torch.rand(200, 1, 8, 8, generator=generator), torch.rand(200, generator=generator) + 0.5
    for _ in range(10):
        score.update(normal, levels)
    contrasts = np.log(normal.amax(dim=(1, 2, 3)).numpy()) - np.log(levels.numpy()) / 2
    np.testing.assert_allclose(score.usual_contrast, contrasts.mean(), rtol=0.02, atol=0.01)
    np.testing.assert_allclose(score.contrast_variance.sqrt(), contrasts.std(), rtol=0.1)
    maps, level, features = normal[:2] ** 3, levels[:2], feature_maps()
    spread = score.contrast_variance.sqrt().clamp_min(LEAST_SPREAD)
    stands_out = (map_contrast(maps, level) - score.usual_contrast) / spread
    unusual = score.whole_image.deviations(score.whole_image(features)).double()
    expected = torch.log(1 + (stands_out.double() + unusual).exp())
    torch.testing.assert_close(score(maps, level, features).double(), expected, rtol=1e-4, atol=1e-5)


def test_what_stands_out_may_sink_in_training_without_seeming_to_vary():
    """By half a standard deviation in ten steps."""
    score, generator = ImageScore(CHANNELS, STRIDES), torch.Generator().manual_seed(0)
    for step in range(500):
        sinking = (0.1 * torch.randn(4, generator=generator) - 0.005 * step).exp()
        score.update(torch.ones(4, 1, 8, 8) * sinking[:, None, None, None], torch.ones(4))
    assert score.usual_contrast.item() == pytest.approx(-2.5, abs=0.1)
    assert score.contrast_variance.sqrt().item() == pytest.approx(0.1, rel=0.35)


def test_a_map_of_nothing_has_a_score():
    score = ImageScore(CHANNELS, STRIDES)
    assert score(torch.zeros(2, 1, 8, 8), torch.ones(2), feature_maps()).isfinite().all()


def test_without_it_the_score_is_the_maps_maximum():
    model = DskdModel(whole_image=False).eval()
    with torch.no_grad():
        predicted = model(torch.rand(2, 3, 64, 64))
    assert torch.equal(predicted.pred_score, predicted.anomaly_map.amax(dim=(1, 2, 3)))


@pytest.mark.parametrize("whole_image", [True, False])
def test_regions_of_both_widths_are_in_the_map_that_is_scored(whole_image):
    model, images = DskdModel(whole_image=whole_image).eval(), torch.rand(2, 3, 256, 256)
    with torch.no_grad():
        found = [model(images)]
        for width in (0, 1):
            for scales in model.scale_anomalies.values():
                for scale in scales:
                    scale.regions[width].weight *= 2
            found.append(model(images))
        anomalies = model.anomalies(*model.features(images))
        maps = model.student_maps(anomalies, model.level(anomalies), images.shape[-2:])
    assert {len(distances) for scales in anomalies.values() for distances in scales} == {3}
    assert {each.shape[1] for each in maps.values()} == {1}
    for before, after in pairwise(found):
        assert (after.anomaly_map > before.anomaly_map).all()
        assert (after.pred_score > before.pred_score).all()


# Training


def test_training_learns_from_each_training_image_once(tmp_path, mvtec_root):
    """Not from the test images, in whatever batches."""
    model = Dskd(teacher_weights="random", image_size=64, training_steps=2, visualizer=False)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, logger=False)
    data = MVTecAD(mvtec_root, "stripes", num_workers=0, train_batch_size=3)
    engine.fit(model, datamodule=data)
    score = model.model.image_score
    assert score.updates == 2
    loader = DataLoader(data.train_data, batch_size=8, collate_fn=data.train_data.collate_fn)
    (batch,) = loader
    expected = WholeImage(model.model.teacher.channels, model.model.teacher.strides)
    with torch.no_grad():
        described = expected.describe(model.model.teacher(model.pre_processor.transform(batch.image)))
    expected.learn(described, torch.arange(8))
    torch.testing.assert_close(score.whole_image.mean, expected.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(score.whole_image.usual, expected.usual, rtol=1e-2, atol=0)
    loaded = Dskd.load_from_checkpoint(engine.best_model_path).model.image_score.whole_image
    assert len(loaded.memory_bank) == len(loaded.is_held_out) == 8
    for name, learned in score.whole_image.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], learned), name


def test_images_of_no_known_part_are_parts_of_their_own(tmp_path, mvtec_root):
    """Where the table of images tells the parts of some only, or of those of the test."""
    learned = []
    for parts in (None, ["a", "b", *[None] * 6]):
        model = Dskd(teacher_weights="random", image_size=64, training_steps=1, visualizer=False)
        engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, logger=False)
        data = MVTecAD(mvtec_root, "stripes", num_workers=0)
        data.prepare_data()
        data.setup()
        if parts:
            data.train_data.samples = data.train_data.samples.assign(part=parts)
        data.setup = lambda stage=None: None
        engine.fit(model, datamodule=data)
        learned.append(model.model.image_score.whole_image)
    assert learned[0].usual > 0
    torch.testing.assert_close(learned[1].usual, learned[0].usual)


def test_threshold_is_of_held_out_images_as_if_they_were_new(tmp_path, mvtec_root):
    """They are learned from, the test images of ``same_as_test`` are not."""
    looked_at = {}
    for split in ("from_train", "same_as_test"):
        model = Dskd(teacher_weights="random", image_size=64, training_steps=2, visualizer=False)
        engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, logger=False)
        data = MVTecAD(mvtec_root, "stripes", num_workers=0, val_split_mode=split, val_split_ratio=0.25, seed=0)
        engine.fit(model, datamodule=data)
        looked_at[split] = model.model.image_score.whole_image
    whole = looked_at["from_train"]
    same = looked_at["same_as_test"]
    assert [len(each.memory_bank) for each in (whole, same)] == [8, 8]
    assert whole.is_held_out.tolist() == [False] * 6 + [True] * 2
    assert not same.is_held_out.any()
    assert not torch.allclose(whole.mean, same.mean), "the metric is of the images of training"


def fitted(tmp_path, loader: DataLoader, **arguments) -> DskdModel:
    arguments = {"denoising": 0.0, "training_steps": 1, **arguments}
    model = Dskd(teacher_weights="random", image_size=64, visualizer=False, **arguments)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, logger=False)
    engine.fit(model, train_dataloaders=loader)
    return model.model


def fit_loader(tmp_path, loader: DataLoader) -> WholeImage:
    return fitted(tmp_path, loader).image_score.whole_image


def images_alone(images: list[torch.Tensor]) -> ImageBatch:
    return ImageBatch(image=torch.stack(images))


PICTURES = list(torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


def test_the_look_leaves_random_state_and_order_of_images_as_they_were(tmp_path):
    weights = []
    for whole_image in (True, False):
        torch.manual_seed(5)
        loader = DataLoader(PICTURES, batch_size=2, collate_fn=images_alone, shuffle=True)
        weights.append(fitted(tmp_path, loader, seed=None, whole_image=whole_image).encoder.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_images_without_labels_and_paths_are_normal_and_parts_of_their_own(tmp_path):
    whole = fit_loader(tmp_path, DataLoader(PICTURES, batch_size=4, collate_fn=images_alone))
    assert whole.usual > 0
    assert whole.weight.any()


def test_images_that_a_sampler_leaves_out_are_not_looked_at(tmp_path):
    """Those of a fold that is held out, for instance."""
    sampler = SubsetRandomSampler([0, 2, 3, 5])
    whole = fit_loader(tmp_path, DataLoader(PICTURES, batch_size=2, collate_fn=images_alone, sampler=sampler))
    expected = fit_loader(
        tmp_path, DataLoader([PICTURES[i] for i in (0, 2, 3, 5)], batch_size=2, collate_fn=images_alone)
    )
    torch.testing.assert_close(whole.mean, expected.mean)


def test_a_stream_of_images_is_trained_on_without_a_look_before(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(PICTURES)

    loader = DataLoader(Stream(), batch_size=4, collate_fn=images_alone)
    with pytest.warns(UserWarning, match="none was looked at before training"):
        model = fitted(tmp_path, loader, denoising=0.5, training_steps=3)  # two steps an epoch
    assert not model.image_score.whole_image.weight.any()
    assert model.image_score.updates > 0
