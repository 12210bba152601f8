"""`Loader`: batches of samples without any framework."""

from __future__ import annotations

import math
import sys
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property
from operator import length_hint
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from shmgen._arguments import init_from
from shmgen._checks import Fixed, check_index
from shmgen._engine import defaults
from shmgen._engine.batch_planner import BatchPlanner
from shmgen._engine.front_end import NO_FRAMEWORK, FrontEnd
from shmgen._engine.in_process import InProcess
from shmgen._engine.pool import Pool
from shmgen._engine.prefetcher import Prefetcher
from shmgen._engine.state import LoaderState
from shmgen._engine.supervisor import Supervisor
from shmgen._engine.workers import Workers
from shmgen._memory.layout import Field, Layout
from shmgen._memory.nameless import hold_standard_streams
from shmgen._memory.ring import Ring
from shmgen._plan.autoscaler import Autoscaler
from shmgen._plan.checkpoint import Identity, loaded, saved
from shmgen._plan.damage import Damaged, DamageLog
from shmgen._plan.passes import Pass, Passes, Position
from shmgen._plan.sampler import BatchId, Tail
from shmgen._plan.schedule import Schedule
from shmgen._plan.stats import Stats
from shmgen._samples.ids import fingerprint
from shmgen._samples.packed_ids import PackedIds
from shmgen._samples.sample_spec import dtype_of
from shmgen._sources.fields import FieldSpec, key_tables, readings_of
from shmgen._worker.ticket_filler import TicketFiller
from shmgen.errors import ClosedError, InputError
from shmgen.options import Options

if TYPE_CHECKING:
    from typing import Self

MISSES_BEFORE_WARNING = 3
"""Unexpected requests in one iteration before the user is warned. A look at a batch or two is no mistake."""


NO_COPY = (
    "a {} can't be copied or pickled, since it has processes and memory of its own: make another with the same arguments, in the "
    "process that is to use it"
)


