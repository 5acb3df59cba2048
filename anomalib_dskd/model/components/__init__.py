# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Parts of the DSKD network, one to a file."""

from .anomaly import ScaleAnomaly
from .backbone import build_backbone, pretrained_cfg
from .border import BorderLevel
from .decoder import StudentDecoder
from .distance import feature_distance
from .embedding import DeepFeatureEmbedding
from .level import ImageLevel
from .teacher import Teacher
from .whitening import ResidualWhitening
from .whole_image import WholeImage

__all__ = [
    "BorderLevel",
    "DeepFeatureEmbedding",
    "ImageLevel",
    "ResidualWhitening",
    "ScaleAnomaly",
    "StudentDecoder",
    "Teacher",
    "WholeImage",
    "build_backbone",
    "feature_distance",
    "pretrained_cfg",
]
