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

from shmgen._arguments import Fixed, check_index, dtype_text, real, whole
from shmgen._crew import CrewSize, Steering
from shmgen._damage import Damage, Damaged
from shmgen._delivery import Delivery
from shmgen._files import Npy
from shmgen._filler import Filler, Part
from shmgen._ids import kept
from shmgen._layout import Layout
from shmgen._machine import available, processors
from shmgen._order import Batch, Order
from shmgen._passes import Pass, Passes
from shmgen._pool import InProcess, Pool, Workers
from shmgen._ring import BOARD_BYTES, Ring
from shmgen._samples import Samples
from shmgen._schedule import Schedule
from shmgen._source import Function, Source
from shmgen._stats import WAITING, Stats
from shmgen._structure import Structure, target
from shmgen._values import Values
from shmgen._watch import Watch
from shmgen.errors import ClosedError, InputError

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import DTypeLike

MOST_AT_FIRST = 8
"""``workers="auto"`` begins with no more."""

MOST_WORKERS = 32
"""``workers="auto"`` goes no higher."""

WORKER_BYTES = 1 << 26
"""Memory that must be left for another worker."""

WAITING_WORKERS = 4
"""Where workers wait for a disk or a network, there may be so many for each processor."""

FEWEST_SLOTS, MOST_SLOTS, SLOTS_BYTES = 4, 16, 1 << 26
"""The default number of slots: as many as fit in so many bytes, within these bounds."""

