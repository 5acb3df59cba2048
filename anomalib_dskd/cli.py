# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The ``anomalib-dskd`` command."""

import sys
from importlib import import_module
from pathlib import Path

from jsonargparse import auto_cli

from anomalib_dskd.shipped import find_config

COMMANDS = {
    "demo": "anomalib_dskd.demo",
    "benchmark": "anomalib_dskd.benchmark.command",
}


def main() -> None:
    """Run a subcommand; only what it needs is imported."""
    arguments = [_by_name(*pair) for pair in zip(sys.argv, sys.argv[1:], strict=False)]
    chosen = [name for name in COMMANDS if name in arguments[:1]] or list(COMMANDS)
    functions = {name: getattr(import_module(COMMANDS[name]), name) for name in chosen}
    auto_cli(functions, as_positional=False, args=arguments)


def _by_name(before: str, argument: str) -> str:
    """Turn the name of a benchmark that ships with the package into its file, unless there is a file of that name."""
    if before != "--config" or Path(argument).exists() or not argument.isidentifier():
        return argument
    return str(find_config(f"benchmark/{argument}.yaml") or argument)