class Loader:
    """Batches of samples that worker processes make in shared memory: from a folder of ``ID.npy`` files, or from other sources.

    ``for X, y in loader`` is one epoch. The next loop is the next epoch, even if this one was left early. Without ``labels`` and
    ``targets`` a batch is ``(X,)``. The arrays are views of shared memory. It is not written again while anyone holds them, or
    views of them. They stay readable after `close`. Any thread may use a loader.

    The arguments are described at ``__init__``. Only ``list_IDs`` is required.

    Batches:
        ``(inputs,)``, ``(inputs, targets)`` or ``(inputs, targets, weights)``, each nested as it was given. ``X`` has shape
        ``(batch_size, *dim, n_channels)`` and ``dtype``; ``y`` has shape ``(batch_size,)`` and dtype int64, or
        ``(batch_size, n_classes)`` and float32. Each array begins at a multiple of 64 bytes.

    Attributes:
        list_IDs: the ids. This and the other arguments here can be read, but not set.
        labels: as given.
        batch_size: as given.
        dim: shape of the only input without its channels, as given or as found in the first sample. The whole shape if
            ``n_channels`` is None. None if there are several inputs.
        n_channels: size of the only input's last axis, as given or as found. None if neither ``dim`` nor ``n_channels`` was
            given, if ``dim`` was given as the whole shape, or if there are several inputs.
        n_classes: as given.
        classes: names of the classes, in the order of their numbers, or None. If several targets have classes, a dict by field.
        shuffle: as given.
        shard: (rank, world), as given or as found; (0, 1) for a process that gets all.

    Raises:
        InputError: an argument can't be used, or a function can't be sent to a worker.
        SampleError: the first sample can't be read, or does not match the arguments. From a request for a batch: one of its
            samples can't be read. The batch may be requested again.
        FunctionError: as SampleError, if a function of the user's is the cause.
        TooManyDamaged: from a request for a batch: more samples are damaged than ``max_damaged`` allows. The loader is then
            closed.
        WorkerDied: likewise: workers die one after the other before they have done anything. Otherwise a worker that dies is
            replaced, and its rows are read again. A sample at which three workers have died is damaged.
        StartError: likewise: a worker can't start.
        ClosedError: a batch is requested after `close`.
        OSError: there is not enough shared memory.

    Examples:
        >>> loader = Loader(ids, labels, batch_size=4, dim=(4, 3), n_channels=1, shuffle=False)
        >>> for X, y in loader:
        ...     print(X.shape, y)
        (4, 4, 3, 1) [0 1 2 3]
        (4, 4, 3, 1) [0 1 2 3]
        (4, 4, 3, 1) [0 1 2 3]
        (4, 4, 3, 1) [0 1 2 3]
        >>> loader.close()
    """

    @init_from(Options)
    def __init__(self, options: Options) -> None:
        """Start the workers, and begin to read ahead."""
        self._build(options, NO_FRAMEWORK)

    @classmethod
    def from_options(cls, options: Options, front_end: FrontEnd) -> Self:
        """A loader whose batches go to a framework.

        Args:
            options: the arguments; for this loader alone.
            front_end: knows the framework.
        """
        loader = cls.__new__(cls)
        loader._build(options, front_end)
        return loader

    def _build(self, options: Options, front_end: FrontEnd) -> None:
        """Put the parts together, and start to read ahead."""
        if not sys.platform.startswith("linux"):
            raise OSError(f"shmgen runs on Linux only so far, found {sys.platform}")
        hold_standard_streams()
        self._ids, self._spec = options.ids, options.spec
        self._labels, self._n_classes = options.labels, options.n_classes
        self._described = options.dim, options.n_channels
        workers = defaults.workers_at_first() if options.workers == "auto" else defaults.at_most(options.workers)
        self._sampler = options.sampler
        fields = self._spec.bind(options.transformed)
        arrays = [Field(field.name, field.shape, dtype_of(field.dtype)) for field in fields]
        self._layout = Layout(tuple(arrays), self._sampler.size(BatchId(0, 0)))
        if self._sampler.tail is Tail.PAD:
            self._check_weights()
        filler, tables = _filler(options, fields, self._layout)
        self._passes = Passes(
            self._sampler.batches, shuffle=options.shuffle, epoch=options.epoch, is_one=options.on_error == "collect"
        )
        self._damage = DamageLog(len(self._ids), options.on_error, max_fraction=options.max_damaged)
        with ExitStack() as undo:
            self._ring = Ring(self._layout, options.slots or defaults.slots(self._layout.slot_bytes))
            undo.callback(self._ring.close)
            reads = 1 if options.reads == "auto" or not (filler.concurrent and workers) else options.reads
            self._workers: Workers
            if workers:
                packed = [undo.enter_context(closing(PackedIds.pack(table))) for table in tables]
                self._workers = Pool(workers, reads, self._ring, packed, filler)
            else:
                self._workers = InProcess(self._ring, tables, filler)
            undo.callback(self._workers.stop)
            in_flight = defaults.in_flight(self._layout.slot_bytes)
            count = max(1, workers)
            self._schedule = Schedule(
                self._ring.slots, workers * reads, self._sampler.size, in_flight=in_flight, is_read=self._ring.is_read
            )
            planner = BatchPlanner(
                self._ids,
                self._sampler,
                self._spec,
                self._ring,
                filler,
                self._damage,
            )
            # What runs in the main process can't be given up.
            patience = options.timeout if options.timeout is not None and workers else math.inf
            self._prefetcher = Prefetcher(
                self._ring,
                self._workers,
                Supervisor(self._workers, count, reads, self._schedule, planner, self._ring, patience),
                self._schedule,
                planner,
                self._passes,
                autoscaler=_autoscaler(options, filler, self._layout, workers),
                front_end=front_end,
                reads_ahead=workers > 0,
            )
            self._prefetcher.read_ahead()
            # Nothing that the prefetcher holds leads back to the loader.
            self._stop = weakref.finalize(self, self._prefetcher.close, ClosedError("nobody held it any more"))
            undo.pop_all()

    def _check_weights(self) -> None:
        """With ``tail="pad"`` weights are multiplied."""
        for position in self._spec.weights:
            field = self._layout.fields[position]
            if field.dtype.kind != "f":
                raise InputError(
                    f"field {field.name!r}: with tail='pad', weights are multiplied: expected floats, found dtype {field.dtype}"
                )

    _warned_of_misses = False

    list_IDs = Fixed[Sequence[Any]](lambda loader: loader._ids)
    labels = Fixed[Any](lambda loader: loader._labels)
    batch_size = Fixed[int](lambda loader: loader._sampler.batch_size)
    dim = Fixed["tuple[int, ...] | None"](lambda loader: loader._row()[0])
    n_channels = Fixed["int | None"](lambda loader: loader._row()[1])
    n_classes = Fixed["int | None"](lambda loader: loader._n_classes)
    classes = Fixed["tuple[Any, ...] | dict[str, tuple[Any, ...]] | None"](lambda loader: loader._spec.classes)
    shuffle = Fixed[bool](lambda loader: loader._sampler.shuffle)
    shard = Fixed[tuple[int, int]](lambda loader: loader._sampler.shard)

    @property
    def fills_up(self) -> bool:
        """Whether the last batch is filled up with samples that the epoch has had."""
        return self._sampler.tail.fills_up

    @property
    def replaces(self) -> bool:
        """Whether samples that can't be read are replaced by others."""
        return self._damage.on_error == "replace"

    @property
    def no_rows(self) -> list[tuple[Any, ...]]:
        """A batch without rows: nested, and with the shapes and dtypes, as all batches; and another where they are trimmed."""
        return self._spec.examples(tuple(np.empty((0, *field.shape), field.dtype) for field in self._layout.fields))

    def _row(self) -> tuple[tuple[int, ...] | None, int | None]:
        """`dim` and `n_channels` of the only input."""
        if not self._spec.has_one_input:
            return None, None
        shape = self._layout.fields[0].shape
        return (shape, None) if self._described in ((None, None), (shape, None)) else (shape[:-1], shape[-1])

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._sampler.batches

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """The batches of the next epoch, or those that are left of a resumed one. It begins with the first request."""
        return _Epoch(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        fields = ", ".join(f"{field.name} {field.dtype}{list(field.shape)}" for field in self._layout.fields)
        state = f"ended: {self._prefetcher.ended}" if self._prefetcher.ended else repr(self._schedule)
        return (
            f"<{type(self).__name__}: {len(self._ids):,} samples in {len(self):,} batches of {self._sampler.batch_size} "
            f"({fields}), {self._workers!r}, {state}>"
        )

    @property
    def stats(self) -> Stats:
        """What has been done so far."""
        return self._prefetcher.stats

    @property
    def state(self) -> LoaderState:
        """What it is doing at this moment: its slots, workers, and requests that wait; from any thread."""
        with self._prefetcher.entered():
            return self._prefetcher.state(self._passes.epoch)

    @property
    def damaged(self) -> tuple[Damaged, ...]:
        """The samples that could not be read, and were replaced or left out, in the order in which they were found."""
        return tuple(self._damage.found.values())

    @property
    def error(self) -> Exception | None:
        """The last error of a request for a batch, which has been logged too; None if there was none."""
        return self._prefetcher.error

    def close(self) -> None:
        """End the workers and release the memory, except that of batches that are still held.

        May be called repeatedly, from any thread, and while other threads wait for a batch.
        """
        self._prefetcher.close(ClosedError("it was closed: make another"))
        self._stop.detach()

    def state_dict(self) -> dict[str, int | str | bool]:
        """The place from which another run goes on: behind the last batch that ``next`` returned.

        After the last batch of an epoch that is the beginning of the next one.

        Flat, of what JSON knows: ``version``, ``order``, ``seed``, ``epoch``, ``consumed`` (samples of the epoch, of all ranks
        together), ``samples``, ``ids`` (a hash), ``batch_size`` (of all ranks), ``shuffle``, ``tail``, ``sampling_weights`` (a
        hash; empty where there are none). Each rank has the same.

        Examples:
            >>> loader = Loader(ids, labels, batch_size=4)
            >>> epoch = iter(loader)
            >>> batch = next(epoch)
            >>> state = loader.state_dict()
            >>> state["epoch"], state["consumed"]
            (0, 4)
            >>> other = Loader(ids, labels, batch_size=2)
            >>> other.load_state_dict(state)
            >>> len(list(other))
            6
        """
        with self._prefetcher.entered():
            return saved(self._identity, self._passes.position)

    def state_at(self, epoch: int, batch: int) -> dict[str, int | str | bool]:
        """`state_dict` of a loader that has returned ``batch`` batches of ``epoch``."""
        return saved(self._identity, Position(epoch, batch))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run was: the next iteration has the batches that were left.

        Args:
            state: from `state_dict` of a loader with the same ids, seed, shuffle and tail. The numbers of workers and of ranks
                may be others, and the batch size, if it divides ``state["consumed"]``.

        Raises:
            InputError: it does not fit; the loader is as before.
        """
        position = loaded(self._identity, state)
        with self._prefetcher.entered():
            self._passes.go_to(position)
            self._prefetcher.read_ahead()

    @cached_property
    def _identity(self) -> Identity:
        sampler = self._sampler
        return Identity(
            samples=sampler.samples,
            ids=fingerprint(self._ids),
            seed=sampler.seed,
            shuffle=sampler.shuffle,
            tail=sampler.tail.value,
            sampling_weights=sampler.weights.fingerprint() if sampler.weights is not None else "",
            lengths=sampler.lengths.fingerprint() if sampler.lengths is not None else "",
            batch_size=sampler.batch_size,
            batches=sampler.batches,
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(NO_COPY.format(type(self).__name__))

    @contextmanager
    def passes(self) -> Iterator[Passes]:
        """The passes, for a front end to begin and end them while no other thread does."""
        with self._prefetcher.entered():
            yield self._passes

    def on_epoch_end(self) -> None:
        """The batches that were requested without a pass were used: the next request belongs to the next epoch."""
        with self._prefetcher.entered():
            self._passes.end()

    def batch(self, index: SupportsIndex, of: Pass | None = None) -> tuple[Any, ...]:
        """The batch that ``index`` means in a pass.

        With ``shuffle``, an index that is new in this pass means the next batch of the epoch's order. Without, it is the batch's
        number.

        Args:
            index: from ``-len(loader)`` to ``len(loader) - 1``.
            of: the pass, as a front end opened it in `passes`. Without it, the batch is a look at the next epoch, until
                `on_epoch_end`.

        Raises:
            IndexError: there is no batch of this index, or it is not among those that are left of a resumed epoch.
            TypeError: it is no int.
        """
        arrays = self._prefetcher.fetch(check_index(index, len(self)), of)
        last = self._passes.last
        if last is not None and last.misses >= MISSES_BEFORE_WARNING and not self._warned_of_misses:
            self._warned_of_misses = True
            warnings.warn(
                "batches of a loader with shuffle=False are requested in an unknown order, so none are read ahead: request "
                "them in the order of their indexes, or pass shuffle=True to the loader",
                stacklevel=3,
            )
        return self._spec.unflatten(arrays)


class _Epoch(Iterator[tuple[Any, ...]]):
    """One epoch's batches. Several threads may share it. It keeps the loader alive, which may be held nowhere else."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._pass: Pass | None = None
        self._indexes: Iterator[int] | None = None

    def __next__(self) -> tuple[Any, ...]:
        indexes = self._indexes or self._begin()
        arrays = self._loader._prefetcher.fetch(next(indexes), self._pass)
        return self._loader._spec.unflatten(arrays)

    def _begin(self) -> Iterator[int]:
        loader = self._loader
        with loader._prefetcher.entered():
            if self._indexes is None:
                self._pass = loader._passes.open()
                self._indexes = iter(range(len(loader) - self._pass.first))
            return self._indexes

    def __len__(self) -> int:
        """Batches that are still to come: less than an epoch's, if that was resumed. Progress bars ask for it."""
        loader = self._loader
        with loader._prefetcher.entered():
            return len(loader) - loader._passes.next.batch if self._indexes is None else length_hint(self._indexes)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(NO_COPY.format("Loader's iterator"))


def _filler(options: Options, fields: Sequence[FieldSpec], layout: Layout) -> tuple[TicketFiller, list[Sequence[Any]]]:
    """What workers do for each batch, and what they call the samples: see `key_tables`."""
    fields = [field._replace(offset=offset) for field, offset in zip(fields, layout.offsets, strict=True)]
    readings = readings_of(fields, options.spec.readers)
    filler = TicketFiller(
        fields, readings, layout.sheet_offset, options.seed, options.transforms, options.sample_transform, options.setup
    )
    return filler, key_tables(options.ids, readings)


def _autoscaler(options: Options, filler: TicketFiller, layout: Layout, workers: int) -> Autoscaler | None:
    """What decides on the numbers of workers and reads; None if both are fixed."""
    scales_workers = options.workers == "auto"
    scales_reads = bool(workers) and options.reads == "auto" and filler.concurrent
    if not scales_workers and not scales_reads:
        return None
    return Autoscaler(
        scales_workers=scales_workers,
        scales_reads=scales_reads,
        limits=defaults.limits(concurrent=filler.concurrent),
        batch_rows=layout.batch_size,
    )
