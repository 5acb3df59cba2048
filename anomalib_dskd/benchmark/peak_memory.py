# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Peak memory of the process."""

from threading import Event, Thread

import psutil
from typing_extensions import Self

INTERVAL_SECONDS = 0.02


class PeakMemory:
    """Watch the resident memory of this process, sampled fifty times a second, while the context is open.

    Attributes:
        mib: Highest value seen above that at the start, in MiB; what the process needed before is not counted.

    Example:
        >>> import numpy as np
        >>> with PeakMemory() as memory:
        ...     _ = np.ones(2**24).sum()
        >>> memory.mib > 100
        True
    """

    def __init__(self) -> None:
        self.mib = 0.0
        self._process = psutil.Process()
        self._stop = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Start."""
        self._start = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self._sample()

    def _sample(self) -> None:
        self.mib = max(self.mib, (self._process.memory_info().rss - self._start) / 2**20)
