"""What the main process knows of a batch: its samples, the values that it fills in itself, and which samples are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shmgen._memory.layout import BatchArrays
from shmgen._memory.records import EPOCH, POSITION, ROWS, SAMPLES, WAITED_FOR
from shmgen._memory.ring import Ring
from shmgen._plan.damaged_samples import DamageLog
from shmgen._plan.sampler import BatchId, Sampler, Tail
from shmgen._plan.schedule import Schedule, Slot, Ticket
from shmgen._samples.ids import take
from shmgen._sources.batch_spec import BatchSpec
from shmgen._worker.ticket_filler import TicketFiller
from shmgen.errors import SampleError, printable

MAX_ATTEMPTS = 100
"""Replacements that are tried for a sample. If all of them are damaged, nearly all samples are."""


class BatchPlanner:
    """Tells workers, by a slot's sheet, which samples to read, and fills in the values that they don't."""

    def __init__(
        self,
        ids: Sequence[Any],
        sampler: Sampler,
        spec: BatchSpec,
        ring: Ring,
        schedule: Schedule,
        filler: TicketFiller,
        damage: DamageLog,
    ) -> None:
        self._ids = ids
        self._sampler = sampler
        self._ring = ring
        self._schedule = schedule
        self._filler = filler
        self._damage = damage
        self.on_error = damage.on_error
        # The fields that `weigh` changes, by position.
        self.weights = spec.weights if sampler.tail is Tail.PAD else ()
        self._filled_here = [(n, reader) for n, reader in enumerate(spec.readers.values()) if reader.in_main_process]

    def prepare(self, slots: Sequence[Slot]) -> None:
        """Write the sheets of slots that were given batches, and fill in what workers don't."""
        batches: list[BatchId] = [slot.batch for slot in slots]  # type: ignore[misc]
        samples = self._sampler.samples_of(batches)
        values = self._values(np.concatenate(samples)) if self._filled_here else []
        begin = 0
        for slot, batch, numbers in zip(slots, batches, samples, strict=True):
            end = begin + (size := len(numbers))
            sheet = self._ring.sheets[slot.number]
            sheet[EPOCH] = batch.epoch
            sheet[POSITION] = batch.number * self._sampler.batch_size + self._sampler.offset
            sheet[ROWS] = size
            sheet[WAITED_FOR] = False
            sheet[SAMPLES : SAMPLES + size] = numbers
            for field, rows in values:
                self._ring.arrays[slot.number][field][:size] = rows[begin:end]
            if self._damage.unreadable:
                self.refill(slot.number, batch, 0, size)
            begin = end

    def _values(self, samples: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """The values of these samples that are filled in here, by position of the field."""
        found = []
        for field, reader in self._filled_here:
            array = self._ring.arrays[0][field]
            rows = np.empty((len(samples), *array.shape[1:]), array.dtype)
            reader.fill(samples, rows, None)
            found.append((field, rows))
        return found

    def refill(self, number: int, batch: BatchId, start: int, stop: int) -> None:
        """Prepare rows to be read again: replace what is unreadable, and fill in what a transform may have changed."""
        slot = self._schedule.slots[number]
        for row, sample in enumerate(self._numbers(slot, batch)[start:stop].tolist(), start):
            if sample in self._damage.unreadable:
                self._replace(slot, batch, row)
        numbers = self._numbers(slot, batch)[start:stop]
        self._ring.sheets[number][SAMPLES + start : SAMPLES + stop] = numbers
        for field, rows in self._values(numbers):
            self._ring.arrays[number][field][start:stop] = rows

    def mark_as_read(self, slot: int, start: int, stop: int) -> None:
        """These rows will not be read: the reader of the batch's last row is not to wait for them."""
        self._ring.sheets[slot][SAMPLES + start : SAMPLES + stop] = -1

    def weigh(self, batch: BatchId, arrays: BatchArrays) -> None:
        """Weigh the rows of a batch that is handed out, with ``tail="pad"``."""
        for field in self.weights:
            self._sampler.weigh(arrays[field], batch)

    def ids(self, ticket: Ticket) -> list[Any]:
        slot, batch = self._schedule.slots[ticket.slot], ticket.batch
        numbers = self._numbers(slot, batch) if ticket.id in slot.tickets else self._sampler[batch]
        return take(self._ids, numbers[ticket.start : ticket.stop])

    def named(self, ticket: Ticket, row: int) -> str:
        """The sample in ``row`` of ``ticket``."""
        id = self.ids(ticket)[row]
        return printable(f"sample {id!r}, {self._filler.places(id)}")

    def listed(self, tickets: Sequence[Ticket], most: int) -> str:
        """What is read for ``tickets``; no more than ``most`` samples are named."""
        ids = [id for ticket in tickets for id in self.ids(ticket)]
        places = [self._filler.places(id) for id in ids[:most]]
        named = printable(", ".join(place if place.startswith("/") else repr(id) for id, place in zip(ids, places, strict=False)))
        return named if len(ids) <= most else f"{named} and {len(ids) - most} more"

    def error(self, ticket: Ticket, row: int, reason: str) -> SampleError:
        """An error for the sample in ``row`` of ``ticket``, for a ``reason`` other than its data."""
        id = self.ids(ticket)[row]
        return SampleError(id, self._filler.places(id), reason)

    def record(self, ticket: Ticket, row: int, error: SampleError, *, unreadable: bool = False) -> None:
        """The sample in ``row`` of ``ticket`` can't be read, nor is it tried again if ``unreadable``: replace it if asked to."""
        slot, row = self._schedule.slots[ticket.slot], ticket.start + row
        replaces = self.on_error == "replace"
        sample = int(self._numbers(slot, ticket.batch)[row])
        self._damage.record(sample, error, unreadable=unreadable and replaces)
        if replaces:
            self._replace(slot, ticket.batch, row)

    def _replace(self, slot: Slot, batch: BatchId, row: int) -> None:
        _, tried = slot.replaced.get(row, (0, 0))
        for attempt in range(tried, MAX_ATTEMPTS):
            sample = self._sampler.replacement(batch, row, attempt)
            if sample not in self._damage.unreadable:
                slot.replaced[row] = sample, attempt + 1
                return
        raise self._damage.too_many()

    def _numbers(self, slot: Slot, batch: BatchId) -> np.ndarray:
        """The samples of ``batch``, which is in ``slot``: positions in the list of ids."""
        numbers = self._sampler[batch]
        if slot.replaced:
            numbers = numbers.copy()
            for row, (sample, _) in slot.replaced.items():
                numbers[row] = sample
        return numbers
