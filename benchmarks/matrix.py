"""The contests, as data. They are not all combinations: each question is asked once, with the most typical data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FAST = ("keras-threads", "torch", "tf.data", "grain", "spdl")
"""Peers that read files in the fastest way there is."""
ALL = ("naive", "keras-processes", *FAST, "shmgen", "shmgen-auto")
"""Contestants in the order of the tables; bounds follow."""
LIMITS = ("limit", "limit-held")
"""Bare reads into one batch, which stays in the processor's cache, and into several, which do not all stay there."""
LIGHT = ("naive", "spdl", "shmgen", *LIMITS)
"""Contestants of a quick run: they start fast, without TensorFlow or torch."""


@dataclass(frozen=True)
class Figure:
    """A measured quantity.

    Attributes:
        title: name in the table.
        unit: unit of the values.
        more_is_better: whether higher values are better.
        digits: number of decimals.
        has_ratio: whether ratios make sense: the values are never 0.
    """

    title: str
    unit: str
    more_is_better: bool = False
    digits: int = 0
    has_ratio: bool = True


FIGURES = {
    "rate": Figure("batches only", "samples/s", more_is_better=True),
    "cold": Figure("from a cold disk", "samples/s", more_is_better=True),
    "fit": Figure("model.fit", "samples/s", more_is_better=True),
    "wait": Figure("a trainer waits", "% of its time", digits=1, has_ratio=False),
    "first": Figure("first batch", "ms"),
    "memory": Figure("peak memory", "MB"),
    "cpu": Figure("processor time", "s/GB", digits=3),
    "trainer_cpu": Figure("the trainer's thread", "us/batch"),
}


@dataclass(frozen=True, eq=False)
class Contest:
    """A comparison of contestants on one data set.

    Attributes:
        name: part of the benchmarks' names.
        table: title of the table.
        column: title of the table's column.
        task: "load" reads batches, "start" reads the first batches in a fresh process each turn, and "fit" trains.
        case: name of the data set.
        contestants: contestants of a full run.
        quick: contestants of a quick run; none leaves the contest out.
        figures: names in `FIGURES`; the main figure comes first, the others have a table of their own.
        workers: number of processes or threads that read.
        files: number of files; 0 for all of the data set.
        repeats: number of times each file is read in an epoch.
        storage: "cache" is the page cache; "cold" is a disk with a cold page cache; "mount" and "server" have latency.
        backend: Keras's backend.
        busy_processes: number of processes that compute meanwhile.
        step: time that a trainer spends on a batch, as a multiple of the time that the limit takes for one; 0 for no trainer.
        settings: numbers of reads in flight to try, by contestant, which keeps its best; 0 is the contestant's default.
        length: duration of a turn, as a multiple of the plan's.
        long: whether turns take so long that there are few rounds.
    """

    name: str
    table: str
    column: str
    task: str
    case: str
    contestants: tuple[str, ...]
    quick: tuple[str, ...] = ()
    figures: tuple[str, ...] = ("rate",)
    workers: int = 2
    files: int = 0
    repeats: int = 1
    storage: Literal["cache", "cold", "mount", "server"] = "cache"
    backend: Literal["tensorflow", "jax", "torch"] = "tensorflow"
    busy_processes: int = 0
    step: float = 0.0
    settings: dict[str, tuple[int, ...]] = field(default_factory=dict)
    length: float = 1.0
    long: bool = False

    @property
    def is_slow(self) -> bool:
        """Whether epochs take so long that turns end after any batch."""
        return self.storage in ("mount", "server")


CACHED, BUSY, SLOW, OTHER = (
    "Batches from the page cache, 2 workers, samples/s",
    "The same beside 4 busy processes, samples/s",
    "From storage that takes its time, 32³ float32, samples/s",
    "Training, and starting, 32³ float32",
)
BACKENDS: dict[Literal["jax", "torch"], str] = {"jax": "JAX", "torch": "torch"}
"""Keras's other backends, after TensorFlow."""

COSTS = "What it takes, 32³ float32, 2 workers"
"""Title of the table for figures that are not a contest's main one."""

SETTINGS = {"keras-threads": (64, 128), "torch": (16, 32, 64), "tf.data": (0, 64, 128), "grain": (64, 128), "spdl": (64, 128)}
"""Numbers of reads in flight to try on storage with latency."""

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
        figures=("rate", "memory", "cpu", "trainer_cpu"),
        length=2,
    ),
    Contest("224", CACHED, "224²x3 uint8", "load", "image-224", ("naive", *FAST, "shmgen", *LIMITS), LIGHT),
    Contest("128", CACHED, "128³ float32", "load", "volume-128", ("naive", *FAST, "shmgen", *LIMITS), LIGHT),
    Contest("busy-28", BUSY, "28² uint8", "load", "digit-28", ("spdl", "shmgen", "limit-held"), busy_processes=4),
    Contest(
        "busy-32",
        BUSY,
        "32³ float32",
        "load",
        "volume-32",
        ("naive", *FAST, "shmgen", "limit-held"),
        ("spdl", "shmgen", "limit-held"),
        busy_processes=4,
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
    # Epochs are long, because Keras itself takes a tenth of a second to begin one.
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
"""Rows of the README's table: title, contest, figure, and the bound that shmgen is compared with."""
