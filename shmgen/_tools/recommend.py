"""What measurements with several numbers of workers say of the number to use.

Pure, so that each answer is a plain unit test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shmgen._plan.stats import LITTLE, WAITING

MARGIN = 1.2
"""A rate is enough if it is so many times what the trainer needs: in training, others use the processors too."""

AS_GOOD = 0.9
"""A rate of at least this fraction of the best one is as good as the best: a worker that pays gains more, and chance less."""

BUSY = 0.8
"""If workers have something to read for less than this fraction of the time, they wait for the main process to take batches."""


@dataclass(frozen=True)
class Measurement:
    """A measurement with one number of workers.

    Attributes:
        workers: number of workers.
        slots: batches that shared memory had room for.
        cold: whether the files had been dropped from the page cache.
        first_batch: seconds until the first batch was ready, including the start of the workers.
        rate: batches a second, each taken as soon as it was ready. This and all that follows are of the
            round with the median rate.
        samples: samples a second.
        bytes: bytes a second.
        cpu: processor seconds for 1e9 bytes, including those of the main process.
        processors: number of processors in use, on average.
        memory: bytes of the workers, in which what they share counts once, and of the slots.
        load: the fraction of the time in which workers had something to read, from 0 to 1.
        io_wait: the fraction of that time in which they waited for a disk or network, from 0 to 1.
        rounds: how often it was measured.
        spread: by how much the rates of the rounds differ: the largest less the smallest, as a fraction of the median.

    Examples:
        >>> tuning = tune(ids, labels, batch_size=4, workers=[0, 1], seconds=0.01)
        >>> [(measured.workers, measured.rate > 0) for measured in tuning.measurements]
        [(0, True), (1, True)]
    """

    workers: int
    slots: int
    cold: bool
    first_batch: float
    rate: float
    samples: float
    bytes: float
    cpu: float
    processors: float
    memory: int
    load: float
    io_wait: float
    rounds: int = 1
    spread: float = 0.0


def median(rounds: Sequence[Measurement]) -> Measurement:
    """The round in the middle of several with the same number of workers, by rate."""
    ranked = sorted(rounds, key=lambda one: one.rate)
    middle = ranked[(len(ranked) - 1) // 2]
    return replace(middle, rounds=len(ranked), spread=(ranked[-1].rate - ranked[0].rate) / middle.rate)


def medians(rounds: Sequence[Sequence[Measurement]]) -> list[Measurement]:
    """The median for each number of workers; each round has them in the same order."""
    return [median(measured) for measured in zip(*rounds, strict=True)]


def is_settled(rounds: Sequence[Sequence[Measurement]], step_ms: float | None, processors: float) -> bool:
    """Whether the same number is recommended, whichever of the rounds is left out."""
    without_one = [[*rounds[:left_out], *rounds[left_out + 1 :]] for left_out in range(len(rounds))]
    return len({recommend(medians(some), step_ms, processors)[0] for some in without_one}) == 1


def recommend(measurements: Sequence[Measurement], step_ms: float | None, processors: float) -> tuple[int, str]:
    """The number of workers to use, and why.

    It is the smallest number that is enough for the trainer. If none is enough, or no step is given, it is the smallest that is
    as good as the best. With 0 workers the trainer waits while a batch is read: that is enough only if it hardly slows it down.

    Args:
        measurements: of different numbers of workers, at least one.
        step_ms: milliseconds that the trainer takes for a batch.
        processors: number of available processors.
    """
    ranked = sorted(measurements, key=lambda one: one.workers)
    if step_ms is not None:
        for one in ranked:
            spare = one.rate * step_ms / 1000
            if spare >= (MARGIN if one.workers else 1 / LITTLE):
                return one.workers, f"{_feeds(one, step_ms, spare)}; {_beyond(one, ranked, processors)}"
    with_workers = [one for one in ranked if one.workers] or ranked
    best = max(one.rate for one in with_workers)
    chosen = next(one for one in with_workers if one.rate >= AS_GOOD * best)
    if step_ms is None:
        words = f"{counted(chosen.workers)} {_verb(chosen, 'read')} {chosen.rate:,.1f} batches a second"
    else:
        words = _feeds(chosen, step_ms, chosen.rate * step_ms / 1000)
    return chosen.workers, f"{words}; {_beyond(chosen, ranked, processors)}"


def _feeds(one: Measurement, step_ms: float, spare: float) -> str:
    if not one.workers:
        return f"without workers, reading adds {1 / spare:.0%} to a {step_ms:g} ms step"
    if spare < 1:
        return f"a {step_ms:g} ms step can't be fed: with {counted(one.workers)} a batch takes {1000 / one.rate:,.1f} ms"
    enough = "" if spare >= MARGIN else " only"
    return f"{counted(one.workers)} {_verb(one, 'feed')} a {step_ms:g} ms step with {spare:,.1f} x to spare{enough}"


def _beyond(chosen: Measurement, ranked: Sequence[Measurement], processors: float) -> str:
    """What more workers than ``chosen`` would gain, or why they would gain nothing."""
    more = [one for one in ranked if one.workers > chosen.workers]
    if not more:
        return "more were not measured"
    best = max(more, key=lambda one: one.rate)
    if best.rate * AS_GOOD > chosen.rate:
        return f"{best.workers} would read {best.rate / chosen.rate:.1f} x as fast"
    if chosen.io_wait > WAITING:
        return "more gain nothing: the disk, or network, is the limit"
    if chosen.load < BUSY:
        return "more gain nothing: the main process takes no more"
    return f"more gain nothing: {'the processor is' if processors == 1 else f'the {processors:g} processors are'} the limit"


def counted(workers: int) -> str:
    return f"{workers} {'worker' if workers == 1 else 'workers'}"


def _verb(one: Measurement, verb: str) -> str:
    return f"{verb}s" if one.workers == 1 else verb
