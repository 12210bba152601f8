"""Which contests are held: the cases as data. Not all combinations, but each question once, where it is asked most."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FAST = ("keras-threads", "torch", "tf.data", "grain", "spdl")
"""The peers, each with the fastest way to read a file."""
ALL = ("naive", "keras-processes", *FAST, "shmgen", "shmgen-auto")
"""In the order of the tables."""
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
        has_ratio: is never 0.
    """

    title: str
    unit: str
    more: bool = False
    digits: int = 0
    has_ratio: bool = True


FIGURES = {
    "rate": Figure("batches only", "samples/s", more=True),
    "cold": Figure("from a cold disk", "samples/s", more=True),
    "fit": Figure("model.fit", "samples/s", more=True),
    "wait": Figure("a trainer waits", "% of its time", digits=1, has_ratio=False),
    "first": Figure("first batch", "ms"),
    "memory": Figure("peak memory", "MB"),
    "cpu": Figure("processor time", "s/GB", digits=3),
    "own": Figure("the trainer's thread", "us/batch"),
}


@dataclass(frozen=True, eq=False)
class Contest:
    """Contestants that are compared on one data set.

    Attributes:
        name: of the benchmarks.
        table: that it is part of.
        column: there.
        what: they do: "load" batches, for "start" the first ones in a fresh process each time, or "fit".
        case: that they read.
        contestants: that take turns.
        quick: those that do in a quick run; none leaves the contest out.
        figures: of `FIGURES`: the first goes into the table, the others into one of their own.
        workers: that read.
        files: of the case's, 0 for all.
        repeats: of the files in an epoch.
        storage: where the files are: in the page cache, on a disk that is not, or behind latency (see `storage`).
        backend: of Keras, where it is used.
        beside: so many processes that compute meanwhile.
        step: a trainer's, in times of the limit's for a batch; 0 for no trainer.
        settings: reads in flight to be tried, by contestant; each goes on with its best. 0 leaves it to itself.
        length: of a turn, in times of the plan's.
        long: a turn takes so long that there are few rounds.
    """

    name: str
    table: str
    column: str
    what: str
    case: str
    contestants: tuple[str, ...]
    quick: tuple[str, ...] = ()
    figures: tuple[str, ...] = ("rate",)
    workers: int = 2
    files: int = 0
    repeats: int = 1
    storage: Literal["cache", "cold", "mount", "server"] = "cache"
    backend: Literal["tensorflow", "jax", "torch"] = "tensorflow"
    beside: int = 0
    step: float = 0.0
    settings: dict[str, tuple[int, ...]] = field(default_factory=dict)
    length: float = 1.0
    long: bool = False

    @property
    def is_slow(self) -> bool:
        """Whether an epoch takes so long that turns end before it does."""
        return self.storage in ("mount", "server")


CACHED, BUSY, SLOW, OTHER = (
    "Batches from the page cache, 2 workers, samples/s",
    "The same beside 4 busy processes, samples/s",
    "From storage that takes its time, 32³ float32, samples/s",
    "Training, and starting, 32³ float32",
)
BACKENDS: dict[Literal["jax", "torch"], str] = {"jax": "JAX", "torch": "torch"}
"""Of Keras, beside TensorFlow."""

COSTS = "What it takes, 32³ float32, 2 workers"
"""Title of the table of a contest's further figures."""

SETTINGS = {
    "keras-threads": (64, 128),
    "torch": (16, 32, 64),
    "tf.data": (0, 64, 128),
    "grain": (64, 128),
    "spdl": (64, 128),
}
"""For storage with latency."""

CONTESTS = (
    Contest("28", CACHED, "28² uint8", "load", "digit-28", ("naive", *FAST, "shmgen", *LIMITS), LIGHT),
    Contest(
        "32",
        CACHED,
        "32³ float32",
        "load",
        "volume-32",
        ("naive", "keras-processes", *FAST, "shmgen", "shmgen-tensors", *LIMITS),
        ("naive", *FAST, "shmgen", "shmgen-tensors", *LIMITS),
        figures=("rate", "memory", "cpu", "own"),
        length=2,
    ),
    Contest("224", CACHED, "224²x3 uint8", "load", "image-224", ("naive", *FAST, "shmgen", *LIMITS), LIGHT),
    Contest("128", CACHED, "128³ float32", "load", "volume-128", ("naive", *FAST, "shmgen", *LIMITS), LIGHT),
    Contest("busy-28", BUSY, "28² uint8", "load", "digit-28", ("spdl", "shmgen", "limit-held"), beside=4),
    Contest(
        "busy-32",
        BUSY,
        "32³ float32",
        "load",
        "volume-32",
        ("naive", *FAST, "shmgen", "limit-held"),
        ("spdl", "shmgen", "limit-held"),
        beside=4,
    ),
    Contest(
        "latency",
        SLOW,
        "10 ms a file",
        "load",
        "volume-32",
        ("naive", *FAST, "shmgen", "shmgen-auto", "pool"),
        ("naive", "spdl", "shmgen", "pool"),
        files=1024,
        repeats=16,
        storage="mount",
        settings=SETTINGS,
        length=4,
        long=True,
    ),
    Contest(
        "http",
        SLOW,
        "HTTP, 30 ms a request",
        "load",
        "volume-32",
        (*FAST, "shmgen", "shmgen-auto", "requests"),
        ("spdl", "shmgen", "requests"),
        files=1024,
        repeats=16,
        storage="server",
        settings=SETTINGS,
        length=4,
        long=True,
    ),
    Contest(
        "cold",
        SLOW,
        "a cold local disk",
        "start",
        "volume-32",
        ("naive", *FAST, "shmgen", "shmgen-auto", "limit", "fio"),
        ("naive", "spdl", "shmgen", "limit", "fio"),
        figures=("cold",),
        storage="cold",
        settings={"fio": (8, 16, 32, 64)},
        long=True,
    ),
    # An epoch is long, because Keras itself takes a tenth of a second to begin one.
    Contest(
        "fit",
        OTHER,
        "model.fit, samples/s",
        "fit",
        "volume-32",
        ("naive", *FAST, "shmgen", "memory"),
        ("naive", "shmgen", "memory"),
        figures=("fit",),
        repeats=3,
        length=4,
    ),
    *(
        Contest(
            f"fit-{backend}",
            OTHER,
            f"the same on {title}",
            "fit",
            "volume-32",
            ("naive", "shmgen", "memory"),
            ("shmgen", "memory"),
            figures=("fit",),
            repeats=3,
            length=4,
            backend=backend,
        )
        for backend, title in BACKENDS.items()
    ),
    Contest(
        "trainer",
        OTHER,
        "a trainer waits, % of its time",
        "load",
        "volume-32",
        ("naive", *FAST, "shmgen"),
        LIGHT[:3],
        figures=("wait",),
        step=1.3,
        long=True,
    ),
    Contest(
        "start",
        OTHER,
        "first batch, ms",
        "start",
        "volume-32",
        ("naive", "keras-processes", *FAST, "shmgen"),
        ("naive", "torch", "spdl", "shmgen"),
        figures=("first",),
        long=True,
    ),
)

MAIN = (
    ("`fit`, of the same batch from memory", "fit", "fit", "memory"),
    ("batches alone, of bare readers into three batches", "32", "rate", "limit-held"),
    ("HTTP, 30 ms a request, of 64 bare requests in flight", "http", "rate", "requests"),
)
"""What the README shows: title, contest, figure, and whose figure shmgen's is divided by."""
