# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Processes of the benchmark: each ends with the one that started it, however that ends."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

POLL_SECONDS = 0.5


def run_module(
    module: str,
    arguments: Sequence[str | Path],
    log: Path,
    state: Path,
    environment: Mapping[str, str],
    watch: Callable[[dict[str, Any]], None],
) -> int:
    """Run a module of this package as a process; it must call :func:`end_with_parent` at its start.

    Args:
        module: Its full name.
        arguments: Its arguments.
        log: File that all it prints goes to.
        state: File in which it writes its progress.
        environment: Variables for it, beside those of this process.
        watch: Called twice a second with its progress; with nothing while there is none.

    Returns:
        Its exit status.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as printed:
        # its standard input closes when this process dies
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                watch(_read(state))
        finally:
            process.kill()
            process.wait()
    return process.returncode


def end_with_parent() -> None:
    """Have this process end at once when the one that started it has gone."""
    Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    os.read(sys.stdin.fileno(), 1)  # a buffered read would hold a lock that Python wants as it ends
    os._exit(1)


def _read(state: Path) -> dict[str, Any]:
    try:
        return json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
