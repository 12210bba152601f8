"""What a loader has done, in all or in a stretch of time, and what that says of who waits for whom.

Pure: whoever has the counters makes `Stats` of them, and `Stats.since` is the one place where two are subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

LITTLE = 0.05
"""A trainer that waits for less than this fraction of its time would gain nothing by faster data."""

WAITING = 0.5
"""Workers that wait for a disk or a network for more than this fraction of their work are limited by it."""


class Decision(NamedTuple):
    """A change of the number of workers, or of reads in flight.

    Attributes:
        at: seconds from the first request for a batch.
        workers: how many there are from now on.
        reads: how many reads each has in flight from now on.
        reason: why.
    """

    at: float
    workers: int
    reads: int
    reason: str


@dataclass(frozen=True)
class Stats:
    """What a loader has done so far; or, by `since`, in a stretch of time.

    Attributes:
        batches: batches delivered.
        samples: samples in them.
        bytes: bytes in them.
        elapsed: seconds from the first request for a batch to the last delivery.
        batch_wait: seconds of them in which a batch that was asked for had not been read yet.
        slot_wait: seconds of them in which no batch could be read or handed out, because all slots were held.
        grown: slots that were added, because all were held.
        restarts: workers that were replaced.
        replaced: rows in which another sample replaces an unreadable one.
        workers: how many workers there are, at the end.
        reads: how many reads each of them has in flight, at the end.
        busy: seconds in which workers had something to read, summed over all workers.
        cpu: seconds in which they had a processor or wanted one. In the rest of ``busy`` they waited for what they read.
        decisions: how the numbers of workers and of reads in flight have been changed, when, and why.

    Examples:
        >>> loader = Loader(ids, labels, batch_size=4)
        >>> for X, y in loader:
        ...     pass
        >>> loader.stats.batches, loader.stats.samples
        (4, 16)
        >>> print(loader.stats.report())
        4 batches, 16 samples in ...

        The next epoch by itself:

        >>> before = loader.stats
        >>> for X, y in loader:
        ...     pass
        >>> loader.stats.since(before).batches
        4
    """

    batches: int = 0
    samples: int = 0
    bytes: int = 0
    elapsed: float = 0.0
    batch_wait: float = 0.0
    slot_wait: float = 0.0
    grown: int = 0
    restarts: int = 0
    replaced: int = 0
    workers: int = 0
    reads: int = 0
    busy: float = 0.0
    cpu: float = 0.0
    decisions: tuple[Decision, ...] = ()

    def since(self, earlier: Stats) -> Stats:
        """What was done between ``earlier``, stats of the same loader, and now.

        All is counted from there on: ``elapsed`` is the time between the last delivery then and the last one now.

        Args:
            earlier: such as ``loader.stats`` before an epoch; ``Stats()`` stands for the start.
        """
        counts = {
            field.name: getattr(self, field.name) - getattr(earlier, field.name)
            for field in fields(self)
            if field.name not in ("workers", "reads", "decisions")
        }
        return Stats(**counts, workers=self.workers, reads=self.reads, decisions=self.decisions[len(earlier.decisions) :])

    @property
    def rate(self) -> float:
        """Batches delivered a second."""
        return self.batches / self.elapsed if self.elapsed else 0.0

    @property
    def data_wait(self) -> float:
        """The fraction of the time in which the trainer waited for data, from 0 to 1."""
        return (self.batch_wait + self.slot_wait) / self.elapsed if self.elapsed else 0.0

    @property
    def busy_workers(self) -> float:
        """How many workers had something to do, on average."""
        return self.busy / self.elapsed if self.elapsed else 0.0

    @property
    def load(self) -> float:
        """The fraction of the time in which workers had something to do, from 0 to 1."""
        return min(1.0, self.busy_workers / self.workers) if self.workers else 0.0

    @property
    def io_wait(self) -> float:
        """The fraction of their work in which workers waited for what they read, from 0 to 1."""
        return max(0.0, 1 - self.cpu / self.busy) if self.busy else 0.0

    @property
    def verdict(self) -> str:
        """Who waits for whom.

        One of ``"trainer-bound"`` (data are there in time), ``"slots-bound"`` (batches that are held leave no slot to read into),
        ``"disk-bound"`` (workers wait for what they read), ``"worker-bound"`` (workers are too few, or too slow).
        """
        if self.data_wait < LITTLE:
            return "trainer-bound"
        if self.slot_wait > self.batch_wait:
            return "slots-bound"
        if self.io_wait > WAITING:
            return "disk-bound"
        return "worker-bound"

    def report(self) -> str:
        """The same as a diagnosis, in a few lines."""
        rate = self.bytes / self.elapsed / 1e6 if self.elapsed else 0.0
        advice = {
            "trainer-bound": "data are there in time; nothing to gain",
            "slots-bound": "batches are held for long: give more slots, or let go of batches earlier",
            "disk-bound": "the disk, or network, is the limit: more workers help while they wait in turn; else smaller files, "
            "a faster disk, or data that fit in memory",
            "worker-bound": "give more workers while there are processors for them, or do less for each sample",
        }
        lines = [
            f"{self.batches:,} batches, {self.samples:,} samples in {self.elapsed:.1f} s: {rate:,.0f} MB/s",
            f"trainer: waited {self.data_wait:.0%} of the time "
            f"({self.batch_wait:.1f} s for batches, {self.slot_wait:.1f} s for slots)",
            f"workers: {self.workers}, busy {self.load:.0%} of the time, {self.io_wait:.0%} of it waiting for a disk or network",
        ]
        lines += [
            f"{count:,} {what}"
            for count, what in (
                (self.restarts, "workers replaced"),
                (self.replaced, "unreadable samples replaced by others"),
                (self.grown, "slots added, since all were held"),
            )
            if count
        ]
        lines += [
            f"after {at:.1f} s {workers} workers, {reads} reads each: {reason}" for at, workers, reads, reason in self.decisions
        ]
        return "\n".join([*lines, f"verdict: {self.verdict}: {advice[self.verdict]}"])
