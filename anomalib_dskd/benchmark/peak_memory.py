# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Peak memory of the process."""

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import psutil
import torch
from typing_extensions import Self

INTERVAL_SECONDS = 0.02


class PeakMemory:
    """Watch the resident memory of this process while the context is open.

    It is sampled fifty times a second. Linux is asked for the peak itself, however short it was, and memory that was
    freed before but kept by the allocator is given back at the start, so that taking it again counts.

    Attributes:
        mib: Highest value seen above that at the start, in MiB; what the process needed before is not counted.
        gpu_mib: Highest memory of tensors on the current CUDA GPU, in MiB; 0 where there is none.

    Example:
        >>> import numpy as np
        >>> with PeakMemory() as memory:
        ...     ones = np.ones(2**24)
        >>> memory.mib > 100
        True
    """

    def __init__(self) -> None:
        self.mib = 0.0
        self.gpu_mib = 0.0
        self._process = psutil.Process()
        self._stop = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Start."""
        _give_back()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        _forget_highest()
        self._start = self._process.memory_info().rss
        self._highest_before = _highest()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()
        self._note(self._process.memory_info().rss)
        highest = _highest()
        if highest > self._highest_before:
            self._note(highest)
        if torch.cuda.is_available():
            self.gpu_mib = torch.cuda.max_memory_allocated() / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self._note(self._process.memory_info().rss)

    def _note(self, rss: int) -> None:
        self.mib = max(self.mib, (rss - self._start) / 2**20)


def _give_back() -> None:
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's, not musl's
        libc.malloc_trim(0)


def _forget_highest() -> None:
    """Let Linux forget the highest resident memory; what it cannot forget only a higher peak replaces."""
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may refuse
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _highest() -> int:
    """Return the highest resident memory since it was forgotten, in bytes; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0
    import resource  # noqa: PLC0415  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
