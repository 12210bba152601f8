"""`Loader`: batches of samples without any framework."""

from __future__ import annotations

import math
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

from shmgen._checks import Fixed, check_float, check_index, check_int, dtype_text
from shmgen._engine.batch_builder import BatchBuilder
from shmgen._engine.pool import InProcess, Pool, Workers
from shmgen._engine.prefetcher import Prefetcher
from shmgen._engine.supervisor import Supervisor
from shmgen._memory.layout import Layout
from shmgen._memory.limits import available, processors
from shmgen._memory.ring import Ring
from shmgen._memory.status_page import STATUS_PAGE_BYTES
from shmgen._plan.autoscaler import AutoscalePolicy, Autoscaler
from shmgen._plan.damage import Damage, Damaged
from shmgen._plan.passes import Pass, Passes
from shmgen._plan.sampler import BatchId, Sampler
from shmgen._plan.schedule import Schedule
from shmgen._plan.stats import WAITING, Stats
from shmgen._sources.base import Source
from shmgen._sources.batch_spec import BatchSpec, target
from shmgen._sources.function import Function
from shmgen._sources.ids import kept
from shmgen._sources.npy import Npy
from shmgen._sources.values import Values
from shmgen._worker.assembler import BatchAssembler, FieldSpec
from shmgen.errors import ClosedError, InputError

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import DTypeLike

MAX_AT_FIRST = 8
"""``workers="auto"`` begins with no more."""

MAX_WORKERS = 32
"""``workers="auto"`` goes no higher."""

WORKER_BYTES = 1 << 26
"""Memory that must be left for another worker."""

WAITING_WORKERS = 4
"""Where workers wait for a disk or a network, there may be so many for each processor."""

MIN_SLOTS, MAX_SLOTS, SLOTS_BYTES = 4, 16, 1 << 26
"""The default number of slots: as many as fit in so many bytes, within these bounds."""

MIN_IN_FLIGHT, IN_FLIGHT_BYTES = 4, 1 << 23
"""How many batches are read at once: as many as fit in so many bytes, and no fewer than keep the workers busy."""

MISSES_BEFORE_WARNING = 3
"""Requests of one iteration that were not foreseen, before the user is told; a look at a batch or two is nobody's mistake."""


NO_COPY = (
    "a {} can't be copied or pickled, since it has processes and memory of its own: make another with the same arguments, in the "
    "process that is to use it"
)


