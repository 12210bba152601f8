"""What the parent knows of a batch: its samples' ids, the values it fills itself, and which samples stand in for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shmgen._damage import Damage
from shmgen._filler import Filler, Task
from shmgen._ids import take
from shmgen._order import Batch, Order
from shmgen._passes import Pass, Passes
from shmgen._ring import Ring
from shmgen._schedule import Piece
from shmgen._source import Source
from shmgen._structure import Structure
from shmgen._values import Values
from shmgen.errors import SampleError, printable

MOST_ATTEMPTS = 100
"""So many samples are tried to stand in for one; where all of them are damaged, hardly any is not."""


class Samples:
    """The samples of batches.

    Args:
        ids: of all samples.
        order: which of them a batch holds.
        structure: where a batch's arrays come from.
        ring: where the values are filled in that workers don't fill.
        passes: know which epoch is under way.
        filler: fills the rest.
        damage: takes note of samples that can't be had.
    """

    def __init__(
        self, ids: Sequence[Any], order: Order, structure: Structure, ring: Ring, passes: Passes, filler: Filler, damage: Damage
    ) -> None:
        self._ids = ids
        self._order = order
        self._ring = ring
        self._passes = passes
        self._filler = filler
        self._damage = damage
        self._values = [(n, source) for n, source in enumerate(structure.sources.values()) if isinstance(source, Values)]
        self._sources = [source for source in structure.sources.values() if isinstance(source, Source)]
        # Of the batches read ahead, where the sources can tell: what their files were when they were read, or in which pass.
        self._can_tell = any(type(source).version is not Source.version for source in self._sources)
        self._read: dict[Batch, object] = {}
        # Of the batches in the ring, the rows in which others stand in, and how many have been tried.
        self._stand_ins: dict[Batch, dict[int, tuple[int, int]]] = {}

    @property
    def replaces(self) -> bool:
        """Whether others stand in for damaged samples."""
        return self._damage.replaces

    def size(self, batch: Batch) -> int:
        """How many samples ``batch`` holds."""
        return self._order.size(batch)

    def tasks(self, pieces: Sequence[Piece]) -> list[Task]:
        """What to tell workers of ``pieces``."""
        ids: dict[Batch, list[Any]] = {}
        tasks = []
        for slot, batch, start, stop in pieces:
            if batch not in ids:
                ids[batch] = take(self._ids, self._numbers(batch))
            position = batch.number * self._order.batch_size + start
            tasks.append(Task(slot, start, stop, batch.epoch, position, ids[batch][start:stop]))
        return tasks

    def prepare(self, slot: int, batch: Batch, *, ahead: bool) -> None:
        """``batch`` is about to be read into ``slot``, ``ahead`` of being asked for or not: fill what workers don't."""
        self._read.pop(batch, None)
        self._stand_ins.pop(batch, None)
        if self._damage.hopeless:
            for row, sample in enumerate(self._order[batch].tolist()):
                if sample in self._damage.hopeless:
                    self._substitute(batch, row)
        numbers = self._numbers(batch)
        self._fill(slot, 0, numbers)
        # What is read before its epoch begins, or before that is begun again, may have changed by then.
        if ahead and self._can_tell:
            last = self._passes.last
            in_its_epoch = last is not None and last.is_begun and last.epoch == batch.epoch
            self._read[batch] = last if in_its_epoch else self._version(numbers)

    def refill(self, piece: Piece) -> None:
        """``piece`` is about to be read again: fill what a transform may have changed, and have what is hopeless stand aside."""
        slot, batch, start, stop = piece
        if self._damage.hopeless:
            for row, sample in enumerate(self._numbers(batch)[start:stop].tolist(), start):
                if sample in self._damage.hopeless:
                    self._substitute(batch, row)
        self._fill(slot, start, self._numbers(batch)[start:stop])

    def _fill(self, slot: int, start: int, numbers: np.ndarray) -> None:
        """Fill the rows in ``slot`` from ``start`` on with what workers don't fill of the samples ``numbers``."""
        for field, values in self._values:
            values.fill(numbers, self._ring.arrays(slot)[field][start : start + len(numbers)])

    def holds(self, batch: Batch) -> bool:
        """Whether what was read of ``batch`` is what its files hold; asked once, and true of what was read in this pass."""
        read = self._read.pop(batch, None)
        if read is None or read is self._passes.last:
            return True
        return not isinstance(read, Pass) and read == self._version(self._numbers(batch))

    def outdated(self) -> list[Batch]:
        """The batches that were read in a pass that has been left: their files may have changed since."""
        return [batch for batch, read in self._read.items() if isinstance(read, Pass) and read is not self._passes.last]

    def delivered(self, batch: Batch) -> int:
        """``batch`` has been handed out: in how many rows another sample stands in."""
        return len(self._stand_ins.pop(batch, ()))

    def named(self, piece: Piece, row: int) -> str:
        """The sample in ``row`` of ``piece``, counted from its first."""
        [id] = self._ids_of(piece)[row : row + 1]
        return printable(f"sample {id!r}, {self._filler.places(id)}")

    def listed(self, pieces: Sequence[Piece], most: int) -> str:
        """What is read for ``pieces``; no more than ``most`` samples are named."""
        ids = [id for piece in pieces for id in self._ids_of(piece)]
        places = [self._filler.places(id) for id in ids[:most]]
        named = printable(", ".join(place if place.startswith("/") else repr(id) for id, place in zip(ids, places, strict=False)))
        return named if len(ids) <= most else f"{named} and {len(ids) - most} more"

    def _ids_of(self, piece: Piece) -> list[Any]:
        return take(self._ids, self._numbers(piece.batch)[piece.start : piece.stop])

    def error(self, piece: Piece, row: int, reason: str) -> SampleError:
        """That the sample in ``row`` of ``piece`` can't be had for a ``reason`` other than its data."""
        id = self._ids_of(piece)[row]
        return SampleError(id, self._filler.places(id), reason)

    def replace(self, piece: Piece, row: int, error: SampleError, *, hopeless: bool = False) -> None:
        """Have another sample stand in for that in ``row`` of ``piece``, which can't be had because of ``error``.

        Args:
            piece: what was being read, and is to be read again, once it has been `refill`ed.
            row: from the piece's first.
            error: why.
            hopeless: the sample is not to be tried again, ever.

        Raises:
            TooManyDamaged: more are damaged than are borne.
        """
        batch, row = piece.batch, piece.start + row
        self._damage.note(int(self._numbers(batch)[row]), error, hopeless=hopeless)
        self._substitute(batch, row)

    def _substitute(self, batch: Batch, row: int) -> None:
        rows = self._stand_ins.setdefault(batch, {})
        _, tried = rows.get(row, (0, 0))
        for attempt in range(tried, MOST_ATTEMPTS):
            sample = self._order.stand_in(batch, row, attempt)
            if sample not in self._damage.hopeless:
                rows[row] = sample, attempt + 1
                return
        raise self._damage.too_many()

    def _numbers(self, batch: Batch) -> np.ndarray:
        """The samples of ``batch``: positions in the list of ids."""
        numbers = self._order[batch]
        if batch in self._stand_ins:
            numbers = numbers.copy()
            for row, (sample, _) in self._stand_ins[batch].items():
                numbers[row] = sample
        return numbers

    def _version(self, numbers: np.ndarray) -> object:
        ids = take(self._ids, numbers)
        return [source.version(ids) for source in self._sources]
