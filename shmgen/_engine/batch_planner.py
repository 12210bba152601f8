"""What the main process knows of a batch: its ids, the values that it fills in itself, and which samples are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shmgen._memory.layout import BatchArrays
from shmgen._memory.records import SAMPLES
from shmgen._memory.ring import Ring
from shmgen._plan.damage import DamageLog, OnError
from shmgen._plan.sampler import BatchId, Sampler, Tail
from shmgen._plan.schedule import Slot, Ticket
from shmgen._samples.ids import take
from shmgen._sources.batch_spec import BatchSpec
from shmgen._worker.ticket_filler import TicketFiller
from shmgen.errors import SampleError, printable

MAX_ATTEMPTS = 100
"""So many replacements are tried for a sample. If all of them are damaged, hardly any sample is not."""


class BatchPlanner:
    """Builds batches: knows the samples of each, tells workers by the slot's sheet, and fills in what they don't.

    Args:
        ids: of all samples.
        sampler: which of them a batch holds.
        spec: where a batch's arrays come from.
        ring: where values are filled in.
        filler: fills the rest, in the workers.
        damage: records samples that can't be read.
    """

    def __init__(
        self,
        ids: Sequence[Any],
        sampler: Sampler,
        spec: BatchSpec,
        ring: Ring,
        filler: TicketFiller,
        damage: DamageLog,
    ) -> None:
        self._ids = ids
        self._sampler = sampler
        self._ring = ring
        self._filler = filler
        self._damage = damage
        self._weights = spec.weights if sampler.tail is Tail.PAD else ()
        self._filled_here = [(n, reader) for n, reader in enumerate(spec.readers.values()) if reader.in_main_process]
        # For batches in the ring: by row, the sample that replaces another, and how many have been tried.
        self._replacements: dict[BatchId, dict[int, tuple[int, int]]] = {}

    @property
    def touches_delivered(self) -> bool:
        """Whether `delivered` has anything to do."""
        return bool(self._replacements) or bool(self._weights)

    @property
    def on_error(self) -> OnError:
        """What becomes of samples that can't be read."""
        return self._damage.on_error

    def prepare(self, slots: Sequence[Slot]) -> None:
        """Prepare slots for the batches that they were given: fill in what workers don't."""
        batches: list[BatchId] = [slot.batch for slot in slots]  # type: ignore[misc]
        samples = self._sampler.samples_of(batches)
        sizes = [len(numbers) for numbers in samples]
        values = self._values(samples)
        begin = 0
        for slot, batch, numbers, size in zip(slots, batches, samples, sizes, strict=True):
            sheet = self._ring.sheet(slot.number)
            sheet[0] = batch[0]
            sheet[1] = batch[1] * self._sampler.batch_size + self._sampler.offset
            sheet[2] = size
            sheet[3] = False
            sheet[SAMPLES : SAMPLES + size] = numbers
            if values:
                arrays = self._ring.arrays(slot.number)
                for field, rows in values:
                    arrays[field][:size] = rows[begin : begin + size]
                begin += size
            if self._replacements:
                self._replacements.pop(batch, None)
            if self._damage.unreadable:
                self._replace_unreadable(batch, 0, numbers)
                self._fill(slot.number, 0, self._numbers(batch))

    def _values(self, samples: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
        """The values that are filled in here, of these samples one after the other: by position of the field."""
        if not self._filled_here:
            return []
        numbers = samples[0] if len(samples) == 1 else np.concatenate(samples)
        found = []
        for field, reader in self._filled_here:
            rows = np.empty((len(numbers), *self._ring.layout.fields[field].shape), self._ring.layout.fields[field].dtype)
            reader.fill(numbers, rows, None)
            found.append((field, rows))
        return found

    def _replace_unreadable(self, batch: BatchId, start: int, samples: np.ndarray) -> None:
        """Replace those of the samples in ``batch`` from row ``start`` on that are known to be unreadable."""
        for row, sample in enumerate(samples.tolist(), start):
            if sample in self._damage.unreadable:
                self._replace(batch, row)

    def refill(self, ticket: Ticket) -> None:
        """Prepare ``ticket`` to be read again: fill in what a transform may have changed, and replace what is unreadable."""
        _, slot, batch, start, stop = ticket
        if self._damage.unreadable:
            self._replace_unreadable(batch, start, self._numbers(batch)[start:stop])
        self._fill(slot, start, self._numbers(batch)[start:stop])

    def give_up(self, ticket: Ticket) -> None:
        """The rows of ``ticket`` will not be read: whoever reads the others of its batch is not to wait for them."""
        self._ring.sheet(ticket.slot)[SAMPLES + ticket.start : SAMPLES + ticket.stop] = -1

    def _fill(self, slot: int, start: int, numbers: np.ndarray) -> None:
        """Tell workers of the samples ``numbers``, and fill in their values, in ``slot`` from row ``start`` on."""
        self._ring.sheet(slot)[SAMPLES + start : SAMPLES + start + len(numbers)] = numbers
        for field, reader in self._filled_here:
            reader.fill(numbers, self._ring.arrays(slot)[field][start : start + len(numbers)], None)

    def delivered(self, batch: BatchId, arrays: BatchArrays) -> int:
        """``batch`` is handed out as ``arrays``. Returns in how many rows a sample was replaced."""
        for field in self._weights:
            self._sampler.weigh(arrays[field], batch)
        return len(self._replacements.pop(batch, ())) if self._replacements else 0

    def id(self, batch: BatchId, row: int) -> Any:
        """The id of the sample in ``row`` of ``batch``."""
        [id] = self._ids_of(batch, row, row + 1)
        return id

    def named(self, batch: BatchId, row: int) -> str:
        """The sample in ``row`` of ``batch``."""
        id = self.id(batch, row)
        return printable(f"sample {id!r}, {self._filler.places(id)}")

    def listed(self, tickets: Sequence[Ticket], most: int) -> str:
        """What is read for ``tickets``; no more than ``most`` samples are named."""
        ids = [id for _, _, batch, start, stop in tickets for id in self._ids_of(batch, start, stop)]
        places = [self._filler.places(id) for id in ids[:most]]
        named = printable(", ".join(place if place.startswith("/") else repr(id) for id, place in zip(ids, places, strict=False)))
        return named if len(ids) <= most else f"{named} and {len(ids) - most} more"

    def _ids_of(self, batch: BatchId, start: int, stop: int) -> list[Any]:
        return take(self._ids, self._numbers(batch)[start:stop])

    def error(self, batch: BatchId, row: int, reason: str) -> SampleError:
        """An error for the sample in ``row`` of ``batch``, for a ``reason`` other than its data."""
        id = self.id(batch, row)
        return SampleError(id, self._filler.places(id), reason)

    def record(self, batch: BatchId, row: int, error: SampleError, *, unreadable: bool = False) -> None:
        """The sample in ``row`` of ``batch`` can't be read because of ``error``: where samples are replaced, it is.

        Args:
            batch: in which batch.
            row: in which row of it.
            error: why.
            unreadable: the sample is not to be tried again.

        Raises:
            TooManyDamaged: more are damaged than are tolerated.
        """
        replaces = self.on_error == "replace"
        self._damage.record(int(self._numbers(batch)[row]), error, unreadable=unreadable and replaces)
        if replaces:
            self._replace(batch, row)

    def _replace(self, batch: BatchId, row: int) -> None:
        rows = self._replacements.setdefault(batch, {})
        _, tried = rows.get(row, (0, 0))
        for attempt in range(tried, MAX_ATTEMPTS):
            sample = self._sampler.replacement(batch, row, attempt)
            if sample not in self._damage.unreadable:
                rows[row] = sample, attempt + 1
                return
        raise self._damage.too_many()

    def _numbers(self, batch: BatchId) -> np.ndarray:
        """The samples of ``batch``: positions in the list of ids."""
        numbers = self._sampler[batch]
        if batch in self._replacements:
            numbers = numbers.copy()
            for row, (sample, _) in self._replacements[batch].items():
                numbers[row] = sample
        return numbers
