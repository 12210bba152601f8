"""What a contestant is asked to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.cases import Case

Batches = Iterable[tuple[np.ndarray, np.ndarray]]

COLD_THREADS = 16
"""That read, for whoever reads with threads, which wait for the disk most of the time; of 2 to 32, 16 was best for SPDL."""


@dataclass(frozen=True)
class Job:
    """What a contestant is asked to do.

    Attributes:
        case: to be read.
        workers: processes or threads that read, for whoever lets one choose.
        share: of every batch, from 0 to ``workers - 1``, for the limit.
        cold: the files are not in the page cache.
        reads: that are to be in flight, for whoever lets one choose; 0 where that is left to it, or to ``workers``.
    """

    case: Case
    workers: int
    share: int = 0
    cold: bool = False
    reads: int = 0

    @property
    def threads(self) -> int:
        """That read, for whoever reads with threads."""
        return self.reads or (COLD_THREADS if self.cold else self.workers)

    @property
    def processes(self) -> int:
        """That read, for whoever reads with processes."""
        return self.reads or self.workers

    @property
    def batches(self) -> int:
        """In an epoch."""
        return self.case.samples // self.case.batch_size
