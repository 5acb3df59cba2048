# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The DSKD network, from a batch of images to anomaly maps and scores."""

from collections.abc import Mapping, Sequence

import torch
from anomalib.data import InferenceBatch
from torch import nn

from anomalib_dskd.errors import DskdError, check_choice

from .anomaly_map import AnomalyMapGenerator
from .components import (
    BorderLevel,
    DeepFeatureEmbedding,
    ImageLevel,
    ScaleAnomaly,
    StudentDecoder,
    Teacher,
    build_backbone,
    feature_distance,
)
from .image_score import ImageScore

STUDENTS = ("both", "encoder", "decoder")
INTERACTIONS = ("gradient", "stop_gradient")
DISTANCES = ("mahalanobis", "cosine")
MIN_SIZE = 64
BORDER_PIXELS = 32

Maps = list[torch.Tensor]


class DskdModel(nn.Module):
    """Teacher, student encoder, deep feature embedding and student decoder.

    Yao & Gao, "Dual-Student Knowledge Distillation Networks for Unsupervised Anomaly Detection",
    arXiv 2402.00448. A student of the teacher's own structure is consistent with it on normal images but may
    follow it on anomalies too; one of inverted structure departs on anomalies but is less stable on normal
    images. Both imitate the teacher's maps; where they fail to, the image is anomalous.

    All weights start fresh, the teacher's too: see :func:`anomalib_dskd.model.teacher_weights.load_teacher`.

    Args:
        backbone: Name of a timm CNN, used for the teacher and the student encoder. Defaults to ``"resnet18"``.
        layers: Names of the layers whose maps are matched. Defaults to those at strides 4, 8 and 16.
        students: ``"both"``, ``"encoder"`` (then this is STFPM's network) or ``"decoder"``, whose embedding
            then reads the teacher, as in reverse distillation. Defaults to ``"both"``.
        embedding: Whether the decoder reads the embedding of all scales; ``False`` hands it the encoder's
            coarsest map as it is. Defaults to ``True``.
        decoder_blocks: Residual blocks in each of the decoder's stages; with ``2`` it is about as large as ResNet-18
            as encoder, with ``1`` half as large. Defaults to ``1``.
        interaction: ``"gradient"`` lets the decoder's loss train the encoder through the embedding,
            ``"stop_gradient"`` does not. Defaults to ``"gradient"``.
        distance: What of the students' misses the anomaly map shows: ``"mahalanobis"`` counts them by what is usual on
            normal images, ``"cosine"`` counts all alike, as training does; see
            :class:`~anomalib_dskd.model.components.ScaleAnomaly`, for the border of the map
            :class:`~anomalib_dskd.model.components.BorderLevel`, and for its level :meth:`level`. Defaults to
            ``"mahalanobis"``.
        scale_fusion: How scales are fused into a map: ``"sum"``, ``"product"`` or ``"max"``.
        student_fusion: How the students' maps are fused, likewise.
        smoothing: Sigma of the Gaussian applied to the map, in pixels of the input; ``0`` switches it off.
        regions: Whether the map has the distances of regions too, beside those of single locations. Defaults to
            ``True``.
        whole_image: Whether the score is what stands out in the map together with how unusual the image is as a whole,
            see :class:`~anomalib_dskd.model.image_score.ImageScore`; ``False`` takes the map's maximum. Defaults to
            ``True``.

    Raises:
        DskdError: If an argument has a value that is not offered; the message lists those that are.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        layers: Sequence[str] | None = None,
        students: str = "both",
        embedding: bool = True,
        decoder_blocks: int = 1,
        interaction: str = "gradient",
        distance: str = "mahalanobis",
        scale_fusion: str = "sum",
        student_fusion: str = "sum",
        smoothing: float = 4.0,
        regions: bool = True,
        whole_image: bool = True,
    ) -> None:
        super().__init__()
        self.students = check_choice("students", students, STUDENTS)
        self.interaction = check_choice("interaction", interaction, INTERACTIONS)
        check_choice("distance", distance, DISTANCES)
        if decoder_blocks < 1:
            msg = f"decoder_blocks={decoder_blocks} must be at least 1."
            raise DskdError(msg)
        if smoothing < 0:
            msg = f"smoothing={smoothing} must not be negative; 0 switches it off."
            raise DskdError(msg)
        self.teacher = Teacher(backbone, layers)
        channels, strides = self.teacher.channels, self.teacher.strides
        self.finer = max(1, len(strides) - 1)  # how many scales tell the level of an image
        border = BorderLevel(1 + 2 * regions, BORDER_PIXELS // strides[0]) if distance == "mahalanobis" else None
        self.anomaly_map_generator = AnomalyMapGenerator(scale_fusion, student_fusion, smoothing / strides[0], border)
        self.encoder: nn.Module | None = None
        self.embedding: DeepFeatureEmbedding | None = None
        self.decoder: StudentDecoder | None = None
        if students != "decoder":
            self.encoder = build_backbone(backbone, layers)
        if students != "encoder":
            read, stride = channels[-1], strides[-1]
            if embedding:
                self.embedding = DeepFeatureEmbedding(channels, strides)
                read, stride = self.embedding.out_channels, self.embedding.out_stride
            self.decoder = StudentDecoder(read, stride, channels, strides, decoder_blocks)
        self.scale_anomalies = nn.ModuleDict(
            {
                student: nn.ModuleList(
                    ScaleAnomaly(each, stride, distance, regions)
                    for each, stride in zip(channels, strides, strict=True)
                )
                for student in ("encoder", "decoder")
                if students in ("both", student)
            }
        )
        self.image_level = ImageLevel()
        self.image_score = ImageScore(channels, strides) if whole_image else None

    def features(self, images: torch.Tensor, seen: torch.Tensor | None = None) -> tuple[Maps, dict[str, Maps]]:
        """Compute the feature maps that are compared.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``, H and W at least 64.
            seen: What the students see in place of the images, of the same shape; by default the images.

        Returns:
            The teacher's maps, ``(B, C, h, w)`` each, finest first, and likewise those of each student
            (``"encoder"``, ``"decoder"``).

        Raises:
            DskdError: If the images are smaller than 64 pixels.
        """
        if min(images.shape[-2:]) < MIN_SIZE:
            msg = f"Images of {tuple(images.shape[-2:])} pixels are too small: DSKD needs at least {MIN_SIZE} each way."
            raise DskdError(msg)
        teacher = self.teacher(images)
        students: dict[str, Maps] = {}
        if self.encoder is not None:
            students["encoder"] = read = self.encoder(images if seen is None else seen)
        else:
            read = teacher if seen is None else self.teacher(seen)
        if self.decoder is not None:
            if self.interaction == "stop_gradient":
                read = [features.detach() for features in read]
            embedded = read[-1] if self.embedding is None else self.embedding(read)
            students["decoder"] = self.decoder(embedded, [features.shape[-2:] for features in teacher])
        return teacher, students

    @staticmethod
    def distances(teacher: Maps, students: Mapping[str, Maps]) -> dict[str, Maps]:
        """Compute each student's distance to the teacher, which training minimises.

        Args:
            teacher: The teacher's maps, see :meth:`features`.
            students: Those of each student.

        Returns:
            For each student one map a scale, ``(B, 1, h, w)``, finest first.
        """
        return {
            student: [feature_distance(t, s) for t, s in zip(teacher, maps, strict=True)]
            for student, maps in students.items()
        }

    def anomalies(self, teacher: Maps, students: Mapping[str, Maps]) -> dict[str, list[Maps]]:
        """Compute what is shown in the anomaly map: distances, and those of regions.

        Args:
            teacher: The teacher's maps, see :meth:`features`.
            students: Those of each student.

        Returns:
            For each student and scale, finest first, the distances of single locations, ``(B, 1, h, w)``, and of
            regions of each width, ``(B, 1, h', w')``.
        """
        return {
            student: [
                scale_anomaly(t, s)
                for scale_anomaly, t, s in zip(self.scale_anomalies[student], teacher, maps, strict=True)
            ]
            for student, maps in students.items()
        }

    def level(self, anomalies: Mapping[str, Sequence[Maps]]) -> torch.Tensor:
        """Compute how much the students miss of each image all over, where it says little of defects.

        A rougher surface or another exposure is missed more at each location of the finer scales, which see texture; of
        a large defect it is the coarsest, which sees what is shown, that is missed more, so it is left out.

        Args:
            anomalies: See :meth:`anomalies`.

        Returns:
            Levels of shape ``(B,)``: the geometric mean, over students and all scales but the coarsest, of
            :meth:`~anomalib_dskd.model.components.ScaleAnomaly.level`.
        """
        levels = [
            scale_anomaly.level(distances[0])
            for student, scales in anomalies.items()
            for scale_anomaly, distances in list(zip(self.scale_anomalies[student], scales, strict=True))[: self.finer]
        ]
        return self.image_level(levels)

    def learn_usual(self, teacher: Maps, students: Mapping[str, Maps]) -> None:
        """Take what the students miss of normal images into what is usual, for Mahalanobis distance and image score.

        Arguments and shapes are those of :meth:`distances`.
        """
        if self.anomaly_map_generator.border is None and self.image_score is None:
            return  # cosine distance knows nothing of what is usual, and the map's maximum neither
        anomalies = {
            student: [
                scale_anomaly.learn(t, s)
                for scale_anomaly, t, s in zip(self.scale_anomalies[student], teacher, maps, strict=True)
            ]
            for student, maps in students.items()
        }
        with torch.no_grad():
            maps = self.anomaly_map_generator.fuse(anomalies)
            self.anomaly_map_generator.learn(maps)
            if self.image_score is not None:
                image_size = torch.Size(side * self.teacher.strides[0] for side in maps.shape[-2:])
                level = self.level(anomalies)
                self.image_score.update(self.anomaly_map_generator.finish(maps, level, image_size), level)

    def forward(self, images: torch.Tensor) -> dict[str, Maps] | InferenceBatch:
        """Compute distances (training) or anomaly map and score (evaluation).

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            In training mode the distances, see :meth:`distances`. In evaluation mode a batch whose
            ``anomaly_map`` is ``(B, 1, H, W)`` and whose ``pred_score`` is the image score, ``(B,)``.
        """
        teacher, students = self.features(images)
        if self.training:
            return self.distances(teacher, students)
        anomalies = self.anomalies(teacher, students)
        return self.predict(teacher, anomalies, self.level(anomalies), images.shape[-2:])

    def student_maps(
        self, anomalies: Mapping[str, Sequence[Maps]], level: torch.Tensor, image_size: torch.Size
    ) -> dict[str, torch.Tensor]:
        """Turn anomalies into a smoothed map of each student, ``(B, 1, H, W)``; arguments as :meth:`predict` has."""
        maps = self.anomaly_map_generator.student_maps(anomalies)
        return {student: self.anomaly_map_generator.finish(each, level, image_size) for student, each in maps.items()}

    def predict(
        self,
        teacher: Maps,
        anomalies: Mapping[str, Sequence[Maps]],
        level: torch.Tensor,
        image_size: torch.Size,
        held_out: bool = False,
    ) -> InferenceBatch:
        """Turn anomalies into the anomaly map ``(B, 1, H, W)`` and the image score ``(B,)``.

        Args:
            teacher: The teacher's maps, see :meth:`features`.
            anomalies: See :meth:`anomalies`.
            level: How much is missed of each image all over, see :meth:`level`, ``(B,)``.
            image_size: Height and width of the network's input.
            held_out: Whether the images are those held out for a threshold.
        """
        maps, score = self.anomaly_map_generator(anomalies, level, image_size), self.image_score
        found = maps.amax(dim=(-3, -2, -1)) if score is None else score(maps, level, teacher, held_out)
        return InferenceBatch(pred_score=found, anomaly_map=maps)
