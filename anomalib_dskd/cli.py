# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The ``anomalib-dskd`` command."""

from jsonargparse import auto_cli

from anomalib_dskd.demo import demo


def main() -> None:
    """Run a subcommand."""
    auto_cli({"demo": demo}, as_positional=False)
