# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The ``anomalib-dskd`` command."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from jsonargparse import auto_cli

from anomalib_dskd.shipped import find_config, list_configs

MODULES = {
    "demo": "anomalib_dskd.demo",
    "benchmark": "anomalib_dskd.benchmark.command",
    "export": "anomalib_dskd.export",
    "verify": "anomalib_dskd.export",
}
EXTRA = {"openvino", "nncf"}


def inspect() -> int:
    """Judge images with a bundle: inspect BUNDLE SOURCE, and the options that inspect --help lists."""
    module = _module("anomalib_dskd.inspector")
    _module("openvino")
    arguments = sys.argv[2:]
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--bundle", *arguments]
    return module.main(arguments, prog="anomalib-dskd inspect BUNDLE")


def main() -> int:
    """Run a subcommand and return its exit code."""
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    if asked == "inspect":
        return inspect()
    names = [asked] if asked in MODULES else list(MODULES)  # importing torch takes seconds, so only for those in need
    separate = [part for argument in sys.argv for part in _separated(argument)]
    arguments = [_by_name(*pair) for pair in zip(separate, map(_underscored, separate[1:]), strict=False)]
    functions = {name: getattr(_module(MODULES[name]), name) for name in names}
    config_help = "YAML file of the arguments below; an argument that follows it wins."
    if asked == "benchmark":
        config_help += f" Ready by name: {', '.join(list_configs('benchmark'))} (demo is the shortest)."
    auto_cli({**functions, "inspect": inspect}, args=arguments, config_help=config_help, as_positional=False)
    return 0


def _module(name: str) -> ModuleType:
    """Import a subcommand's module, or say which extra it lacks."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in EXTRA:
            raise
        sys.exit(f"anomalib-dskd: {error.name} is not installed. Run: pip install 'anomalib-dskd[openvino]'")


def _underscored(argument: str) -> str:
    """Let options be written with hyphens, as the inspector's are."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _separated(argument: str) -> list[str]:
    """Take ``--config=NAME`` apart."""
    name, equals, value = argument.partition("=")
    return [name, value] if equals and name == "--config" else [argument]


def _by_name(before: str, argument: str) -> str:
    """Turn the name of a benchmark that ships with the package into its file, unless there is a file of that name."""
    if before != "--config" or Path(argument).exists() or not argument.isidentifier():
        return argument
    config = find_config(f"benchmark/{argument}.yaml")
    if config is None:
        ready = ", ".join(list_configs("benchmark"))
        sys.exit(f"anomalib-dskd: error: there is no configuration {argument!r}. Give a file, or one of: {ready}.")
    return str(config)
