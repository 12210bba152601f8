"""How many workers, reads in flight, and slots there are where the user leaves it to the loader."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

from shmgen._memory.limits import available, processors
from shmgen._memory.status_page import MAX_READERS
from shmgen._plan.windows import Limits
from shmgen._ranks import local_ranks

MAX_AT_FIRST = 8
"""Workers that ``workers="auto"`` begins with, at most."""

MAX_WORKERS = 32
"""Workers that ``workers="auto"`` ends up with, at most."""

CEILING, FOR_EACH_PROCESSOR = 32, 8
"""Workers that are started whatever is asked for, at most: the first number, or so many for each processor where that is more."""

WORKER_BYTES = 1 << 26
"""Bytes of memory that must be free for one more worker."""

WAITING_WORKERS = 4
"""Workers for each processor, at most, if they wait for a disk or a network, and have one read in flight each."""

MAX_READS = 256
"""Reads in flight that ``reads="auto"`` ends up with, at most, in all workers together."""

MIN_SLOTS, MAX_SLOTS, SLOTS_BYTES = 4, 16, 1 << 26
"""The default number of slots: as many as fit in so many bytes, but no fewer and no more than these."""

MIN_IN_FLIGHT, IN_FLIGHT_BYTES = 4, 1 << 23
"""Batches that are read at once: as many as fit in so many bytes, but enough to keep the workers busy."""


def workers_at_first() -> int:
    """One for each processor that other processes leave idle; of several ranks on this machine, each takes its share of them."""
    ranks = local_ranks()
    others = os.getloadavg()[0] / ranks
    return max(1, min(MAX_AT_FIRST, round(processors(ranks) - others)))


def at_most(workers: int) -> int:
    """``workers`` as given by the user, or as many of them as make sense here, with a warning."""
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


def limits(*, concurrent: bool) -> Callable[[int, float], Limits]:
    """The most workers and reads in flight, as a function of the number of workers, and of the part of their time they wait.

    Args:
        concurrent: whether a worker may have several reads in flight, which are cheaper than workers.
    """
    ranks = local_ranks()

    def limits(workers: int, blocked: float) -> Limits:
        for_each = 1 if concurrent else min(WAITING_WORKERS, 1 / max(1e-6, 1 - blocked))
        most = min(MAX_WORKERS, int(for_each * max(1.0, processors(ranks))), workers + available() // WORKER_BYTES)
        return Limits(most, max(1, min(MAX_READERS, MAX_READS // workers)))

    return limits


def slots(slot_bytes: int) -> int:
    """How many slots of this size there are."""
    return min(MAX_SLOTS, max(MIN_SLOTS, SLOTS_BYTES // slot_bytes))


def in_flight(slot_bytes: int) -> int:
    """How many batches of this size are read at once."""
    return max(MIN_IN_FLIGHT, IN_FLIGHT_BYTES // slot_bytes)
