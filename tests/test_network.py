# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The network: shapes, parts, and that every option does what it says."""

import numpy as np
import pytest
import torch
from anomalib.models.image.stfpm.anomaly_map import AnomalyMapGenerator as StfpmAnomalyMapGenerator

from anomalib_dskd.errors import DskdError
from anomalib_dskd.model.anomaly_map import AnomalyMapGenerator
from anomalib_dskd.model.components import BorderLevel, ResidualWhitening, ScaleAnomaly, feature_distance
from anomalib_dskd.model.components.anomaly import feature_residual
from anomalib_dskd.model.components.whitening import half_squared_norm
from anomalib_dskd.model.cost import part_costs
from anomalib_dskd.model.image_score import map_contrast
from anomalib_dskd.model.loss import PyramidMatchingLoss
from anomalib_dskd.model.torch_model import DskdModel

BACKBONES = {
    "resnet18": ([64, 128, 256], ["layer1", "layer2", "layer3"]),
    "wide_resnet50_2": ([256, 512, 1024], ["layer1", "layer2", "layer3"]),
    "tf_efficientnet_lite0": ([24, 40, 112], ["blocks.1", "blocks.2", "blocks.4"]),
    "mobilenetv3_large_100": ([24, 40, 112], ["blocks.1", "blocks.2", "blocks.4"]),
    "convnext_tiny": ([96, 192, 384], ["stages.0", "stages.1", "stages.2"]),
}


def build(seed: int = 0, **kwargs) -> DskdModel:
    torch.manual_seed(seed)
    return DskdModel(**kwargs)


