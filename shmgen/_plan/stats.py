"""What a loader has done, in all or in a stretch of time, and what that says of who waits for whom.

Pure: whoever has the counters makes `Stats` of them, and `Stats.since` is the one place where two are subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

from shmgen._plan.verdict import Verdict, advise, judge


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

    The start stands apart: times are counted from the moment at which the first batch was handed out.

    Attributes:
        batches: batches delivered.
        samples: samples in them.
        bytes: bytes in them.
        elapsed: seconds from the first delivery to the last.
        batch_wait: seconds of them in which a batch that was asked for had not been read yet.
        slot_wait: seconds of them in which no batch could be read or handed out, because all slots were held.
        grown: slots that were added, because all were held.
        restarts: workers that were replaced.
        replaced: rows in which another sample replaces an unreadable one.
        workers: how many workers there are, at the end.
        reads: how many reads each of them has in flight, at the end.
        busy: seconds in which workers had something to read, summed over all reads in flight.
        cpu: seconds in which they had a processor or wanted one. In the rest of ``busy`` they waited.
        decisions: how the numbers of workers and of reads in flight have been changed, when, and why.
        startup: seconds from the first request for a batch to its delivery; 0 where that lies before the stretch of time.
        function: seconds of ``busy`` in which functions and sources of the user's own ran.
        function_wait: seconds of ``busy`` in which reads waited for their turn: a process calls one function at a time.
        late_wait: seconds of ``batch_wait`` for batches that could not be read ahead, since nobody could know that they would be
            asked for.
        capacity: seconds in which there were workers, summed over them.
        slots: how many slots there are, at the end.
        auto: which of the numbers of ``"workers"`` and ``"reads"`` are chosen by the loader itself.
        epoch: the same for the last epoch, from its first request on; None in the first, which is all there is.

    Examples:
        >>> loader = Loader(ids, labels, batch_size=4)
        >>> for X, y in loader:
        ...     pass
        >>> loader.stats.batches, loader.stats.samples
        (4, 16)
        >>> print(loader.stats.report())
        first batch after ... s
        ...

        The next epoch by itself:

        >>> for X, y in loader:
        ...     pass
        >>> loader.stats.epoch.batches
        4

        Any stretch of time:

        >>> before = loader.stats
        >>> X, y = loader.batch(0)
        >>> loader.stats.since(before).batches
        1
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
    startup: float = 0.0
    function: float = 0.0
    function_wait: float = 0.0
    late_wait: float = 0.0
    capacity: float = 0.0
    slots: int = 0
    auto: tuple[str, ...] = ()
    epoch: Stats | None = None

    def since(self, earlier: Stats) -> Stats:
        """What was done between ``earlier``, stats of the same loader, and now.

        All is counted from there on: ``elapsed`` is the time between the last delivery then and the last one now.

        Args:
            earlier: such as ``loader.stats`` before an epoch; ``Stats()`` stands for the start.
        """
        counts = {
            field.name: getattr(self, field.name) - getattr(earlier, field.name)
            for field in fields(self)
            if field.name not in ("workers", "reads", "slots", "auto", "decisions", "epoch")
        }
        epoch = self.epoch if self.epoch is not None and self.epoch.batches <= counts["batches"] else None
        return Stats(
            **counts,
            workers=self.workers,
            reads=self.reads,
            slots=self.slots,
            auto=self.auto,
            decisions=self.decisions[len(earlier.decisions) :],
            epoch=epoch,
        )

    @property
    def rate(self) -> float:
        """Batches a second. The first batch of all belongs to the start, and does not count."""
        return (self.batches - (self.startup > 0)) / self.elapsed if self.elapsed else 0.0

    @property
    def samples_per_second(self) -> float:
        """Samples a second, likewise."""
        return self.rate * self.samples / self.batches if self.batches else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes a second, likewise."""
        return self.rate * self.bytes / self.batches if self.batches else 0.0

    @property
    def data_wait(self) -> float:
        """The fraction of the time in which the trainer waited for data, from 0 to 1."""
        return _part(self.batch_wait + self.slot_wait, self.elapsed)

    @property
    def busy_workers(self) -> float:
        """How many reads were in flight, on average."""
        return self.busy / self.elapsed if self.elapsed else 0.0

    @property
    def load(self) -> float:
        """The fraction of the time in which workers had something to do, from 0 to 1."""
        return _part(self.busy, self.capacity)

    @property
    def io_wait(self) -> float:
        """The fraction of their work in which workers waited for what they read, or a function did, from 0 to 1."""
        busy = self.busy - self.function_wait
        return max(0.0, 1 - self.cpu / busy) if busy > 0 else 0.0

    @property
    def function_part(self) -> float:
        """The fraction of their work that functions of the user's take, or that they are waited for, from 0 to 1."""
        return _part(self.function + self.function_wait, self.busy)

    @property
    def verdict(self) -> Verdict:
        """Who waits for whom: in the last epoch if that is long enough to tell, else in all.

        ``"unknown"``
            Too little was delivered to tell.
        ``"trainer-bound"``
            Data are there in time. The trainer may compute in the background, as JAX does: it then waits for slots that its own
            computation holds.
        ``"consumer-held"``
            Batches that are kept leave no slot to read into.
        ``"no-workers"``
            With ``workers=0`` the trainer's own process reads, and the trainer waits meanwhile.
        ``"order-bound"``
            Workers have time, but the order in which batches are asked for can't be foreseen.
        ``"function-bound"``
            Functions, or sources, of the user's own take most of the workers' time.
        ``"io-bound"``
            Workers wait for a disk or a network.
        ``"worker-bound"``
            Workers are too few, or too slow.
        """
        return judge(self._judged)

    @property
    def advice(self) -> str:
        """What to do, where anything can be done."""
        return advise(self._judged)

    @property
    def _judged(self) -> Stats:
        """What the verdict is about."""
        return self.epoch if self.epoch is not None and judge(self.epoch) != "unknown" else self

    def report(self) -> str:
        """The same as a diagnosis, in a few lines: all, the last epoch beside it, and the verdict."""
        lines = [f"first batch after {self.startup:,.1f} s"] if self.startup else []
        if self.batches:
            lines += _table([("all", self), *([] if self.epoch is None else [("last epoch", self.epoch)])])
        workers, reads = (f"{getattr(self, name)}{' (auto)' if name in self.auto else ''}" for name in ("workers", "reads"))
        lines.append(f"workers: {workers}" + (f", reads in flight in each: {reads}" if self.workers else ""))
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
        return "\n".join([*lines, f"verdict: {self.verdict}: {self.advice}"])

    @property
    def _rows(self) -> list[tuple[str, str]]:
        """What a report tells of a stretch of time: a title, and a figure."""
        elapsed, busy = self.elapsed, self.busy
        return [
            ("batches", f"{self.batches:,}"),
            ("samples", f"{self.samples:,}"),
            ("seconds", f"{elapsed:,.1f}"),
            ("samples a second", f"{self.samples_per_second:,.0f}"),
            ("MB a second", f"{self.bytes_per_second / 1e6:,.0f}"),
            ("trainer waits", f"{self.data_wait:.0%}"),
            ("  for batches", f"{_part(self.batch_wait, elapsed):.0%}"),
            ("  for free slots", f"{_part(self.slot_wait, elapsed):.0%}"),
            ("workers busy" if self.workers else "busy reading", f"{self.load:.0%}"),
            ("  in your functions", f"{self.function_part:.0%}"),
            ("  waiting, not computing", f"{_part(max(0.0, busy - self.function_wait - self.cpu), busy):.0%}"),
        ]


def _part(some: float, whole: float) -> float:
    """``some`` as a fraction of ``whole``, from 0 to 1."""
    return min(1.0, max(0.0, some / whole)) if whole > 0 else 0.0


def _table(columns: list[tuple[str, Stats]]) -> list[str]:
    """A line for each figure, with a column for each of these stretches of time; without parts that are nothing in any."""
    lines = [("", *(title for title, _ in columns))] if len(columns) > 1 else []
    for cells in zip(*(stats._rows for _, stats in columns), strict=True):
        (title, _), figures = cells[0], [figure for _, figure in cells]
        if not title.startswith(" ") or set(figures) != {"0%"}:
            lines.append((title, *figures))
    width = max(len(line[0]) for line in lines)
    return ["".join([line[0].ljust(width), *(cell.rjust(14) for cell in line[1:])]) for line in lines]
