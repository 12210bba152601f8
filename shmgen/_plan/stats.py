"""What a loader has done, in all or in a stretch of time, and the verdict: what limits the rate, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

LITTLE = 0.05
"""A trainer that waits for less than this fraction of its time would gain nothing by faster data."""

WAITING = 0.5
"""Workers that wait for a disk or a network for more than this fraction of their work are limited by it."""

MOST = 0.5
"""What makes up more than this fraction of a time is taken to be its cause."""

MIN_BATCHES = 3
"""Fewer batches, after the first, say nothing, however long they take."""

MIN_SECONDS = 0.1
"""In a shorter time it is chance which side waits."""

Verdict = Literal[
    "unknown",
    "trainer-bound",
    "consumer-held",
    "no-workers",
    "order-bound",
    "slot-bound",
    "function-bound",
    "io-bound",
    "worker-bound",
]


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

    The start stands apart: times are counted from the moment the first batch was handed out.

    Attributes:
        batches: batches delivered.
        samples: samples in them.
        bytes: bytes in them.
        elapsed: seconds from the first delivery to the last.
        batch_wait: seconds of these in which a requested batch had not been read yet.
        slot_wait: seconds of these in which no batch could be read or handed out, because all slots were held.
        grown: slots that were added, because all were held.
        restarts: workers that were replaced.
        replaced: rows in which another sample replaces an unreadable one.
        workers: how many workers there are, at the end.
        reads: how many reads each of them has in flight, at the end.
        busy: seconds in which workers had something to read, summed over all reads in flight.
        cpu: seconds of ``busy`` in which they ran, or were ready to run. In the rest they waited.
        decisions: how the numbers of workers and of reads in flight have been changed, when, and why.
        startup: seconds from the first request for a batch to its delivery; 0 where that lies before the stretch of time.
        function: seconds of ``busy`` in which your own functions and sources ran.
        function_wait: seconds of ``busy`` in which reads waited for their turn: a process calls one function at a time.
        late_wait: seconds of ``batch_wait`` for batches that could not be read ahead, since the order of requests could not be
            foreseen.
        capacity: seconds in which there were workers, summed over them.
        slots: how many slots there are, at the end.
        auto: which of the numbers of ``"workers"`` and ``"reads"`` the loader chooses itself.
        epoch: the same for the last epoch, from its first request on; None in the first epoch, which is all there is.

    Examples:
        >>> loader = Loader(ids, labels, batch_size=4)
        >>> for X, y in loader:
        ...     pass
        >>> loader.stats.batches, loader.stats.samples
        (4, 16)
        >>> print(loader.stats.report())
        first batch after ... s
        ...
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
        """What was done after ``earlier``, stats of the same loader; ``elapsed`` is the time between its last delivery and ours.

        Args:
            earlier: such as ``loader.stats`` before an epoch; ``Stats()`` stands for the start.
        """
        counts = {
            field.name: getattr(self, field.name) - getattr(earlier, field.name)
            for field in fields(self)
            if field.name not in ("workers", "reads", "slots", "auto", "decisions", "epoch")
        }
        epoch = self.epoch if self.epoch is not None and self.epoch.batches <= counts["batches"] else None
        return replace(self, **counts, decisions=self.decisions[len(earlier.decisions) :], epoch=epoch)

    @property
    def rate(self) -> float:
        """Batches a second. The loader's first batch belongs to the start, and does not count."""
        return (self.batches - (self.startup > 0)) / self.elapsed if self.elapsed else 0.0

    @property
    def samples_per_second(self) -> float:
        """Samples a second."""
        return self.rate * self.samples / self.batches if self.batches else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes a second."""
        return self.rate * self.bytes / self.batches if self.batches else 0.0

    @property
    def data_wait(self) -> float:
        """The fraction of the time the trainer waited for data, from 0 to 1."""
        return _part(self.batch_wait + self.slot_wait, self.elapsed)

    @property
    def load(self) -> float:
        """The fraction of the time workers had something to do, from 0 to 1."""
        return _part(self.busy, self.capacity)

    @property
    def io_wait(self) -> float:
        """The fraction of their work workers, or functions, waited for a disk, a network or a lock, from 0 to 1."""
        busy = self.busy - self.function_wait
        return _part(busy - self.cpu, busy)

    @property
    def function_part(self) -> float:
        """The fraction of their work workers spent in your functions, or waiting for their turn to call them, from 0 to 1."""
        return _part(self.function + self.function_wait, self.busy)

    @property
    def verdict(self) -> Verdict:
        """What limits the rate: in the last epoch if that is long enough to tell, else in all.

        - ``"unknown"``: too little was delivered to tell.
        - ``"trainer-bound"``: data are there in time. A trainer that computes in the background, as JAX does, may wait for slots
          that its own computation holds.
        - ``"consumer-held"``: the consumer keeps batches, and leaves no slot to read into.
        - ``"no-workers"``: with ``workers=0`` the trainer's own process reads, and the trainer waits meanwhile.
        - ``"order-bound"``: batches are requested in an order that can't be foreseen.
        - ``"slot-bound"``: workers have time, but a few slow samples hold up whole batches.
        - ``"function-bound"``: your own functions or sources take most of the workers' time.
        - ``"io-bound"``: workers wait for a disk or a network.
        - ``"worker-bound"``: workers are too few, or too slow.
        """
        return judge(self._judged)

    @property
    def advice(self) -> str:
        """What to do about the verdict."""
        return advise(self._judged)

    @property
    def _judged(self) -> Stats:
        """The stretch of time that the verdict is about."""
        return self.epoch if self.epoch is not None and judge(self.epoch) != "unknown" else self

    def report(self) -> str:
        """A diagnosis in a few lines: all, the last epoch beside it, and the verdict."""
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
        """The lines of a report: titles and figures."""
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
            ("  waiting, not computing", f"{_part(busy - self.function_wait - self.cpu, busy):.0%}"),
        ]


def _part(some: float, whole: float) -> float:
    """``some`` as a fraction of ``whole``, from 0 to 1."""
    return min(1.0, max(0.0, some / whole)) if whole > 0 else 0.0


def _table(columns: list[tuple[str, Stats]]) -> list[str]:
    """A line for each figure, with a column for each stretch of time; indented lines that are 0 % everywhere are left out."""
    lines = [("", *(title for title, _ in columns))] if len(columns) > 1 else []
    for cells in zip(*(stats._rows for _, stats in columns), strict=True):
        (title, _), figures = cells[0], [figure for _, figure in cells]
        if not title.startswith(" ") or set(figures) != {"0%"}:
            lines.append((title, *figures))
    width = max(len(line[0]) for line in lines)
    return ["".join([line[0].ljust(width), *(cell.rjust(14) for cell in line[1:])]) for line in lines]


def judge(stats: Stats) -> Verdict:
    """The verdict on a stretch of time; see `Stats.verdict`."""
    verdict: Verdict
    # The first batches of a stretch were read before it, so that they were ready proves nothing.
    only_read_ahead = stats.workers > 0 and stats.batches <= stats.slots
    if stats.batches - (stats.startup > 0) < MIN_BATCHES or stats.elapsed < MIN_SECONDS:
        verdict = "unknown"
    elif stats.data_wait < LITTLE:
        verdict = "unknown" if only_read_ahead else "trainer-bound"
    elif stats.slot_wait > stats.batch_wait:
        # A consumer that keeps batches makes the ring grow. If it has not grown, the trainer gives them back in time.
        verdict = "consumer-held" if stats.grown else "trainer-bound"
    elif not stats.workers:
        verdict = "no-workers"
    elif stats.late_wait > MOST * stats.batch_wait:
        verdict = "order-bound"
    elif stats.load < 1 - MOST:
        verdict = "slot-bound"
    elif stats.function_part > MOST:
        verdict = "function-bound"
    else:
        verdict = "io-bound" if stats.io_wait > WAITING else "worker-bound"
    return verdict


def advise(stats: Stats) -> str:
    """What to do about the verdict. What the loader does by itself is not advised."""
    more = "" if "workers" in stats.auto else "give more workers while there are processors for them, or "
    least = max(stats.slots, MIN_BATCHES)
    if not stats.batches:
        return "no batch was delivered"
    advice: dict[Verdict, str] = {
        "unknown": f"too little was delivered to tell: ask again after more than {least} batches and {MIN_SECONDS} s",
        "trainer-bound": "data are there in time; nothing to gain",
        "consumer-held": "batches are held for long: give more slots, or let go of batches earlier",
        "no-workers": "the trainer's own process reads while the trainer waits: workers=1, or 'auto', would read ahead",
        "order-bound": "batches were requested in an order that can't be foreseen: iterate over whole epochs, in their order",
        "slot-bound": "workers had time, but a few slow samples hold up whole batches: give more slots",
        "function-bound": f"your functions compute: {more}have them do less for each sample, or do it once for all beforehand",
        "io-bound": "the disk, or network, is the limit: "
        + ("" if "reads" in stats.auto else "reads='auto' has as many reads in flight as pay; else ")
        + "smaller files, a faster disk, or data that fit in memory",
        "worker-bound": f"reading computes: {more}have less to read for each sample",
    }
    verdict = judge(stats)
    if verdict == "function-bound" and stats.io_wait > WAITING:
        remedy = "where they may run in threads, Function(f, concurrent=True) has many of them wait at once"
        if stats.reads > 1 and stats.function_wait < LITTLE * stats.busy:  # they are concurrent already
            remedy = "have them wait less for each sample"
        more = "" if "workers" in stats.auto else "; or give more workers"
        return f"your functions wait, for a disk, a network, a lock or a clock: {remedy}{more}"
    return advice[verdict]
