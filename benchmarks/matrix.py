"""Which contests are held: the cases as data. Not all combinations, but each question once, where it is asked most."""

from __future__ import annotations

from dataclasses import dataclass

ALL = ("naive", "keras-threads", "keras-processes", "torch", "tf.data", "grain", "spdl", "shmgen")
"""In the order of the table."""
LIMITS = ("limit", "limit-held")
"""Bare reads into one batch, which stays in the processor's cache; and into as many as a loader that reads ahead must have."""
LIGHT = ("naive", "spdl", "shmgen", *LIMITS)
"""Those that start without TensorFlow or torch: what a quick run has time for."""


@dataclass(frozen=True)
class Figure:
    """A row of the table.

    Attributes:
        title: in the table.
        unit: of the values.
        more: is better.
        digits: behind the point.
    """

    title: str
    unit: str
    more: bool = False
    digits: int = 0


FIGURES = {
    "rate": Figure("batches only", "samples/s", more=True),
    "cold": Figure("cold page cache", "samples/s", more=True),
    "fit": Figure("model.fit", "samples/s", more=True),
    "wait": Figure("a trainer waits", "% of its time", digits=1),
    "first": Figure("first batch", "ms"),
    "memory": Figure("peak memory", "MB"),
    "cpu": Figure("processor time", "s/GB", digits=3),
}


@dataclass(frozen=True)
class Contest:
    """Contestants that are compared on one data set.

    Attributes:
        name: of the benchmarks.
        what: they do: "load" batches, for "start" the first ones in a fresh process each time, or "fit".
        case: that they read.
        contestants: that take turns.
        quick: those that do in a quick run; none leaves the contest out.
        figures: that go into the table, of `FIGURES`.
        workers: that read.
        repeats: of the files in an epoch.
        cold: the page cache is dropped before each turn.
        step: a trainer's, in times of the limit's for a batch; 0 for no trainer.
        few: rounds only, because a turn is long.
    """

    name: str
    what: str
    case: str
    contestants: tuple[str, ...]
    quick: tuple[str, ...] = ()
    figures: tuple[str, ...] = ("rate",)
    workers: int = 2
    repeats: int = 1
    cold: bool = False
    step: float = 0.0
    few: bool = False


CONTESTS = (
    Contest("28", "load", "digit-28", (*ALL, *LIMITS), LIGHT),
    Contest("32", "load", "volume-32", (*ALL, *LIMITS), (*ALL, *LIMITS), figures=("rate", "memory", "cpu")),
    Contest("224", "load", "image-224", (*ALL, *LIMITS), LIGHT),
    Contest("128", "load", "volume-128", (*ALL, *LIMITS), LIGHT),
    Contest("1-worker", "load", "volume-32", ("keras-threads", *LIGHT), workers=1),
    Contest("4-workers", "load", "volume-32", ("keras-threads", *LIGHT), workers=4),
    Contest("trainer", "load", "volume-32", ALL, LIGHT[:3], figures=("wait",), step=1.3, few=True),
    Contest("start", "start", "volume-32", ALL, ("naive", "torch", "spdl", "shmgen"), figures=("first",), few=True),
    Contest(
        "cold",
        "start",
        "volume-32",
        ("naive", "keras-threads", "torch", "tf.data", "grain", "spdl", "shmgen", "limit-1", "limit"),
        ("naive", "spdl", "shmgen", "limit-1", "limit"),
        figures=("cold",),
        cold=True,
        few=True,
    ),
    # An epoch is long, because Keras itself takes a tenth of a second to begin one.
    Contest("fit", "fit", "volume-32", (*ALL, "memory"), ("naive", "shmgen", "memory"), figures=("fit",), repeats=3, few=True),
)
