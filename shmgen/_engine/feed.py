"""`Feed`: assembles a loader from its options, deals and fetches its batches, and knows its state.

`shmgen.Loader` and `shmgen.Sequence` are thin faces of a feed.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property
from operator import length_hint
from typing import Any, SupportsIndex

import numpy as np

from shmgen._checks import check_index
from shmgen._engine import defaults
from shmgen._engine.batch_planner import BatchPlanner
from shmgen._engine.error_log import without_traceback
from shmgen._engine.front_end import FrontEnd
from shmgen._engine.in_process import InProcess
from shmgen._engine.pool import Pool
from shmgen._engine.prefetcher import Prefetcher
from shmgen._engine.supervisor import Supervisor
from shmgen._engine.workers import Workers
from shmgen._memory.anonymous import hold_standard_streams
from shmgen._memory.layout import Field, Layout
from shmgen._memory.ring import Ring
from shmgen._plan.activity import Target
from shmgen._plan.autoscaler import Autoscaler, Number
from shmgen._plan.checkpoint import identity, loaded, saved
from shmgen._plan.damaged_samples import DamageLog
from shmgen._plan.passes import Pass, Passes, Position
from shmgen._plan.sampler import BatchId, Tail
from shmgen._plan.schedule import Schedule
from shmgen._samples.ids import fingerprint
from shmgen._samples.packed_ids import PackedIds
from shmgen._samples.sample_spec import dtype_of
from shmgen._sources.fields import FieldSpec, key_tables, readings_of
from shmgen._worker.ticket_filler import TicketFiller
from shmgen.errors import ClosedError, InputError
from shmgen.options import Options


class Feed:
    """The batches of a loader with these options. Their sources are bound, so no other feed may use them.

    ``row`` is ``dim`` and ``n_channels`` of the only input, as given or as found; both None if there are several inputs.
    """

    def __init__(self, options: Options, front_end: FrontEnd | None = None) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError(f"shmgen runs on Linux only so far, found {sys.platform}")
        hold_standard_streams()
        workers = defaults.workers_at_first() if options.workers == "auto" else defaults.at_most(options.workers)
        self.ids, self.labels, self.n_classes = options.ids, options.labels, options.n_classes
        self.sampler, self.spec = options.sampler, options.spec
        fields = self.spec.bind(options.transformed)
        arrays = [Field(field.name, field.shape, dtype_of(field.dtype)) for field in fields]
        self._layout = Layout(tuple(arrays), self.sampler.size(BatchId(0, 0)))
        for field in [arrays[position] for position in self.spec.weights if self.sampler.tail is Tail.PAD]:
            if field.dtype.kind != "f":
                raise InputError(
                    f"field {field.name!r}: with tail='pad', weights are multiplied: expected floats, found dtype {field.dtype}"
                )
        self.row = _row(options, arrays[0].shape)
        self.damage = DamageLog(len(self.ids), options.on_error, max_fraction=options.max_damaged)
        self._passes = Passes(len(self), shuffle=self.sampler.shuffle, epoch=options.epoch, is_one=options.on_error == "collect")
        with ExitStack() as undo:
            self.prefetcher = self._assemble(options, fields, workers, front_end or FrontEnd(), undo)
            self.prefetcher.read_ahead()
            gone = ClosedError("its last reference is gone, or the program is ending")
            # The prefetcher has no reference to the feed, not even an indirect one.
            self._stop = weakref.finalize(self, self.prefetcher.close, gone)
            undo.pop_all()

    def _assemble(
        self, options: Options, fields: Sequence[FieldSpec], count: int, front_end: FrontEnd, undo: ExitStack
    ) -> Prefetcher:
        """Take memory and start workers; ``undo`` gives up both."""
        layout = self._layout
        filler, tables = _filler(options, fields, layout)
        ring = Ring(layout, options.slots or defaults.slots(layout.slot_bytes))
        undo.callback(ring.close)
        concurrent = filler.concurrent and count > 0
        reads = 1 if options.reads == "auto" or not concurrent else options.reads
        scaled: dict[Number, bool] = {"workers": options.workers == "auto", "reads": options.reads == "auto" and concurrent}
        workers: Workers
        if count:
            workers = Pool(count, reads, ring, [undo.enter_context(closing(PackedIds.pack(table))) for table in tables], filler)
        else:
            workers = InProcess(ring, tables, filler)
        undo.callback(workers.stop)
        in_flight = defaults.in_flight(layout.slot_bytes)
        schedule = Schedule(ring.slots, self.sampler.size, in_flight=in_flight, is_read=ring.is_read)
        planner = BatchPlanner(self.ids, self.sampler, self.spec, ring, schedule, filler, self.damage)
        limits = defaults.limits(concurrent=concurrent and options.reads != 1)
        # What runs in the main process can't be given up.
        timeout = options.timeout if options.timeout is not None and count else math.inf
        return Prefetcher(
            ring,
            workers,
            Supervisor(workers, Target(count, reads), schedule, planner, ring, timeout),
            schedule,
            planner,
            self._passes,
            Autoscaler([number for number, scales in scaled.items() if scales], limits, layout.batch_size),
            front_end,
            reads_ahead=count > 0,
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.sampler.batches

    def __iter__(self) -> LoaderIterator:
        return LoaderIterator(self)

    def __repr__(self) -> str:
        fields = ", ".join(f"{field.name} {field.dtype}{list(field.shape)}" for field in self._layout.fields)
        return f"{len(self.ids):,} samples in {len(self):,} batches of {self.sampler.batch_size} ({fields}), {self.prefetcher!r}"

    def no_rows(self) -> list[tuple[Any, ...]]:
        """A batch without rows, with the nesting, shapes and dtypes of all batches; and a trimmed one if batches are trimmed."""
        return self.spec.examples(tuple(np.empty((0, *field.shape), field.dtype) for field in self._layout.fields))

    def close(self) -> None:
        """End the workers and release the memory, except that of batches that are still held."""
        self.prefetcher.close(ClosedError("it was closed: make another"))
        self._stop.detach()

    @contextmanager
    def passes(self) -> Iterator[Passes]:
        """The passes, to begin and end them while no other thread does."""
        with self.prefetcher.entered():
            yield self._passes

    def batch(self, index: SupportsIndex, of: Pass | None = None) -> tuple[Any, ...]:
        """The batch that ``index`` means in a pass; see `shmgen.Loader.batch`. Without a pass, it is a look at the next epoch."""
        return self.spec.unflatten(self.prefetcher.fetch(check_index(index, len(self)), of))

    def state_dict(self, position: Position | None = None) -> dict[str, int | str | bool]:
        """The state of a run that has got to ``position``; by default, behind the last batch that was handed out."""
        with self.prefetcher.entered():
            return saved(self._identity, position or self._passes.position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next iteration begin where a state was saved; if it does not fit, nothing is changed."""
        position = loaded(self._identity, state)
        with self.prefetcher.entered():
            if self.prefetcher.ended is not None:
                raise without_traceback(self.prefetcher.ended)
            self._passes.go_to(position)
            self.prefetcher.read_ahead()

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return identity(self.sampler, fingerprint(self.ids))