FEWEST_IN_FLIGHT, IN_FLIGHT_BYTES = 4, 1 << 23
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
        batch_size = whole(batch_size, "batch_size", 1)
        n_classes = None if n_classes is None else whole(n_classes, "n_classes", 1)
        if isinstance(workers, str) and workers != "auto":
            raise InputError(f"workers: expected a number from 0, or 'auto', found {workers!r}")
        steers = workers == "auto"
        workers = _workers_at_first() if workers == "auto" else whole(workers, "workers", 0)
        slots = None if slots is None else whole(slots, "slots", 2)
        seed = whole(seed, "seed", 0)
        epoch = whole(epoch, "epoch", 0)
        if on_error not in ("raise", "replace"):
            raise InputError(f"on_error: expected 'raise' or 'replace', found {on_error!r}")
        max_damaged = real(max_damaged, "max_damaged", "a fraction from 0 to 1", lambda fraction: 0 <= fraction <= 1)
        if timeout is not None:
            timeout = real(timeout, "timeout", "seconds above 0, or None", lambda seconds: seconds > 0)

        self._ids = kept(list_IDs)
        self._order = Order(len(self._ids), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)
        if not self._order.batches:
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
        self._structure = Structure(inputs, targets, weights, self._ids)
        self._layout = Layout(self._structure.bind(), min(batch_size, len(self._ids)))
        filler = _filler(self._structure, self._layout, seed, transform)
        self._labels, self._n_classes, self._has_channels = labels, n_classes, dim is not None or n_channels is not None

        self._passes = Passes(self._order.batches, shuffle=shuffle, epoch=epoch)
        self._damage = Damage(len(self._ids), replaces=on_error == "replace", most=max_damaged)
        with ExitStack() as undo:
            self._ring = Ring(self._layout, slots or min(MOST_SLOTS, max(FEWEST_SLOTS, SLOTS_BYTES // self._layout.slot_bytes)))
            undo.callback(self._ring.close)
            self._crew: Workers = Pool(workers, self._ring, filler) if workers else InProcess(self._ring, filler)
            undo.callback(self._crew.stop)
            in_flight = max(FEWEST_IN_FLIGHT, IN_FLIGHT_BYTES // self._layout.slot_bytes)
            self._schedule = Schedule(self._ring.slots, max(1, workers), self._order.size, in_flight=in_flight)
            samples = Samples(self._ids, self._order, self._structure, self._ring, self._passes, filler, self._damage)
            # Nobody can give up what runs in the calling process.
            patience = timeout if timeout is not None and workers else math.inf
            self._delivery = Delivery(
                self._ring,
                self._crew,
                Watch(self._crew, max(1, workers), self._schedule, samples, self._ring, patience),
                self._schedule,
                samples,
                # With nobody to read ahead, only what is asked for is read.
                upcoming=self._passes.upcoming if workers else _nothing,
                steering=Steering(CrewSize(workers), _most_workers) if steers else None,
            )
            self._delivery.read_ahead()
            # Nothing that the delivery holds leads back to the loader.
            self._stop = weakref.finalize(self, self._delivery.close, ClosedError("nobody held it any more"))
            undo.pop_all()

    _warned_of_misses = False

    list_IDs = Fixed[Sequence[Any]](lambda loader: loader._ids)
    labels = Fixed[Any](lambda loader: loader._labels)
    batch_size = Fixed[int](lambda loader: loader._order.batch_size)
    dim = Fixed["tuple[int, ...] | None"](lambda loader: loader._row()[0])
    n_channels = Fixed["int | None"](lambda loader: loader._row()[1])
    n_classes = Fixed["int | None"](lambda loader: loader._n_classes)
    classes = Fixed["tuple[Any, ...] | dict[str, tuple[Any, ...]] | None"](lambda loader: loader._structure.classes)
    shuffle = Fixed[bool](lambda loader: loader._order.shuffle)

    def _row(self) -> tuple[tuple[int, ...] | None, int | None]:
        """`dim` and `n_channels` of the only input."""
        if not self._structure.has_one_input:
            return None, None
        shape = self._layout.fields[0].shape
        return (shape[:-1], shape[-1]) if self._has_channels else (shape, None)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._order.batches

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """The batches of the next epoch, whose turn comes with the first of them that is asked for."""
        return _Epoch(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        fields = ", ".join(f"{field.name} {field.dtype}{list(field.shape)}" for field in self._layout.fields)
        state = f"ended: {self._delivery.ended}" if self._delivery.ended else repr(self._schedule)
        return (
            f"<{type(self).__name__}: {len(self._ids):,} samples in {len(self):,} batches of {self._order.batch_size} "
            f"({fields}), {self._crew!r}, {state}>"
        )

    @property
    def stats(self) -> Stats:
        """What has been done so far."""
        return self._delivery.stats

    @property
    def damaged(self) -> tuple[Damaged, ...]:
        """The samples that could not be had and for which others stood in, in the order in which they were found."""
        return tuple(self._damage.found.values())

    @property
    def error(self) -> Exception | None:
        """The error that a request for a batch last ended in, which has been logged, too; None if there was none."""
        return self._delivery.error

    def close(self) -> None:
        """End the workers and give up the memory; what batches still held show stays.

        May be called again, from any thread, also while others wait for a batch.
        """
        self._delivery.close(ClosedError("it was closed: make another"))
        self._stop.detach()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(NO_COPY.format(type(self).__name__))

    def open_pass(self, *, by_hand: bool = False) -> Pass:
        """Begin an iteration over the next epoch, for `batch`.

        Args:
            by_hand: what is asked for without a pass meanwhile, and until `on_epoch_end`, belongs to it.
        """
        with self._delivery.entered():
            return self._passes.open(by_hand=by_hand)

    def take_back(self, opened: Pass) -> None:
        """The iteration was no more than a look: the next one gets its epoch again."""
        with self._delivery.entered():
            self._passes.take_back(opened)

    def forget(self) -> None:
        """What was asked for without a pass was no more than a look."""
        with self._delivery.entered():
            self._passes.forget()

    def on_epoch_end(self) -> None:
        """What was asked for without a pass has been used: what is asked for from now on belongs to the next epoch."""
        with self._delivery.entered():
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
        with self._delivery.entered():
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
        return self._structure.nest(self._delivery.fetch(batch, drain))


class _Epoch(Iterator[tuple[Any, ...]]):
    """One epoch's batches; several threads may share it. It holds the loader, which nobody else may."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._pass: Pass | None = None
        self._indexes = iter(range(len(loader)))

    def __next__(self) -> tuple[Any, ...]:
        loader = self._loader
        with loader._delivery.entered():
            index = next(self._indexes)
            self._pass = self._pass or loader._passes.open()
            batch = loader._passes.deal(index, self._pass)
        return loader._structure.nest(loader._delivery.fetch(batch))

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


def _filler(
    structure: Structure, layout: Layout, seed: int, transform: Callable[..., Any] | dict[str, Callable[..., Any]] | None
) -> Filler:
    parts = [
        Part(
            field.name,
            None if isinstance(source, Values) else source,
            field.shape,
            dtype_text(field.dtype),
            BOARD_BYTES + offset,
            field.row_bytes,
        )
        for field, offset, source in zip(layout.fields, layout.offsets, structure.sources.values(), strict=True)
    ]
    by_field: dict[str, Callable[..., Any]] = {}
    whole = None
    if isinstance(transform, dict):
        by_field = transform
    elif callable(transform) and structure.has_one_input:
        by_field = {parts[0].name: transform}
    elif transform is not None:
        whole = transform
    if unknown := by_field.keys() - structure.sources.keys():
        raise InputError(f"transform: expected fields {', '.join(map(repr, structure.sources))}, found {sorted(unknown)}")
    for function in (*by_field.values(), *([] if whole is None else [whole])):
        if not callable(function):
            raise InputError(f"transform: expected a function, or a dict of functions by field, found {function!r}")
    return Filler(parts, layout.slot_bytes, seed, by_field, whole)


def _nothing() -> Iterator[Batch]:
    return iter(())


def _workers_at_first() -> int:
    """One for each processor that others leave idle."""
    others = os.getloadavg()[0]
    return max(1, min(MOST_AT_FIRST, round(processors() - others)))


def _most_workers(workers: int, reading: float) -> int:
    """How many there may be where there are ``workers``, which wait for a disk or a network for a fraction of their work."""
    for_each = WAITING_WORKERS if reading > WAITING else 1
    return min(MOST_WORKERS, int(for_each * max(1.0, processors())), workers + available() // WORKER_BYTES)
