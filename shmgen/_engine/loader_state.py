"""`LoaderState`: a frozen snapshot of what a loader is doing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class SlotState:
    """A slot of shared memory.

    Attributes:
        status: ``"free"``; ``"filling"``, while workers read into it; ``"ready"`` to be handed out; ``"leased"``, while views of
            it exist; or ``"lost"``, since a worker that can't be killed may still write into it.
        epoch: of the batch that it holds; None if it holds no batch that will be handed out.
        batch: the number of that batch in the epoch's order, from 0; None likewise.
    """

    status: Literal["free", "filling", "ready", "leased", "lost"]
    epoch: int | None = None
    batch: int | None = None


@dataclass(frozen=True)
class WorkerState:
    """A worker process.

    Attributes:
        pid: its process id.
        reading: ids of the samples that its readers read, or call functions for. If a source does not say which sample it has
            got to, the id of the first one that it reads at once.
    """

    pid: int
    reading: tuple[Any, ...] = ()

    @property
    def busy(self) -> bool:
        """Whether it reads, or calls a function."""
        return bool(self.reading)


@dataclass(frozen=True)
class LoaderState:
    """What a loader is doing at this moment.

    Any thread may ask for it, also while another waits for a batch: `slots` and `workers` then show what that one waits for.

    Attributes:
        epoch: of the iteration that last requested a batch; if there is none, of the next iteration.
        slots: the slots of shared memory; none once the loader is closed.
        workers: the worker processes; none with ``workers=0``, and once the loader is closed.
        waiting: the number of requests for a batch that wait: for workers, or for a slot.
        closed: whether there are no more batches: the loader was closed, or an error has ended it.
    """

    epoch: int
    slots: tuple[SlotState, ...]
    workers: tuple[WorkerState, ...]
    waiting: int
    closed: bool

    @property
    def leased(self) -> int:
        """The number of slots that are held by views of batches that were handed out."""
        return sum(slot.status == "leased" for slot in self.slots)
