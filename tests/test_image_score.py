# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The image score: what stands out in the map, and how unusual the image is as a whole."""

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from torch.utils.data import DataLoader

from anomalib_dskd import Dskd
from anomalib_dskd.model.components import WholeImage
from anomalib_dskd.model.components.whitening import whitening_matrix
from anomalib_dskd.model.components.whole_image import SHRINKAGE, left_out
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


@pytest.mark.parametrize(("number", "a_part"), [(40, 1), (40, 5), (400, 1), (400, 8)])
def test_left_out_is_what_leaving_out_gives(number, a_part):
    """With fewer samples than components those that were learned from are ten times too near."""
    samples, parts = descriptors(number, length=60, a_part=a_part)
    samples = samples.double()

    def whitened(chosen: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
        centred = learned - learned.mean(dim=0)
        covariance = centred.T @ centred / len(centred)
        weight = whitening_matrix(covariance, SHRINKAGE * covariance.diagonal().mean())
        return (chosen - learned.mean(dim=0)) @ weight.T

    found = left_out(whitened(samples, samples), parts)
    expected = torch.cat([whitened(samples[parts == part], samples[parts != part]) for part in parts.unique()])
    torch.testing.assert_close(found, expected.square().sum(dim=1), rtol=a_part / number + 0.01, atol=0)


@pytest.mark.parametrize(("number", "a_part"), [(60, 1), (60, 4), (1000, 1)])
def test_new_normal_images_are_at_0_and_vary_by_1(number, a_part):
    whole = WholeImage(CHANNELS, STRIDES)
    samples, parts = descriptors(number + 400, a_part=a_part)
    whole.learn(samples[:number], parts[:number])
    whitened = (samples[number:] - whole.mean) @ whole.weight.T
    unusual = (whitened.square().sum(dim=1) - whole.usual) / whole.spread
    assert abs(unusual.mean()) < 0.5
    assert 0.6 < unusual.std() < 1.6


def test_forward_is_the_formula():
    whole = WholeImage(CHANNELS, STRIDES)
    samples, parts = descriptors(100)
    whole.learn(samples, parts)
    maps = feature_maps()
    difference = (whole.describe(maps) - samples.mean(dim=0)).double()
    covariance = torch.from_numpy(np.cov(samples.double().numpy(), rowvar=False, bias=True))
    shrunk = covariance + SHRINKAGE * covariance.diagonal().mean() * torch.eye(len(covariance))
    expected = torch.einsum("bi,ij,bj->b", difference, shrunk.inverse(), difference)
    torch.testing.assert_close(whole(maps).double(), (expected - whole.usual) / whole.spread, rtol=1e-3, atol=1e-3)


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


@pytest.mark.parametrize("images", [1, 3])
def test_images_of_one_part_alone_teach_nothing(images):
    """Then the image as a whole says nothing, in place of not a number."""
    whole = WholeImage(CHANNELS, STRIDES)
    whole.learn(descriptors(images)[0], torch.zeros(images))
    assert whole(feature_maps()).tolist() == [0, 0]


# The score


def test_score_is_a_soft_maximum_of_both():
    score = ImageScore(CHANNELS, STRIDES)
    score.whole_image.learn(*descriptors(100))
    normal = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    for batch in normal.split(20):
        score.update(batch)
    contrasts = np.array([each.max() - each.mean() for each in normal.numpy()])
    assert score.contrast == pytest.approx(contrasts.mean(), rel=0.02)
    assert score.contrast_variance.sqrt() == pytest.approx(max(contrasts.std(), 0), rel=0.2)
    maps, features = 2 * normal[:2], feature_maps()
    spread = max(float(score.contrast_variance) ** 0.5, 0.05 * float(score.contrast))
    stands_out = (map_contrast(maps) - score.contrast) / spread
    expected = torch.log(1 + stands_out.double().exp() + score.whole_image(features).double().exp())
    torch.testing.assert_close(score(maps, features).double(), expected)


def test_a_map_that_is_high_everywhere_is_no_defect():
    """A level added to the map changes nothing, a peak does."""
    score = ImageScore(CHANNELS, STRIDES)
    maps, features = torch.rand(2, 1, 8, 8), feature_maps()
    peak = maps.clone()
    peak[..., 3, 3] += 5
    torch.testing.assert_close(score(maps + 10, features), score(maps, features), rtol=1e-4, atol=1e-4)
    assert (score(peak, features) > score(maps, features) + 1).all()


def test_without_it_the_score_is_the_maps_maximum():
    model = DskdModel(whole_image=False).eval()
    with torch.no_grad():
        predicted = model(torch.rand(2, 3, 64, 64))
    assert torch.equal(predicted.pred_score, predicted.anomaly_map.amax(dim=(1, 2, 3)))


# Training


def test_training_learns_from_each_training_image_once(tmp_path, mvtec_root):
    """Not from the test images, in whatever batches; the process's random state and the order of images stay."""
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
    loaded = Dskd.load_from_checkpoint(engine.best_model_path)
    assert torch.equal(loaded.model.image_score.whole_image.weight, score.whole_image.weight)


def test_checkpoint_from_before_it_keeps_its_score(tmp_path, mvtec_root):
    data = {"category": "stripes", "num_workers": 0, "train_batch_size": 4}
    model = Dskd(teacher_weights="random", image_size=64, training_steps=1, whole_image=False, visualizer=False)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, logger=False)
    engine.fit(model, datamodule=MVTecAD(mvtec_root, **data))
    checkpoint = torch.load(engine.best_model_path, weights_only=True)
    del checkpoint["hyper_parameters"]["whole_image"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    (batch, *_) = engine.predict(
        Dskd(visualizer=False), datamodule=MVTecAD(mvtec_root, **data), ckpt_path=tmp_path / "old.ckpt"
    )
    torch.testing.assert_close(batch.raw_score, batch.raw_map.flatten(1).amax(dim=1))
