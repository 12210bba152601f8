"""Recommends a number of workers from measurements with several. Pure, so that each answer is a plain unit test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shmgen._plan.stats import LITTLE, WAITING

MARGIN = 1.2
"""A rate is enough if it is this many times what the trainer needs: in training, the trainer uses the processors too."""

AS_GOOD = 0.9
"""A rate of at least this fraction of the best is as good as the best: noise differs by less, and a useful worker adds more."""

BUSY = 0.8
"""Workers that read for less than this fraction of the time wait for the main process to take batches."""


@dataclass(frozen=True)
class Measurement:
    """A measurement with one number of workers.

    Attributes:
        workers: number of workers.
        slots: batches that shared memory had room for.
        cold: whether the files had been dropped from the page cache before.
        first_batch: seconds until the first batch was ready, including the start of the workers.
        rate: batches a second, each taken as soon as it was ready. This and what follows are those of the round with the median
            rate.
        samples: samples a second.
        bytes: bytes a second.
        cpu: processor seconds for 1e9 bytes, including those of the main process.
        processors: average number of processors in use.
        memory: bytes of the slots and of the workers; memory that workers share counts once.
        load: the fraction of the time in which workers had something to read, from 0 to 1.
        io_wait: the fraction of that time in which they waited for a disk or network, from 0 to 1.
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


def medians(rounds: Sequence[Sequence[Measurement]]) -> list[Measurement]:
    """For each number of workers the measurement with the median rate; each round has them in the same order."""
    return [sorted(measured, key=lambda one: one.rate)[(len(measured) - 1) // 2] for measured in zip(*rounds, strict=True)]


def is_settled(rounds: Sequence[Sequence[Measurement]], step_ms: float | None, processors: float) -> bool:
    """Whether the same number is recommended, whichever of the rounds is left out."""
    without_one = [[*rounds[:left_out], *rounds[left_out + 1 :]] for left_out in range(len(rounds))]
    return len({recommend(medians(some), step_ms, processors)[0] for some in without_one}) == 1


def recommend(measurements: Sequence[Measurement], step_ms: float | None, processors: float) -> tuple[int, str]:
    """The number of workers to use, and why.

    It is the smallest number that is enough for the trainer. If none is enough, or no step is given, it is the smallest that is
    as good as the best. With 0 workers the trainer waits for each batch: these are enough only if that hardly slows it down.
    """
    ranked = sorted(measurements, key=lambda one: one.workers)
    with_workers = [one for one in ranked if one.workers] or ranked
    fastest = max(one.rate for one in with_workers)
    enough = (one for one in ranked if step_ms is not None and _spare(one, step_ms) >= (MARGIN if one.workers else 1 / LITTLE))
    as_good = (one for one in with_workers if one.rate >= AS_GOOD * fastest)
    chosen = next(enough, None) or next(as_good)
    return chosen.workers, f"{_does(chosen, step_ms)}; {_beyond(chosen, ranked, processors)}"


def _spare(one: Measurement, step_ms: float) -> float:
    """How many times the rate that the trainer needs."""
    return one.rate * step_ms / 1000


def _does(one: Measurement, step_ms: float | None) -> str:
    s = "s" if one.workers == 1 else ""
    if step_ms is None:
        return f"{counted(one.workers)} read{s} {one.rate:,.1f} batches a second"
    spare = _spare(one, step_ms)
    if not one.workers:
        return f"without workers, reading adds {1 / spare:.0%} to a {step_ms:g} ms step"
    if spare < 1:
        return f"a {step_ms:g} ms step can't be fed: with {counted(one.workers)} a batch takes {1000 / one.rate:,.1f} ms"
    only = "" if spare >= MARGIN else " only"
    return f"{counted(one.workers)} feed{s} a {step_ms:g} ms step with {spare:,.1f} x to spare{only}"


def _beyond(chosen: Measurement, ranked: Sequence[Measurement], processors: float) -> str:
    """The gain of more workers than ``chosen``, or why there is none."""
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


def counted(number: int, what: str = "worker") -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