def images(batch: int = 2, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def distances_and_loss(model: DskdModel) -> tuple[dict, torch.Tensor]:
    distances = model.train()(images())
    return distances, PyramidMatchingLoss()(distances)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbone_contract(backbone):
    channels, layers = BACKBONES[backbone]
    model = build(backbone=backbone)
    assert model.teacher.channels == channels
    assert model.teacher.strides == [4, 8, 16]
    assert model.teacher.network.feature_info.module_name() == layers
    distances, loss = distances_and_loss(model)
    assert {student: [d.shape[0] for d in scales] for student, scales in distances.items()} == {
        "encoder": [2, 2, 2],
        "decoder": [2, 2, 2],
    }
    loss.backward()
    for name, parameter in model.named_parameters():
        teachers = name.startswith("teacher.")
        assert (parameter.grad is None) == teachers, f"{name} must {'not ' if teachers else ''}be trained"
    for size in [(64, 64), (65, 97), (111, 64), (96, 130)]:
        with torch.no_grad():
            prediction = model.eval()(images(2, size))
        assert prediction.anomaly_map.shape == (2, 1, *size)
        assert prediction.anomaly_map.isfinite().all()
        assert prediction.pred_score.shape == (2,)
        assert (prediction.pred_score > 0).all()


def test_nothing_follows_the_last_map():
    """timm leaves the EfficientNet family's last stages in: they would cost time in every step."""
    network = build(backbone="tf_efficientnet_lite0").teacher.network
    assert len(network.blocks) == 5


def test_batch_does_not_change_an_image():
    model = build().eval()
    batch = images(3)
    with torch.no_grad():
        together, alone = model(batch).anomaly_map[1], model(batch[1:2]).anomaly_map[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def test_decoder_is_of_the_encoders_scale():
    """The paper: two students "of the same scale but inverted structure"."""
    costs = part_costs(build(decoder_blocks=2))
    assert costs["decoder"].parameters == pytest.approx(costs["encoder"].parameters, rel=0.3)
    assert part_costs(build())["decoder"].gmacs < costs["decoder"].gmacs / 2
    assert costs["teacher"].gmacs == pytest.approx(1.83, abs=0.01)
    assert costs["encoder"] == costs["teacher"]


def test_encoder_alone_is_stfpm():
    """With equal weights anomalib's STFPM gives the same map on the finest grid."""
    model = build(students="encoder", scale_fusion="product", smoothing=0, distance="cosine", regions=False).eval()
    assert model.decoder is None
    assert model.embedding is None
    batch = images(2, (96, 80))
    layers = model.teacher.network.feature_info.module_name()
    with torch.no_grad():
        expected = StfpmAnomalyMapGenerator()(
            teacher_features=dict(zip(layers, model.teacher(batch), strict=True)),
            student_features=dict(zip(layers, model.encoder(batch), strict=True)),
            image_size=(24, 20),
        )
        (actual,) = model.anomaly_map_generator.student_maps(model.anomalies(*model.features(batch))).values()
    assert actual.std() > 0
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("students", ["both", "decoder"])
def test_students_see_what_the_teacher_does_not(students):
    model = build(students=students).eval()
    clean, drawn = images(), images().flip(-1)
    teacher, seen = model.features(clean, drawn)
    expected_teacher, plain = model.features(clean)
    _, expected_seen = model.features(drawn)
    assert all(torch.equal(a, b) for a, b in zip(teacher, expected_teacher, strict=True))
    for student, maps in seen.items():
        assert all(torch.equal(a, b) for a, b in zip(maps, expected_seen[student], strict=True))
        assert not torch.equal(maps[0], plain[student][0])


def test_distance_of_regions():
    """It is nearly zero where residuals cancel, and the distance itself where they agree."""
    location, both = (ScaleAnomaly(5, 16, "cosine", regions=regions) for regions in (False, True))
    teacher = torch.randn(1, 5, 1, 1).expand(-1, -1, 20, 20)
    student = torch.randn(1, 5, 1, 1).expand(-1, -1, 20, 20)
    (alone,) = location(teacher, student)
    torch.testing.assert_close(alone, feature_distance(teacher, student), rtol=1e-4, atol=1e-6)
    location_of_both, region, _ = both(teacher, student)
    torch.testing.assert_close([location_of_both, region], [alone, alone])
    student = torch.randn(1, 5, 20, 20)
    region = both(teacher, student)[1][0, 0]
    residual = torch.nn.functional.normalize(teacher, dim=1) - torch.nn.functional.normalize(student, dim=1)
    for row, column in [(10, 10), (0, 0), (19, 5)]:
        inside = residual[0, :, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        expected = inside.mean(dim=(1, 2)).square().sum() / 2
        torch.testing.assert_close(region[row, column], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("stride", "pixels"), [(2, 80), (4, 80), (8, 80), (16, 80), (32, 96)])
def test_regions_are_as_wide_at_every_scale(stride, pixels):
    """A residual at one location alone spreads over a region, and no farther."""
    size = 512 // stride
    teacher, student = torch.zeros(2, 1, 3, size, size)
    teacher[:, 0] = student[:, 0] = 1
    student[0, :, size // 2, size // 2] = torch.tensor([0.0, 1.0, 0.0])
    means, wide = ScaleAnomaly(3, stride, "cosine", regions=True).region_means(
        feature_residual(teacher, student), feature_distance(teacher, student)
    )
    location = max(stride, 16)
    assert means.shape[-1] == 2 * wide.shape[-1] == 512 // location
    assert ((wide[0, 1, 256 // (2 * location)] != 0).sum() * 2 * location).item() == 256
    assert ((means[0, 1, 256 // location] != 0).sum() * location).item() == pixels


def test_regions_of_fine_maps_are_means_of_their_blocks():
    """Of 18 locations the last block holds two; in the map the distance lies between those of blocks."""
    both = ScaleAnomaly(5, 4, "cosine", regions=True)
    teacher, student = torch.randn(2, 1, 5, 18, 18)
    means, _ = both.region_means(feature_residual(teacher, student), feature_distance(teacher, student))
    assert means.shape == (1, 5, 5, 5)
    residual = feature_residual(teacher, student)
    blocks = [[residual[0, :, i : i + 4, j : j + 4].mean(dim=(1, 2)) for j in range(0, 18, 4)] for i in range(0, 18, 4)]
    expected = torch.stack([block for row in blocks for block in row]).mean(dim=0)
    torch.testing.assert_close(means[0, :, 2, 2], expected)
    _, region, _ = both(teacher, student)
    torch.testing.assert_close(region, 0.5 * means.square().sum(dim=1, keepdim=True), rtol=1e-4, atol=1e-6)
    shown = AnomalyMapGenerator().student_maps({"encoder": [[torch.zeros(1, 1, 18, 18), region]]})["encoder"][:, 1:]
    bilinear = torch.nn.functional.interpolate(region, (18, 18), mode="bilinear", align_corners=False)
    torch.testing.assert_close(shown, bilinear)
    assert shown[0, 0, 0, 0] == region[0, 0, 0, 0]


@pytest.mark.parametrize("side", [2, 4, 5, 16, 17])
def test_wide_regions_lie_around_the_middle_of_two_by_two_blocks(side):
    """From the smallest image on; where a block is left over, it has a region too."""
    residual = torch.randn(1, 2, side, side)
    _, wide = ScaleAnomaly(2, 16, "cosine", regions=True).region_means(residual, residual[:, :1])
    assert wide.shape == (1, 2, -(-side // 2), -(-side // 2))
    reach = max(0, side // 4 - 1)
    for index in range(wide.shape[-1]):
        inside = slice(max(0, 2 * index - reach), 2 * index + 2 + reach)
        torch.testing.assert_close(wide[0, :, index, index], residual[0, :, inside, inside].mean(dim=(1, 2)))


def trained_on_normal_images(channels, stride, size):
    """Anomalies of a scale whose students miss the teacher by a little, otherwise at each location."""
    torch.manual_seed(0)
    anomaly = ScaleAnomaly(channels, stride, "mahalanobis", regions=True).train()
    teacher = torch.zeros(8, channels, size, size)
    teacher[:, 0] = 1
    for _ in range(20):
        anomaly.learn(teacher, teacher + 0.1 * torch.randn(teacher.shape))
    return anomaly.eval(), teacher[:1], (teacher + 0.1 * torch.randn(teacher.shape))[:1]


@pytest.mark.parametrize("stride", [4, 16])
def test_small_clear_defects_do_not_raise_their_region_but_faint_wide_ones_do(stride):
    """Ten times as clear, it raises what is beside it less than a tenth as much by its own; the wide one has a core."""
    anomaly, teacher, student = trained_on_normal_images(6, stride, 256 // stride)
    middle, beside, block = 128 // stride, (128 + 24) // stride, 16 // stride
    direction = torch.tensor([0.0, 1, 0, 0, 0, 0])[:, None, None]

    def map_of(seen: torch.Tensor) -> torch.Tensor:
        generator = AnomalyMapGenerator(smoothing=0)
        return generator({"encoder": [anomaly(teacher, seen)]}, torch.ones(1), teacher.shape[-2:])[0, 0]

    around = {}
    for clearness in (0.3, 3.0):
        small = teacher.clone()
        small[0, :, middle : middle + block, middle : middle + block] += clearness * direction
        found = map_of(small)
        around[clearness] = (found[beside, beside] / found[middle, middle]).item()
    assert 0 < around[3.0] < 0.1 * around[0.3]
    inside = slice(middle - 4 * block, middle + 4 * block)
    wide = student.clone()
    wide[0, :, inside, inside] += 0.15 * direction
    core = slice(middle - 2 * block, middle + 2 * block)
    assert map_of(wide)[core, core].mean() > 2 * map_of(student).mean()


@pytest.mark.parametrize("distance", ["mahalanobis", "cosine"])
@pytest.mark.parametrize("regions", [True, False])
def test_learning_tells_the_distances_that_are_asked_for_afterwards(distance, regions):
    """So that the map's border and contrast are learned from them without computing them again."""
    torch.manual_seed(0)
    anomaly = ScaleAnomaly(6, 4, distance, regions=regions).train()
    teacher = torch.randn(2, 6, 32, 32)
    for _ in range(3):
        anomaly.learn(teacher, teacher + torch.randn(teacher.shape))
    student = teacher + torch.randn(teacher.shape)
    before, learned, after = anomaly(teacher, student), anomaly.learn(teacher, student), anomaly(teacher, student)
    torch.testing.assert_close(learned, after)
    assert all(map(torch.equal, before, after)) == (distance == "cosine")


def test_usual_distance_is_the_mean_over_normal_images():
    """In the units of the distances, up to what the spread of the last batches changes."""
    whitening = ResidualWhitening(6).train()
    batches = normal_residuals(200)
    for batch in batches:
        whitening.update(batch)
    whitening.eval()
    expected = torch.cat([half_squared_norm(whitening(batch)) for batch in batches]).mean().item()
    assert whitening.usual().item() == pytest.approx(expected, rel=0.02)


def normal_residuals(batches, generator=None):
    generator = generator or torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    return [torch.einsum("ij,bjhw->bihw", mixing, torch.randn(4, 6, 8, 8, generator=generator)) for _ in range(batches)]


def test_whitening_counts_residuals_by_what_is_usual():
    """Against numpy's second moment of all that was seen, up to a factor; evaluation takes it over."""
    seen = normal_residuals(5)
    whitening = ResidualWhitening(6).train()
    for batch in seen:
        whitening.update(batch)
    whitening.eval()
    locations = torch.cat(seen).transpose(0, 1).flatten(1).double().numpy()
    moment = locations @ locations.T / locations.shape[1]
    inverse = np.linalg.inv(moment + np.trace(moment) / 6 * np.eye(6))
    expected = np.einsum("in,ij,jn->n", locations, inverse, locations).reshape(20, 8, 8)
    found = whitening(torch.cat(seen)).square().sum(dim=1).numpy()
    np.testing.assert_allclose(found / found.mean(), expected / expected.mean(), rtol=1e-4)
    copy = ResidualWhitening(6)
    copy.load_state_dict(whitening.state_dict())
    assert torch.equal(copy.eval()(seen[0]), whitening(seen[0]))


def test_largest_distances_of_normal_images_vary_by_one():
    """However many channels there are and however large the residuals: each map has the same say in the sum."""
    batches = normal_residuals(600)
    for factor in (0.1, 10):
        whitening = ResidualWhitening(6).train()
        for batch in batches[:500]:
            whitening.update(factor * batch)
        whitening.eval()
        peaks = torch.cat([half_squared_norm(whitening(factor * batch)).amax(dim=(1, 2, 3)) for batch in batches[500:]])
        assert peaks.std().item() == pytest.approx(1, rel=0.15)


def test_spread_is_that_of_all_images_seen_so_far():
    """Its moving average starts as a plain one: numpy's over the largest distances, batch by batch."""
    whitening = ResidualWhitening(6).train()
    peaks = []
    for batch in normal_residuals(9):  # up to the second weight
        whitening.update(batch)
        whitened = torch.einsum("ij,bjhw->bihw", whitening.weight, batch)
        peaks += (whitened.square().sum(dim=1) / 2).amax(dim=(1, 2)).tolist()
    assert whitening.peak.item() == pytest.approx(np.mean(peaks), rel=1e-4)
    assert whitening.peak_variance.item() == pytest.approx(np.var(peaks), rel=1e-3)


def test_one_normal_image_alone_has_a_spread_too():
    whitening = ResidualWhitening(6).train()
    (batch,) = normal_residuals(1)
    for _ in range(20):
        whitening.update(batch[:1])
    assert half_squared_norm(whitening.eval()(batch[:1])).amax().item() == pytest.approx(20, rel=0.05)


def test_whitening_forgets_the_beginning_of_training():
    whitening = ResidualWhitening(4)
    for _ in range(400):
        whitening.update(100 * torch.ones(1, 4, 2, 2))
    for _ in range(600):
        whitening.update(torch.ones(1, 4, 2, 2))
    torch.testing.assert_close(whitening.second_moment, torch.ones(4, 4), rtol=0.1, atol=0)


def test_nothing_to_whiten_is_no_number_out_of_bounds():
    whitening = ResidualWhitening(3)
    whitening.update(torch.zeros(1, 3, 2, 2))
    assert (whitening.eval()(torch.zeros(1, 3, 2, 2)) == 0).all()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 24)])
def test_border_of_normal_maps_is_brought_to_the_level_of_the_inside(height, width):
    """Ring by ring, of each map by itself; of small maps a quarter of the shorter side is border."""
    border = BorderLevel(2, 8)
    rows, columns = (np.minimum(np.arange(side), side - 1 - np.arange(side)) for side in (height, width))
    ring = np.minimum(rows[:, None], columns)
    usual = torch.from_numpy(np.stack([1 + 3 * np.exp(-ring / 2), 5 + 2 * np.exp(-ring)])).float()
    for _ in range(5):
        border.update(usual * (1 + torch.rand(3, 1, 1, 1)))
    levelled = border(usual[None])[0]
    inside = ring >= min(8, min(height, width) // 4)
    assert torch.equal(levelled[:, inside], usual[:, inside])
    mean = usual[:, inside].mean(dim=1, keepdim=True)
    torch.testing.assert_close(levelled[:, ~inside], mean.expand(2, int((~inside).sum())))


def test_a_border_with_less_than_the_inside_stays_as_it_is():
    border, maps = BorderLevel(1, 8), torch.ones(2, 1, 64, 64)
    maps[..., 8:-8, 8:-8] = 5
    border.update(maps)
    assert torch.equal(border(maps), maps)
    assert torch.equal(BorderLevel(1, 8)(maps), maps), "nothing is known before training"


def test_the_map_has_its_border_levelled():
    border = BorderLevel(1, 4)
    border.update(torch.nn.functional.pad(torch.ones(1, 1, 14, 14), [1] * 4, value=3.0))
    generator = AnomalyMapGenerator(smoothing=0, border=border)
    found = generator({"encoder": [[torch.full((1, 1, 16, 16), 6.0)]]}, torch.ones(1), torch.Size((16, 16)))[0, 0]
    assert found[0].tolist() == [2.0] * 16
    assert found[1:-1, 1:-1].unique().tolist() == [6.0]


# The level of an image


def test_level_of_a_scale_is_in_shares_of_the_usual_and_clear_defects_hardly_raise_it():
    anomaly, teacher, student = trained_on_normal_images(6, 4, 64)

    def level(seen: torch.Tensor) -> float:
        return anomaly.level(anomaly(teacher, seen)[0]).item()

    assert level(student) == pytest.approx(1, abs=0.1)
    smoother = teacher + 0.7 * (student - teacher)
    assert level(smoother) == pytest.approx(0.49, abs=0.06)
    with_defect = student.clone()
    with_defect[0, 1, :16, :16] += 3
    assert level(student) < level(with_defect) < level(student) + 0.08


def test_a_student_that_misses_nothing_has_a_level():
    anomaly, teacher = ScaleAnomaly(4, 4, "mahalanobis", regions=False).train(), torch.randn(2, 4, 8, 8)
    anomaly.learn(teacher, teacher)
    assert anomaly.level(*anomaly.eval()(teacher, teacher)).tolist() == [0, 0]


def test_level_of_an_image_is_the_geometric_mean_over_students_and_finer_scales():
    model = build().eval()
    with torch.no_grad():
        anomalies = model.anomalies(*model.features(images()))
    level = model.level(anomalies)
    levels = [
        torch.minimum(anomalies[student][k][0], 2 * usual).mean(dim=(1, 2, 3)) / usual
        for student in ("encoder", "decoder")
        for k in (0, 1)
        for usual in [model.scale_anomalies[student][k].location.usual()]
    ]
    torch.testing.assert_close(level, torch.stack(levels).prod(dim=0) ** 0.25)
    for scales in anomalies.values():
        scales[2][0].mul_(100)
    torch.testing.assert_close(model.level(anomalies), level)


@pytest.mark.parametrize("distance", ["mahalanobis", "cosine"])
def test_a_rougher_image_has_half_of_its_level_taken_off_the_map_and_all_off_the_score(distance):
    """Of cosine distance nothing off the map, as the paper has it, and half off the score."""
    model = build(distance=distance, smoothing=0).eval()
    with torch.no_grad():
        features = model.features(images())
        found, levels, maps, contrasts = model.anomalies(*features), [], [], []
        for factor in (0.25, 0.5):
            rougher = {name: [[factor * each for each in scale] for scale in scales] for name, scales in found.items()}
            levels.append(model.level(rougher))
            maps.append(model.predict(features[0], rougher, levels[-1], torch.Size((64, 64))).anomaly_map)
            contrasts.append(map_contrast(maps[-1], levels[-1]))
    torch.testing.assert_close(levels[1], 2 * levels[0])
    left = 0.5 if distance == "mahalanobis" else 1.0
    torch.testing.assert_close(maps[1], 2**left * maps[0])
    torch.testing.assert_close(contrasts[1], contrasts[0] + (left - 0.5) * np.log(2), check_dtype=False)


def test_a_model_of_one_scale_takes_its_level_from_it():
    model = build(layers=["layer2"]).eval()
    with torch.no_grad():
        anomalies = model.anomalies(*model.features(images()))
    assert model.level(anomalies).shape == (2,)


def test_border_is_learned_with_the_mahalanobis_distance():
    for distance, learned in (("mahalanobis", True), ("cosine", False)):
        model = build(distance=distance).train()
        model.learn_usual(*model.features(images()))
        border = model.anomaly_map_generator.border
        assert (border is not None) == learned
        if learned:
            assert border.updates == 1
            assert border.means.shape == (3, 9)
            assert (border.means != 1).all()


def test_distance_is_one_minus_cosine():
    teacher, student = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4)
    expected = 1 - torch.cosine_similarity(teacher, student, dim=1).unsqueeze(1)
    torch.testing.assert_close(feature_distance(teacher, student), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert feature_distance(teacher.bfloat16(), teacher.bfloat16()).abs().max() < 1e-6


def test_interaction_carries_the_gradient():
    for interaction, carried in [("gradient", True), ("stop_gradient", False)]:
        model = build(interaction=interaction)
        distances, _ = distances_and_loss(model)
        PyramidMatchingLoss()({"decoder": distances["decoder"]}).backward()
        gradients = [parameter.grad for parameter in model.encoder.parameters()]
        assert any(g is not None and g.abs().sum() > 0 for g in gradients) == carried
        assert model.embedding.fuse[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("embedding", [True, False])
def test_embedding_lets_the_decoder_see_all_scales(embedding):
    model = build(embedding=embedding)
    assert (model.embedding is not None) == embedding
    seen = [features.detach().requires_grad_() for features in model.encoder(images())]
    model.encoder.forward = lambda _: seen
    PyramidMatchingLoss()({"decoder": model.distances(*model.features(images()))["decoder"]}).backward()
    assert [features.grad is not None for features in seen] == [embedding, embedding, True]


@pytest.mark.parametrize("size", [(64, 64), (111, 130)])
def test_embedding_sees_every_location_of_every_scale(size):
    """What is averaged over the coarsest grid leaves nothing out, at the border of odd sizes neither."""
    model = build()
    seen = [features.detach().requires_grad_() for features in model.encoder(images(size=size))]
    model.embedding(seen).square().sum().backward()
    assert all((features.grad != 0).any(dim=1).all() for features in seen)


def test_decoder_alone_reads_the_teacher():
    model = build(students="decoder")
    assert model.encoder is None
    distances, loss = distances_and_loss(model)
    assert list(distances) == ["decoder"]
    loss.backward()
    assert model.embedding.fuse[0].weight.grad.abs().sum() > 0


def test_layers_choose_the_scales():
    model = build(layers=["layer3", "layer1"])  # a gap in strides, in any order
    assert model.teacher.strides == [4, 16]
    distances, _ = distances_and_loss(model)
    assert [d.shape[-1] for d in distances["decoder"]] == [16, 4]
    assert build(layers=["layer2"]).eval()(images()).anomaly_map.shape == (2, 1, 64, 64)


def test_fusions_and_smoothing_do_what_they_say():
    base = build(smoothing=0, regions=False).eval()
    with torch.no_grad():
        teacher, students = base.features(images())
        distances = {name: [[each] for each in maps] for name, maps in base.distances(teacher, students).items()}
    size = torch.Size((64, 64))

    def predict(**kwargs) -> torch.Tensor:
        model = build(**{"smoothing": 0, "regions": False, **kwargs})
        return model.predict(teacher, distances, base.level(distances), size).anomaly_map

    def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return torch.nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    one_level = base.level(distances).rsqrt()[:, None, None, None]
    students = base.anomaly_map_generator.student_maps(distances)
    on_one_grid = {
        student: torch.cat([resize(scale, (16, 16)) for (scale,) in scales], dim=1)
        for student, scales in distances.items()
    }
    for fusion, over_scales, over_students in [
        ("sum", torch.sum, torch.add),
        ("product", torch.prod, torch.mul),
        ("max", torch.amax, torch.maximum),
    ]:
        scaled = {student: over_scales(maps, dim=1, keepdim=True) for student, maps in on_one_grid.items()}
        fused = over_students(students["encoder"], students["decoder"])
        summed = scaled["encoder"] + scaled["decoder"]
        torch.testing.assert_close(predict(scale_fusion=fusion), resize(summed, size) * one_level)
        torch.testing.assert_close(predict(student_fusion=fusion), resize(fused, size) * one_level)
    smooth = predict(smoothing=4.0)
    assert smooth.var() < predict().var()
    torch.testing.assert_close(smooth.mean(), predict().mean(), rtol=0.05, atol=0)


def test_locations_and_regions_are_added_as_squares_the_wide_ones_by_half():
    """Whatever their scales and students; without regions the map is the distance of locations."""
    size, sides = torch.Size((8, 8)), (8, 4)
    of_scales = {"encoder": [(1.0, 2.0, 8.0), (1.0, 1.0, 2.0)], "decoder": [(0.0, 1.0, 4.0), (1.0, 2.0, 2.0)]}
    distances = {
        student: [
            [torch.full((1, 1, side, side), each) for each in scale] for side, scale in zip(sides, scales, strict=True)
        ]
        for student, scales in of_scales.items()
    }
    level = torch.full((1,), 4.0)
    expected = torch.full((1, 1, 8, 8), (3**2 + 6**2 + (16 / 2) ** 2) ** 0.5)
    torch.testing.assert_close(AnomalyMapGenerator()(distances, level, size), expected)
    levelled = AnomalyMapGenerator(border=BorderLevel(3, 2))(distances, level, size)
    torch.testing.assert_close(levelled, expected / 2)
    alone = {student: [scale[:1] for scale in scales] for student, scales in distances.items()}
    torch.testing.assert_close(AnomalyMapGenerator()(alone, level, size), torch.full((1, 1, 8, 8), 3.0))


@pytest.mark.parametrize("size", [(64, 64), (65, 97)])
def test_students_are_summed_before_anything_is_brought_to_a_finer_grid(size):
    """It is the same map as the sum of each student's, at half the work."""
    model = build().eval()
    with torch.no_grad():
        anomalies = model.anomalies(*model.features(images(size=size)))
    students = model.anomaly_map_generator.student_maps(anomalies)
    assert not torch.allclose(students["encoder"][:, 0], students["encoder"][:, 1])
    torch.testing.assert_close(model.anomaly_map_generator.fuse(anomalies), students["encoder"] + students["decoder"])


@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        ({"students": "teacher"}, "'both', 'encoder', 'decoder'"),
        ({"interaction": "none"}, "'gradient', 'stop_gradient'"),
        ({"decoder_blocks": 0}, "decoder_blocks=0 must be at least 1"),
        ({"smoothing": -1}, "0 switches it off"),
        ({"scale_fusion": "mean"}, "'sum', 'product', 'max'"),
        ({"student_fusion": "mean"}, "'sum', 'product', 'max'"),
        ({"layers": ["layer9"]}, "'layer1', 'layer2', 'layer3', 'layer4'"),
        ({"layers": []}, "'layer1', 'layer2', 'layer3', 'layer4'"),
        ({"backbone": "resnet1"}, "resnet18"),
        ({"backbone": "no_such_network"}, "timm.list_models()"),
    ],
)
def test_wrong_value_is_answered_with_the_right_ones(arguments, listed):
    with pytest.raises(DskdError, match="=") as error:
        build(**arguments)
    assert listed in str(error.value)
    assert repr(next(iter(arguments.values()))) in str(error.value)


def test_smoothing_wider_than_the_map_is_refused():
    with pytest.raises(DskdError, match="map of 16 locations is too small for its smoothing: 33 locations"):
        build(smoothing=16).eval()(images(1, (64, 80)))


def test_images_too_small():
    with pytest.raises(DskdError, match=r"\(63, 80\).*at least 64"):
        build()(images(1, (63, 80)))