class Loader:
    """Batches of samples, made by worker processes in shared memory: of a folder of ``ID.npy`` files, or of anything else.

    ``for X, y in loader`` is one epoch; the next loop is the next epoch, also after one that was left early. Without ``labels``
    or ``targets`` a batch is ``(X,)``. The arrays are views of shared memory that is not written again while anyone holds them,
    or a view of them; they stay readable after `close`. Any thread may use a loader.

    Args:
        list_IDs: the samples' ids; one that stands twice is two samples.
        labels: an int for each id, or the name of one of ``classes``, or a row: a mapping from id to them, or a list, an array, a
            column of pandas, as `Values` takes them. Or `Values`; or a function of the id, or whatever else ``targets`` may be.
            None for none.
        batch_size: samples in a batch.
        dim: shape of a sample without its channels; the first sample's where left out.
        n_channels: size of the last axis; the first sample's where left out. Where it is 1, a sample of shape ``dim`` is taken.
            With ``dim`` left out as well, a row has the sample's own shape.
        n_classes: labels become one-hot rows of this length; or they are rows of it.
        shuffle: a new order for each epoch, which depends on ``seed`` and the epoch alone; else the order of ``list_IDs``.
        classes: labels are names, and become their positions in this list; ``"sorted"`` makes it of all names there are. See
            `Values`, and the attribute `classes`.
        data_dir: the folder of the files, which no id may lead out of; None where ids are paths.
        dtype: of ``X``; the first sample's where left out. Files are cast to it where NumPy calls that "same_kind".
        source: in place of files, a `Source`, or a function as `Function` takes it.
        inputs: in place of all that describes ``X``: a source, or a dict, tuple or list of them. A mapping or array from ids to
            values will do as well as `Values` of it, and a function of the id as well as `Function` of it.
        targets: in place of ``labels``, likewise.
        weights: of samples, likewise.
        transform: changes samples in the workers. ``transform(x, rng)`` where there is one unnamed input: ``x`` is its row, to be
            changed in place, or to be returned anew. ``transform(sample, rng)`` where inputs are named, or several: ``sample`` is
            a dict of all rows by field, with keys as in ``inputs``, ``targets`` and ``weights``; those of a tuple are ``"X[0]"``
            and so on, single ones ``"X"``, ``"y"``, ``"weights"``, and one that stands twice is ``"targets.mask"``, say. Or a
            dict of functions of a row and ``rng``, by field. ``rng`` is a `numpy.random.Generator` that depends on ``seed``, the
            epoch, and the sample's position in it.
        workers: processes that read; 0 reads in the calling one. ``"auto"`` begins with one for each processor that is free, at
            most 8, and has more or fewer as the trainer waits for data or not: `Stats.decisions` says when and why.
        slots: batches that shared memory has room for, at least 2. By default 4, and up to 16 where batches are small. There are
            fewer where shared memory is short, which is logged.
        seed: of orders and random numbers, an int from 0.
        epoch: whose order comes first, an int from 0.
        drop_last: leave out the last batch where it would be shorter than the others.
        on_error: what becomes of a sample that can't be had. ``"raise"``: the batch is an error. ``"replace"``: another sample of
            the epoch stands in for it, with all its fields: the same one in every run. It is logged, counted, and in `damaged`.
        max_damaged: the fraction of the samples that may be damaged with ``on_error="replace"``; with more, the run ends.
        timeout: seconds after which a read, or a function, that has not ended is given up, and its worker replaced; or None.

    Batches:
        ``(inputs,)``, ``(inputs, targets)`` or ``(inputs, targets, weights)``, each nested as it was given. ``X`` has shape
        ``(batch_size, *dim, n_channels)`` and ``dtype``; ``y`` has shape ``(batch_size,)`` and dtype int64, or
        ``(batch_size, n_classes)`` and float32. Each array begins at a multiple of 64 bytes.

    Attributes:
        list_IDs: the ids; like the other arguments here, to be read, but not to be set.
        labels: as they were given.
        batch_size: as it was given.
        dim: of the only input: as it was given, or found in the first sample; where neither it nor ``n_channels`` was given, the
            sample's whole shape. None where there are several inputs.
        n_channels: likewise; None where neither was given.
        n_classes: as it was given.
        classes: names of the classes, in the order of their numbers, or None. Of several targets: a dict by field.
        shuffle: as it was given.

    Raises:
        InputError: no training could start from these arguments; or a function can't be sent to a worker.
        SampleError: the first sample can't be had, or contradicts them. While batches are made: a sample can't be had; the batch
            may be asked for again.
        FunctionError: as SampleError, where a function of the user's is the cause.
        TooManyDamaged: while batches are made: more samples are damaged than ``max_damaged`` bears; the loader is closed then.
        WorkerDied: likewise, where workers die one after the other without having done anything. One that dies is replaced, and
            what it held is read again; a sample that three of them died of is damaged.
        StartError: likewise, where a worker could not begin.
        ClosedError: a batch is asked for after `close`.
        OSError: there is not enough shared memory.
    """

    def __init__(
        self,
        list_IDs: Iterable[object],
        labels: Any = None,
        batch_size: int = 32,
        dim: int | Iterable[int] | None = None,
        n_channels: int | None = None,
        n_classes: int | None = None,
        shuffle: bool = True,
        *,
        classes: Iterable[Any] | Literal["sorted"] | None = None,
        data_dir: str | os.PathLike[str] | None = "data",
        dtype: DTypeLike | None = None,
        source: Source | Callable[..., Any] | None = None,
        inputs: Any = None,
        targets: Any = None,
        weights: Any = None,
        transform: Callable[..., Any] | dict[str, Callable[..., Any]] | None = None,
        workers: int | Literal["auto"] = "auto",
        slots: int | None = None,
        seed: int = 0,
        epoch: int = 0,
        drop_last: bool = True,
        on_error: Literal["raise", "replace"] = "raise",
        max_damaged: float = 0.01,
        timeout: float | None = 300.0,
    ) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError(f"shmgen runs on Linux only so far, found {sys.platform}")
        batch_size = check_int(batch_size, "batch_size", 1)
        n_classes = None if n_classes is None else check_int(n_classes, "n_classes", 1)
        if isinstance(workers, str) and workers != "auto":
            raise InputError(f"workers: expected a number from 0, or 'auto', found {workers!r}")
        steers = workers == "auto"
        workers = _workers_at_first() if workers == "auto" else check_int(workers, "workers", 0)
        slots = None if slots is None else check_int(slots, "slots", 2)
        seed = check_int(seed, "seed", 0)
        epoch = check_int(epoch, "epoch", 0)
        if on_error not in ("raise", "replace"):
            raise InputError(f"on_error: expected 'raise' or 'replace', found {on_error!r}")
        max_damaged = check_float(max_damaged, "max_damaged", "a fraction from 0 to 1", lambda fraction: 0 <= fraction <= 1)
        if timeout is not None:
            timeout = check_float(timeout, "timeout", "seconds above 0, or None", lambda seconds: seconds > 0)

        self._ids = kept(list_IDs)
        self._sampler = Sampler(len(self._ids), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)
        if not self._sampler.batches:
            raise InputError(
                f"expected at least {batch_size if drop_last else 1} ids, found {len(self._ids)}; "
                "give more, a smaller batch_size, or drop_last=False"
            )
        if inputs is None:
            inputs = _only_input(source, data_dir, dim, n_channels, dtype)
        elif source is not None or dim is not None or n_channels is not None or dtype is not None:
            raise InputError("dim, n_channels, dtype and source describe the only input; where inputs is given, its sources do")
        if (n_classes is not None or classes is not None) and targets is not None:
            raise InputError("n_classes and classes are for labels; give them to the Values among targets")
        if labels is not None:
            if targets is not None:
                raise InputError("labels are the only target; give either labels or targets")
            targets = target(labels, n_classes, classes, self._ids)
        self._spec = BatchSpec(inputs, targets, weights, self._ids)
        self._layout = Layout(self._spec.bind(), min(batch_size, len(self._ids)))
        assembler = _assembler(self._spec, self._layout, seed, transform)
        self._labels, self._n_classes, self._has_channels = labels, n_classes, dim is not None or n_channels is not None

        self._passes = Passes(self._sampler.batches, shuffle=shuffle, epoch=epoch)
        self._damage = Damage(len(self._ids), replaces=on_error == "replace", max_fraction=max_damaged)
        with ExitStack() as undo:
            self._ring = Ring(self._layout, slots or min(MAX_SLOTS, max(MIN_SLOTS, SLOTS_BYTES // self._layout.slot_bytes)))
            undo.callback(self._ring.close)
            self._workers: Workers = Pool(workers, self._ring, assembler) if workers else InProcess(self._ring, assembler)
            undo.callback(self._workers.stop)
            in_flight = max(MIN_IN_FLIGHT, IN_FLIGHT_BYTES // self._layout.slot_bytes)
            self._schedule = Schedule(self._ring.slots, max(1, workers), self._sampler.size, in_flight=in_flight)
            builder = BatchBuilder(self._ids, self._sampler, self._spec, self._ring, self._passes, assembler, self._damage)
            # Nobody can give up what runs in the calling process.
            patience = timeout if timeout is not None and workers else math.inf
            self._prefetcher = Prefetcher(
                self._ring,
                self._workers,
                Supervisor(self._workers, max(1, workers), self._schedule, builder, self._ring, patience),
                self._schedule,
                builder,
                # With nobody to read ahead, only what is asked for is read.
                upcoming=self._passes.upcoming if workers else _nothing,
                autoscaler=Autoscaler(AutoscalePolicy(workers), _most_workers) if steers else None,
            )
            self._prefetcher.read_ahead()
            # Nothing that the delivery holds leads back to the loader.
            self._stop = weakref.finalize(self, self._prefetcher.close, ClosedError("nobody held it any more"))
            undo.pop_all()

    _warned_of_misses = False

    list_IDs = Fixed[Sequence[Any]](lambda loader: loader._ids)
    labels = Fixed[Any](lambda loader: loader._labels)
    batch_size = Fixed[int](lambda loader: loader._sampler.batch_size)
    dim = Fixed["tuple[int, ...] | None"](lambda loader: loader._row()[0])
    n_channels = Fixed["int | None"](lambda loader: loader._row()[1])
    n_classes = Fixed["int | None"](lambda loader: loader._n_classes)
    classes = Fixed["tuple[Any, ...] | dict[str, tuple[Any, ...]] | None"](lambda loader: loader._spec.classes)
    shuffle = Fixed[bool](lambda loader: loader._sampler.shuffle)

    def _row(self) -> tuple[tuple[int, ...] | None, int | None]:
        """`dim` and `n_channels` of the only input."""
        if not self._spec.has_one_input:
            return None, None
        shape = self._layout.fields[0].shape
        return (shape[:-1], shape[-1]) if self._has_channels else (shape, None)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._sampler.batches

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """The batches of the next epoch, whose turn comes with the first of them that is asked for."""
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
    def damaged(self) -> tuple[Damaged, ...]:
        """The samples that could not be had and for which others stood in, in the order in which they were found."""
        return tuple(self._damage.found.values())

    @property
    def error(self) -> Exception | None:
        """The error that a request for a batch last ended in, which has been logged, too; None if there was none."""
        return self._prefetcher.error

    def close(self) -> None:
        """End the workers and give up the memory; what batches still held show stays.

        May be called again, from any thread, also while others wait for a batch.
        """
        self._prefetcher.close(ClosedError("it was closed: make another"))
        self._stop.detach()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(NO_COPY.format(type(self).__name__))

    def open_pass(self, *, by_hand: bool = False) -> Pass:
        """Begin an iteration over the next epoch, for `batch`.

        Args:
            by_hand: what is asked for without a pass meanwhile, and until `on_epoch_end`, belongs to it.
        """
        with self._prefetcher.entered():
            return self._passes.open(by_hand=by_hand)

    def take_back(self, opened: Pass) -> None:
        """The iteration was no more than a look: the next one gets its epoch again."""
        with self._prefetcher.entered():
            self._passes.take_back(opened)

    def forget(self) -> None:
        """What was asked for without a pass was no more than a look."""
        with self._prefetcher.entered():
            self._passes.forget()

    def on_epoch_end(self) -> None:
        """What was asked for without a pass has been used: what is asked for from now on belongs to the next epoch."""
        with self._prefetcher.entered():
            self._passes.end()

    def batch(self, index: SupportsIndex, of: Pass | None = None, drain: Callable[[], object] | None = None) -> tuple[Any, ...]:
        """The batch that ``index`` means in a pass.

        With ``shuffle``, an index not asked for before in this pass means the next batch of the epoch's order; else batch
        ``index``.

        Args:
            index: from ``-len(loader)`` to ``len(loader) - 1``.
            of: the pass, as `open_pass` began it; else one by hand, which is a look at the next epoch until `on_epoch_end`.
            drain: called again and again while all slots are held: makes a framework let go of what it no longer needs.

        Raises:
            IndexError: there is no batch of this index.
            TypeError: it is no int.
        """
        number = check_index(index, len(self))
        with self._prefetcher.entered():
            batch = self._passes.deal(number, of)
            last = self._passes.last
            warned = self._warned_of_misses
            self._warned_of_misses = warned or (last is not None and last.misses >= MISSES_BEFORE_WARNING)
        if self._warned_of_misses and not warned:
            warnings.warn(
                "batches of a loader with shuffle=False are asked for in an order that can't be foreseen, so none are read "
                "ahead: pass shuffle=False to fit() as well, or shuffle=True to the Sequence",
                stacklevel=3,
            )
        return self._spec.unflatten(self._prefetcher.fetch(batch, drain))


class _Epoch(Iterator[tuple[Any, ...]]):
    """One epoch's batches; several threads may share it. It holds the loader, which nobody else may."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._pass: Pass | None = None
        self._indexes = iter(range(len(loader)))

    def __next__(self) -> tuple[Any, ...]:
        loader = self._loader
        with loader._prefetcher.entered():
            index = next(self._indexes)
            self._pass = self._pass or loader._passes.open()
            batch = loader._passes.deal(index, self._pass)
        return loader._spec.unflatten(loader._prefetcher.fetch(batch))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(NO_COPY.format("Loader's iterator"))


def _only_input(
    source: Source | Callable[..., Any] | None,
    data_dir: str | os.PathLike[str] | None,
    dim: int | Iterable[int] | None,
    n_channels: int | None,
    dtype: DTypeLike | None,
) -> Source:
    """The source of ``X`` in the blog's terms."""
    if source is None:
        return Npy(data_dir, dim, n_channels, dtype)
    if not isinstance(source, Source):
        return Function(source, dim, n_channels, dtype)
    if dim is not None or n_channels is not None or dtype is not None:
        raise InputError(f"give dim, n_channels and dtype to {type(source).__name__} itself, as far as it takes them")
    return source


def _assembler(
    spec: BatchSpec, layout: Layout, seed: int, transform: Callable[..., Any] | dict[str, Callable[..., Any]] | None
) -> BatchAssembler:
    parts = [
        FieldSpec(
            field.name,
            None if isinstance(source, Values) else source,
            field.shape,
            dtype_text(field.dtype),
            STATUS_PAGE_BYTES + offset,
            field.row_bytes,
        )
        for field, offset, source in zip(layout.fields, layout.offsets, spec.sources.values(), strict=True)
    ]
    by_field: dict[str, Callable[..., Any]] = {}
    whole = None
    if isinstance(transform, dict):
        by_field = transform
    elif callable(transform) and spec.has_one_input:
        by_field = {parts[0].name: transform}
    elif transform is not None:
        whole = transform
    if unknown := by_field.keys() - spec.sources.keys():
        raise InputError(f"transform: expected fields {', '.join(map(repr, spec.sources))}, found {sorted(unknown)}")
    for function in (*by_field.values(), *([] if whole is None else [whole])):
        if not callable(function):
            raise InputError(f"transform: expected a function, or a dict of functions by field, found {function!r}")
    return BatchAssembler(parts, layout.slot_bytes, seed, by_field, whole)


def _nothing() -> Iterator[BatchId]:
    return iter(())


def _workers_at_first() -> int:
    """One for each processor that others leave idle."""
    others = os.getloadavg()[0]
    return max(1, min(MAX_AT_FIRST, round(processors() - others)))


def _most_workers(workers: int, io_wait: float) -> int:
    """How many there may be where there are ``workers``, which wait for a disk or a network for a fraction of their work."""
    for_each = WAITING_WORKERS if io_wait > WAITING else 1
    return min(MAX_WORKERS, int(for_each * max(1.0, processors())), workers + available() // WORKER_BYTES)
