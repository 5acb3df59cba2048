# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The DSKD network, from a batch of images to anomaly maps and scores."""

from collections.abc import Sequence

import torch
from anomalib.data import InferenceBatch
from torch import nn

from anomalib_dskd.errors import DskdError, check_choice

from .anomaly_map import AnomalyMapGenerator
from .components import DeepFeatureEmbedding, StudentDecoder, Teacher, build_backbone, feature_distance

STUDENTS = ("both", "encoder", "decoder")
INTERACTIONS = ("gradient", "stop_gradient")
MIN_SIZE = 64


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
        interaction: ``"gradient"`` lets the decoder's loss train the encoder through the embedding,
            ``"stop_gradient"`` does not. Defaults to ``"gradient"``.
        scale_fusion: How scales are fused into a map: ``"sum"``, ``"product"`` or ``"max"``.
        student_fusion: How the students' maps are fused, likewise.
        smoothing: Sigma of the Gaussian applied to the map, in pixels; ``0`` switches it off.

    Raises:
        DskdError: If an argument has a value that is not offered; the message lists those that are.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        layers: Sequence[str] | None = None,
        students: str = "both",
        embedding: bool = True,
        interaction: str = "gradient",
        scale_fusion: str = "sum",
        student_fusion: str = "sum",
        smoothing: float = 4.0,
    ) -> None:
        super().__init__()
        self.students = check_choice("students", students, STUDENTS)
        self.interaction = check_choice("interaction", interaction, INTERACTIONS)
        self.anomaly_map_generator = AnomalyMapGenerator(scale_fusion, student_fusion, smoothing)
        self.teacher = Teacher(backbone, layers)
        channels, strides = self.teacher.channels, self.teacher.strides
        self.encoder: nn.Module | None = None
        self.embedding: DeepFeatureEmbedding | None = None
        self.decoder: StudentDecoder | None = None
        if students != "decoder":
            self.encoder = build_backbone(backbone, layers)
        if students != "encoder":
            if embedding:
                self.embedding = DeepFeatureEmbedding(channels, strides)
                self.decoder = StudentDecoder(self.embedding.out_channels, self.embedding.out_stride, channels, strides)
            else:
                self.decoder = StudentDecoder(channels[-1], strides[-1], channels, strides)

    def distances(self, images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """Compute each student's distance to the teacher.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``, H and W at least 64.

        Returns:
            For each student (``"encoder"``, ``"decoder"``) one map a scale, ``(B, 1, h, w)``, finest first.

        Raises:
            DskdError: If the images are smaller than 64 pixels.
        """
        if min(images.shape[-2:]) < MIN_SIZE:
            msg = f"Images of {tuple(images.shape[-2:])} pixels are too small: DSKD needs at least {MIN_SIZE} each way."
            raise DskdError(msg)
        teacher_maps = self.teacher(images)
        student_maps: dict[str, list[torch.Tensor]] = {}
        seen = teacher_maps
        if self.encoder is not None:
            student_maps["encoder"] = seen = self.encoder(images)
        if self.decoder is not None:
            if self.interaction == "stop_gradient":
                seen = [features.detach() for features in seen]
            embedded = seen[-1] if self.embedding is None else self.embedding(seen)
            student_maps["decoder"] = self.decoder(embedded, [features.shape[-2:] for features in teacher_maps])
        return {
            student: [feature_distance(t, s) for t, s in zip(teacher_maps, maps, strict=True)]
            for student, maps in student_maps.items()
        }

    def forward(self, images: torch.Tensor) -> dict[str, list[torch.Tensor]] | InferenceBatch:
        """Compute distances (training) or anomaly map and score (evaluation).

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            In training mode the distances, see :meth:`distances`. In evaluation mode a batch whose
            ``anomaly_map`` is ``(B, 1, H, W)`` and whose ``pred_score`` is the map's maximum, ``(B,)``.
        """
        distances = self.distances(images)
        return distances if self.training else self.predict(distances, images.shape[-2:])

    def student_maps(self, distances: dict[str, list[torch.Tensor]], image_size: torch.Size) -> dict[str, torch.Tensor]:
        """Turn distances into a smoothed map of each student alone, ``(B, 1, H, W)``."""
        maps = self.anomaly_map_generator.student_maps(distances, image_size)
        return {student: self.anomaly_map_generator.smooth(student_map) for student, student_map in maps.items()}

    def predict(self, distances: dict[str, list[torch.Tensor]], image_size: torch.Size) -> InferenceBatch:
        """Turn distances into the anomaly map and its maximum, the image score."""
        anomaly_map = self.anomaly_map_generator(distances, image_size)
        return InferenceBatch(pred_score=anomaly_map.amax(dim=(-3, -2, -1)), anomaly_map=anomaly_map)
