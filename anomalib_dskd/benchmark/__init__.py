# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Benchmark of anomaly detection models on the same data, teacher and metrics.

Nothing is imported here, so that importing the package costs nothing.
"""
