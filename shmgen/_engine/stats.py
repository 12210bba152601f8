"""What a loader has done, and what that says of who waits for whom."""

from __future__ import annotations

from dataclasses import dataclass

from shmgen._plan.autoscaler import Decision

LITTLE = 0.05
"""A trainer that waits for less than this fraction of its time would gain nothing by faster data."""

WAITING = 0.5
"""Workers that wait for a disk or a network for more than this fraction of their work are limited by it."""


@dataclass(frozen=True)
class Stats:
    """What a loader has done so far.

    Attributes:
        batches: batches delivered.
        samples: samples in them.
        bytes: bytes in them.
        elapsed: seconds from the first request for a batch to the last delivery.
        waited: seconds of them in which a batch that was asked for had not been read yet.
        held_up: seconds of them in which none could be read or handed out, because all slots were held.
        copied: batches handed out as copies, because all slots were held.
        restarts: workers that were replaced.
        replaced: rows in which another sample stood in for a damaged one.
        workers: how many there are.
        busy: seconds in which workers had something to read, summed over those that there are now.
        cpu: seconds in which they had a processor or wanted one: in the rest of ``busy`` they waited for what they read.
        decisions: how ``workers="auto"`` has changed their number, when, and why.

    Examples:
        >>> loader = Loader(ids, labels, batch_size=4)
        >>> for X, y in loader:
        ...     pass
        >>> loader.stats.batches, loader.stats.samples
        (4, 16)
        >>> print(loader.stats.report())
        4 batches, 16 samples in ...
    """

    batches: int
    samples: int
    bytes: int
    elapsed: float
    batch_wait: float
    slot_wait: float
    copied: int
    restarts: int
    replaced: int
    workers: int
    busy: float
    cpu: float
    decisions: tuple[Decision, ...] = ()

    @property
    def data_wait(self) -> float:
        """The fraction of the time in which the trainer waited for data, from 0 to 1."""
        return (self.batch_wait + self.slot_wait) / self.elapsed if self.elapsed else 0.0

    @property
    def load(self) -> float:
        """The fraction of the time in which workers had something to do, from 0 to 1."""
        return min(1.0, self.busy / (self.elapsed * self.workers)) if self.elapsed and self.workers else 0.0

    @property
    def io_wait(self) -> float:
        """The fraction of their work in which workers waited for what they read, from 0 to 1."""
        return max(0.0, 1 - self.cpu / self.busy) if self.busy else 0.0

    @property
    def verdict(self) -> str:
        """Who waits for whom.

        One of ``"trainer-bound"`` (data are there in time), ``"slots-bound"`` (batches that are held leave no room to read),
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
                (self.replaced, "rows in which another sample stood in"),
                (self.copied, "batches copied"),
            )
            if count
        ]
        lines += [f"after {at:.1f} s {workers} workers: {reason}" for at, workers, reason in self.decisions]
        return "\n".join([*lines, f"verdict: {self.verdict}: {advice[self.verdict]}"])
