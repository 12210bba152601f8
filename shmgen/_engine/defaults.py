"""The numbers of workers, reads in flight, and slots that a loader chooses if the user does not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

from shmgen._memory.limits import available, processors
from shmgen._memory.status_page import MAX_READERS
from shmgen._plan.activity import Target
from shmgen._ranks import local_ranks

MAX_AT_FIRST = 8
"""The most workers that ``workers="auto"`` begins with."""

MAX_WORKERS = 32
"""The most workers that ``workers="auto"`` ever has."""

WAITING_WORKERS = 4
"""The most workers for each processor if they wait for a disk or a network, and have one read in flight each."""

WORKER_BYTES = 1 << 26
"""Bytes of memory that must be free for one more worker."""

MAX_READS = 256
"""The most reads in flight that ``reads="auto"`` ever has, in all workers together."""

CEILING, FOR_EACH_PROCESSOR = 32, 8
"""The most workers, whatever ``workers`` says: the first number, or the second for each processor if that is more."""

MIN_SLOTS, MAX_SLOTS, SLOTS_BYTES = 4, 16, 1 << 26
"""The default number of slots: as many as fit in ``SLOTS_BYTES``, but at least ``MIN_SLOTS`` and at most ``MAX_SLOTS``."""

MIN_IN_FLIGHT, IN_FLIGHT_BYTES = 4, 1 << 23
"""Batches that are read at once: as many as fit in ``IN_FLIGHT_BYTES``, but at least ``MIN_IN_FLIGHT``."""


def workers_at_first() -> int:
    """One for each processor that other processes leave idle; several ranks on this machine share the processors."""
    ranks = local_ranks()
    others = os.getloadavg()[0] / ranks
    return max(1, min(MAX_AT_FIRST, round(processors(ranks) - others)))


def at_most(workers: int) -> int:
    """``workers`` as given by the user, or the most that this machine can use, with a warning."""
    count = os.cpu_count() or 1
    most = max(CEILING, FOR_EACH_PROCESSOR * count)
    if workers <= most:
        return workers
    warnings.warn(
        f"workers={workers}: {most} are started, since this machine has {count} processors; where reading waits for a disk or a "
        "network, reads='auto' has more reads in flight in each",
        stacklevel=5,
    )
    return most


def limits(*, concurrent: bool) -> Callable[[int, float], Target]:
    """The most workers and reads in flight, as a function of the number of workers and of the fraction of time that they wait.

    Where workers are ``concurrent``, each may have several reads in flight, which are cheaper than workers.
    """
    ranks = local_ranks()

    def limits(workers: int, blocked: float) -> Target:
        for_each = 1 if concurrent else min(WAITING_WORKERS, 1 / max(1e-6, 1 - blocked))
        most = min(MAX_WORKERS, int(for_each * max(1.0, processors(ranks))), workers + available() // WORKER_BYTES)
        return Target(most, max(1, min(MAX_READERS, MAX_READS // workers)))

    return limits


def slots(slot_bytes: int) -> int:
    """The default number of slots of this size."""
    return min(MAX_SLOTS, max(MIN_SLOTS, SLOTS_BYTES // slot_bytes))


def in_flight(slot_bytes: int) -> int:
    """The number of batches of this size that are read at once."""
    return max(MIN_IN_FLIGHT, IN_FLIGHT_BYTES // slot_bytes)
