"""Who waits for whom, and what to do about it, as the counts of a stretch of time tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from shmgen._plan.stats import Stats

LITTLE = 0.05
"""A trainer that waits for less than this fraction of its time would gain nothing by faster data."""

WAITING = 0.5
"""Workers that wait for a disk or a network for more than this fraction of their work are limited by it."""

MOST = 0.5
"""What makes up more than this fraction of a time is taken to be its cause."""

MIN_BATCHES = 3
"""Fewer batches, behind the first, say nothing."""

MIN_SECONDS = 0.1
"""In a shorter time it is chance who waits."""

Verdict = Literal[
    "unknown", "trainer-bound", "consumer-held", "no-workers", "order-bound", "function-bound", "io-bound", "worker-bound"
]


def judge(stats: Stats) -> Verdict:
    """The verdict on a stretch of time; `Stats.verdict` says what each means."""
    verdict: Verdict
    # A stretch begins with batches that were read before it: that these were there proves nothing.
    only_read_ahead = stats.workers > 0 and stats.batches <= stats.slots
    if stats.batches - (stats.startup > 0) < MIN_BATCHES or stats.elapsed < MIN_SECONDS:
        verdict = "unknown"
    elif stats.data_wait < LITTLE:
        verdict = "unknown" if only_read_ahead else "trainer-bound"
    elif stats.slot_wait > stats.batch_wait:
        # A consumer that keeps batches makes the ring grow. One that gives them back in time, as JAX does, computes meanwhile.
        verdict = "consumer-held" if stats.grown else "trainer-bound"
    elif not stats.workers:
        verdict = "no-workers"
    elif stats.late_wait > MOST * stats.batch_wait or stats.load < 1 - MOST:
        verdict = "order-bound"
    elif stats.function_part > MOST:
        verdict = "function-bound"
    else:
        verdict = "io-bound" if stats.io_wait > WAITING else "worker-bound"
    return verdict


def advise(stats: Stats) -> str:
    """What to do, for such a verdict. What the loader does by itself is not advised."""
    more = "" if "workers" in stats.auto else "give more workers while there are processors for them, or "
    least = max(stats.slots, MIN_BATCHES)
    if not stats.batches:
        return "no batch was delivered"
    advice: dict[Verdict, str] = {
        "unknown": f"too little was delivered to tell: ask again after more than {least} batches and {MIN_SECONDS} s",
        "trainer-bound": "data are there in time; nothing to gain",
        "consumer-held": "batches are held for long: give more slots, or let go of batches earlier",
        "no-workers": "the trainer's own process reads while the trainer waits: workers=1, or 'auto', would read ahead",
        "order-bound": "workers had time, but batches were asked for in an order that can't be foreseen: iterate over "
        "whole epochs, in the order of the loader",
        "function-bound": f"your functions compute: {more}have them do less for each sample, or do it once for all beforehand",
        "io-bound": "the disk, or network, is the limit: "
        + ("" if "reads" in stats.auto else "reads='auto' has as many reads in flight as pay; else ")
        + "smaller files, a faster disk, or data that fit in memory",
        "worker-bound": f"reading computes: {more}have less to read for each sample",
    }
    verdict = judge(stats)
    if verdict == "function-bound" and stats.io_wait > WAITING:
        return (
            "your functions wait, for a disk, a network, a lock or a clock: where they may run in threads, "
            "Function(f, concurrent=True) has many of them wait at once"
        ) + ("" if "workers" in stats.auto else "; or give more workers")
    return advice[verdict]