class LoaderIterator(Iterator[tuple[Any, ...]]):
    """One epoch's batches, from the first request on. Several threads may share it. It keeps the feed alive."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._pass: Pass | None = None
        self._indexes: Iterator[int] | None = None

    def __next__(self) -> tuple[Any, ...]:
        indexes = self._indexes or self._begin()
        feed = self._feed
        return feed.spec.unflatten(feed.prefetcher.fetch(next(indexes), self._pass))

    def _begin(self) -> Iterator[int]:
        with self._feed.passes() as passes:
            if self._indexes is None:
                self._pass = passes.open()
                self._indexes = iter(range(len(self._feed) - self._pass.first))
            return self._indexes

    def __len__(self) -> int:
        """Batches that are left, which are fewer in a resumed epoch. Progress bars ask for it."""
        with self._feed.passes() as passes:
            return len(self._feed) - passes.next.batch if self._indexes is None else length_hint(self._indexes)


def _row(options: Options, shape: tuple[int, ...]) -> tuple[tuple[int, ...] | None, int | None]:
    """``dim`` and ``n_channels`` of the only input, whose rows have this shape."""
    if not options.spec.has_one_input:
        return None, None
    given = options.dim, options.n_channels
    return (shape, None) if given in ((None, None), (shape, None)) else (shape[:-1], shape[-1])


def _filler(options: Options, fields: Sequence[FieldSpec], layout: Layout) -> tuple[TicketFiller, list[Sequence[Any]]]:
    """The part that fills tickets in workers, and the tables of the keys by which it knows the samples; see `key_tables`."""
    fields = [field._replace(offset=offset) for field, offset in zip(fields, layout.offsets, strict=True)]
    readings = readings_of(fields, options.spec.readers)
    filler = TicketFiller(fields, readings, layout.sheet_offset, options.seed, options.transforms, options.setup)
    return filler, key_tables(options.ids, readings)
