"""What a contestant is asked to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.cases import Case

Batches = Iterable[tuple[np.ndarray, np.ndarray]]

TUNING = 4.0
"""Seconds off the clock in which a loader on slow storage can find the best number of reads in flight."""
COLD_THREADS = 16
"""Reader threads on a cold disk, for which they mostly wait; of 2 to 32, 16 was best for SPDL."""


@dataclass(frozen=True)
class Job:
    """What a contestant is asked to do.

    Attributes:
        case: the data set to read.
        workers: number of processes or threads that read.
        share: index of the part of every batch that this process reads, from 0 to ``workers - 1``; for the limit.
        cold: whether the files are out of the page cache.
        reads: number of reads in flight, for contestants that have such an option; 0 for their default.
    """

    case: Case
    workers: int
    share: int = 0
    cold: bool = False
    reads: int = 0

    @property
    def threads(self) -> int:
        """Number of reader threads, for contestants with threads."""
        return self.reads or (COLD_THREADS if self.cold else self.workers)

    @property
    def processes(self) -> int:
        """Number of worker processes, for contestants with processes."""
        return self.reads or self.workers

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""
        return self.case.samples // self.case.batch_size
