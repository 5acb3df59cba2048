# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The DSKD model, laid out as anomalib's own are.

``torch_model.py`` is the network, ``lightning_model.py`` what anomalib trains; ``loss.py``, ``anomaly_map.py`` and
``teacher_weights.py`` are one idea each; ``components`` holds the parts of the network.
"""

from .lightning_model import Dskd
from .torch_model import DskdModel

__all__ = ["Dskd", "DskdModel"]
