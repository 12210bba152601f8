"""The arguments of a loader: each is named, typed, documented and checked here, once.

`shmgen.Sequence` and `shmgen.tune` take the same, and add some of their own to these classes.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from shmgen._checks import check_choice, check_float, check_int
from shmgen._memory.status_page import MAX_READERS
from shmgen._plan.damaged_samples import OnError
from shmgen._plan.passes import LAST_EPOCH
from shmgen._plan.sampler import ALONE, Sampler, Shard, Tail
from shmgen._plan.weighted import WeightTable
from shmgen._ranks import find_shard
from shmgen._samples.dataset import Sample, is_dataset
from shmgen._samples.ids import kept
from shmgen._samples.sample_spec import check_dtype, check_shape
from shmgen._sources.base import BuiltinSource, Source, SourceField
from shmgen._sources.batch_spec import BatchSpec, target
from shmgen._sources.function import Function
from shmgen._sources.npy import Npy
from shmgen._sources.values import Ones, Values, numbers_of
from shmgen._urls import is_url
from shmgen._worker.transform import Transform
from shmgen.errors import InputError

if TYPE_CHECKING:
    from typing import TypeAlias

    from _typeshed import SupportsKeysAndGetItem
    from numpy.typing import DTypeLike

    from shmgen._samples.dataset import Dataset
    from shmgen._storage.remote import Remote

    Part: TypeAlias = (
        Source | SourceField | Mapping[Any, Any] | SupportsKeysAndGetItem[Any, Any] | Iterable[Any] | Callable[[Any], Any]
    )
    """A field of a batch: a source, one of its fields, values as `Values` takes them, or a function; or a dict, tuple or list of
    these."""

    PerId: TypeAlias = Values | Mapping[Any, float] | Iterable[float] | Callable[[Any], float]
    """A number for each id."""


@dataclass(frozen=True, eq=False, repr=False)
class DataOptions:
    """All arguments of a loader except the numbers of its workers and reads.

    Args:
        list_IDs: the samples' ids. An id that occurs twice is two samples. Or the `pathlib.Path` of a text file with one id a
            line, such as ``scan --good`` writes. Or a data set: torch's, or any object that has ``__len__`` and
            ``__getitem__`` and cannot be iterated over. Then the ids are 0, 1, 2, ..., and the data set returns the samples:
            ``x``, ``(x, y)``, ``(x, y, weight)`` or a dict of inputs.
        labels: an int for each id, or the name of one of ``classes``, or a row: a mapping from id to them, or a list, an array or
            a pandas column, as `Values` takes them. Or `Values`, or a function of the id, or anything else that ``targets`` may
            be. None for no labels.
        batch_size: samples in a batch; of all ranks together, if there are several.
        dim: shape of a sample without its channels; or its whole shape, if ``n_channels`` is left out. By default that of the
            first sample.
        n_channels: size of the last axis. By default that of the first sample, if ``dim`` leaves it out. If it is 1, samples of
            shape ``dim`` are accepted too, and get that axis.
        n_classes: labels, from any source, become one-hot rows of this length, unless they are such rows already.
        shuffle: a new order for each epoch, which depends on ``seed`` and the epoch alone; else the order of ``list_IDs``.
        classes: labels are names, and become their positions in this list. ``"sorted"``: in the sorted list of all names.
            See `Values`, and the attribute ``classes``.
        data_dir: the folder of the files, or its URL, or `Remote`, as `Npy` takes it; ids may not lead out of it. None if ids are
            paths.
        cache: for a URL: a folder on a local disk that keeps the files; see `Remote`.
        dtype: of ``X``. By default that of the first sample. Files are cast to it if NumPy calls that cast "same_kind".
        pad_value: fills the rest of a row of ``X`` if a sample is smaller than ``dim`` along any axis; see `Npy`.
        source: in place of files: a `Source`, one of its fields, or a function as `Function` takes it. If it has several
            fields, they are the inputs, a dict; or, if it is a tuple, and there are no labels and targets, ``(x, y)`` or ``(x, y,
            weight)``.
        inputs: in place of everything that describes ``X``: a source, or a dict, tuple or list of sources. A mapping or array of
            values is taken as `Values` of it, and a function of the id as `Function` of it.
        targets: in place of ``labels``; the same kinds as for ``inputs``.
        weights: of samples, for the loss; the same kinds as for ``inputs``.
        sampling_weights: how often each sample is drawn, relative to the others: a number from 0 for each id, as `Values` takes
            them. An epoch has as many samples as there are ids, and each comes as often as its weight says, rounded up or down by
            chance, so some come several times, and others not at all. By default, each comes exactly once.
        lengths: how long each sample is, in any unit: a number from 0 for each id, as `Values` takes them. Batches then hold
            samples of similar length: fifty batches of the epoch's order are sorted together, and then shuffled. Each sample
            comes as often as without.
        trim: ``"longest"``: padded fields, and their masks, are cut along their first axis to the longest sample of the batch.
            They are views, which a framework that needs contiguous memory copies. None: all batches have the shape of a row.
        transform: changes samples in the workers. With one unnamed input it is ``transform(x, rng)``: it changes ``x``, the
            input's row, in place, or returns a new one. With several inputs, or named ones, it is ``transform(sample, rng)``:
            ``sample`` is a dict of all rows by field, with the keys of ``inputs``, ``targets`` and ``weights``. Fields of a tuple
            are ``"X[0]"`` and so on, single ones ``"X"``, ``"y"``, ``"weights"``; a name used twice is ``"targets.mask"``, for
            example. Or a dict from field to a function of its row and ``rng``. ``rng`` is a `numpy.random.Generator` that depends
            on ``seed``, the epoch, and the sample's position in the epoch. If ``dim`` is given, samples may be larger than a row,
            or vary in size: a transform gets them as they are, and returns a row, a random crop for instance. A function with a
            parameter called ``epoch`` gets the epoch, an int from 0: ``transform(x, rng, epoch)``.
        setup: a function without arguments that each worker calls once, before it reads: it may register openers, set module
            variables, or open connections, since workers import modules afresh. With ``workers=0`` the main process calls it.
        slots: batches that shared memory has room for, at least 2. By default 4, and up to 16 if batches are small. If shared
            memory is short there are fewer, which is logged.
        seed: of orders and random numbers, an int from 0.
        epoch: the first epoch, an int from 0.
        tail: what becomes of the last batch if the samples do not fill it. ``"drop"``: it is left out. ``"keep"``: it is shorter,
            which is not possible with several ranks. ``"wrap"``: the epoch's first samples fill it up. ``"pad"``: likewise, and
            there are weights, those given or else ones: the rows that fill it up weigh 0, and all others accordingly more, so
            that losses and weighted metrics are those of the samples.
        shard: (rank, world): this process is one of several that train together, and gets its part of each batch, ``batch_size /
            world`` rows. ``"auto"``: as reported by the framework or launcher in use. None: this process gets all.
        on_error: what happens if a sample can't be read. ``"raise"``: its batch is an error. ``"replace"``: another sample
            of the epoch replaces it, with all its fields: the same one in every run. That is logged, counted, and listed in
            ``damaged``. ``"collect"``: it is only listed in ``damaged``, and its row may hold anything: for one pass over all
            samples, as `scan` makes it.
        max_damaged: the fraction of the samples that may be unreadable if that is no error. With more, the run ends.
        timeout: seconds after which a read or a function that has not ended is given up and its worker replaced; None for
            never.
    """

    list_IDs: Iterable[object] | os.PathLike[str] | Dataset
    labels: Part | None = None
    batch_size: int = 32
    dim: int | Iterable[int] | None = None
    n_channels: int | None = None
    n_classes: int | None = None
    shuffle: bool = True
    _: KW_ONLY
    classes: Iterable[Any] | Literal["sorted"] | None = None
    data_dir: str | os.PathLike[str] | Remote | None = "data"
    cache: str | os.PathLike[str] | None = None
    dtype: DTypeLike | None = None
    pad_value: float | None = None
    source: Source | SourceField | Callable[..., Any] | None = None
    inputs: Part | None = None
    targets: Part | None = None
    weights: Part | None = None
    sampling_weights: PerId | None = None
    lengths: PerId | None = None
    trim: Literal["longest"] | None = None
    transform: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None
    setup: Callable[[], object] | None = None
    slots: int | None = None
    seed: int = 0
    epoch: int = 0
    tail: Literal["drop", "keep", "wrap", "pad"] = "drop"
    shard: tuple[int, int] | Literal["auto"] | None = None
    on_error: OnError = "raise"
    max_damaged: float = 0.01
    timeout: float | None = 300.0

    ids: Sequence[Any] = field(init=False)
    """``list_IDs``, out of reach of later changes."""

    sampler: Sampler = field(init=False)
    """Which samples each batch holds."""

    spec: BatchSpec = field(init=False)
    """The fields of a batch. Their sources are copies, for one loader to bind."""

    transforms: dict[str | None, Transform] = field(init=False)
    """By field: the function that changes its rows. By None: the only function, which changes whole samples, dicts of rows."""

    def __post_init__(self) -> None:
        self._keep(
            batch_size=check_int(self.batch_size, "batch_size", 1),
            dim=check_shape(self.dim),
            n_channels=None if self.n_channels is None else check_int(self.n_channels, "n_channels", 1),
            n_classes=None if self.n_classes is None else check_int(self.n_classes, "n_classes", 1),
            dtype=check_dtype(self.dtype),
            # Others make loaders of the same arguments: an iterator would be used up by then.
            classes=tuple(self.classes) if isinstance(self.classes, Iterator) else self.classes,
            slots=None if self.slots is None else check_int(self.slots, "slots", 2),
            seed=check_int(self.seed, "seed", 0),
            epoch=check_int(self.epoch, "epoch", 0, LAST_EPOCH),
            max_damaged=check_float(self.max_damaged, "max_damaged", "a fraction from 0 to 1", lambda number: 0 <= number <= 1),
            timeout=None
            if self.timeout is None
            else check_float(self.timeout, "timeout", "seconds above 0, or None", lambda number: number > 0),
        )
        tail = Tail(check_choice(self.tail, "tail", [tail.value for tail in Tail]))
        check_choice(self.trim, "trim", ["longest", None])
        shard = self._shard(tail)
        check_choice(self.on_error, "on_error", get_args(OnError))
        if self.setup is not None and not callable(self.setup):
            raise InputError(f"setup: expected a function without arguments, found {self.setup!r}")
        if is_dataset(self.list_IDs):
            if self.source is not None or self.inputs is not None:
                found = "a data set, which has the samples"
                raise InputError(f"list_IDs: expected ids beside source and inputs, found {found}; give one")
            self._keep(source=Sample(self.list_IDs), list_IDs=range(len(self.list_IDs)))
        ids = kept(self.list_IDs)
        self._keep(list_IDs=ids, ids=ids, sampler=self._sampler(ids, tail, shard))
        spec = BatchSpec(
            self._inputs(),
            self._targets(),
            self.weights,
            ids,
            is_sample=self.source is not None,
            default_weights=Ones() if tail is Tail.PAD else None,
            n_classes=self.n_classes,
            trims=self.trim is not None,
            skips_damaged=self.on_error != "raise",
        )
        self._keep(spec=spec)
        self._keep(transforms=self._transforms())

    @property
    def transformed(self) -> frozenset[str]:
        """The fields that a transform changes, or may change."""
        return frozenset(self.spec.names if None in self.transforms else self.transforms)  # type: ignore[arg-type]

    def _keep(self, **checked: Any) -> None:
        """Replace arguments by what was made of them; no other code sets an attribute, since this is frozen."""
        vars(self).update(checked)

    def _shard(self, tail: Tail) -> Shard:
        """``shard``, checked and found."""
        shard = ALONE if self.shard is None else find_shard() if self.shard == "auto" else _pair(self.shard)
        rank, world = shard
        if not 0 <= rank < world:
            raise InputError(f"shard: expected a rank from 0 to {world - 1}, found {rank} of {world}")
        if self.batch_size % world:
            expected = f"a multiple of the {world} ranks, since it counts samples of all together"
            raise InputError(f"batch_size: expected {expected}, found {self.batch_size}")
        if tail is Tail.KEEP and world > 1:
            found = f"the last batch would have other rows on each of the {world} ranks"
            raise InputError(f"tail='keep': {found}; give 'drop', 'wrap' or 'pad'")
        return shard

    def _sampler(self, ids: Sequence[Any], tail: Tail, shard: Shard) -> Sampler:
        """All arguments that say which samples a batch holds, checked."""
        if tail.batches(len(ids), self.batch_size) == 0:
            fewest = self.batch_size if tail is Tail.DROP else 1
            other = "keep" if shard.world == 1 else "wrap"
            remedy = f"give more, a smaller batch_size, or tail={other!r}"
            raise InputError(f"expected at least {fewest} ids, found {len(ids)}; {remedy}")
        if self.sampling_weights is not None and not self.shuffle:
            raise InputError("sampling_weights: expected with shuffle=True, since samples are drawn by chance, found False")
        if self.lengths is not None and not self.shuffle:
            raise InputError("lengths: expected with shuffle=True, since they decide which samples make a batch, found False")
        weights = self.sampling_weights
        return Sampler(
            len(ids),
            self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
            tail=tail,
            shard=shard,
            weights=None if weights is None else WeightTable(numbers_of(weights, ids, "sampling_weights")),
            lengths=None if self.lengths is None else numbers_of(self.lengths, ids, "lengths"),
        )

    def _inputs(self) -> Any:
        """``inputs``, or the only input, which ``dim``, ``n_channels``, ``dtype`` and ``pad_value`` describe."""
        if self.data_dir not in (None, "data") and (self.inputs is not None or self.source is not None):
            expected = "where the only input is a folder of .npy files"
            remedy = "leave it out, or give a folder to each source: Npy(folder), Images(folder)"
            raise InputError(f"data_dir: expected {expected}, found {str(self.data_dir)!r} beside source or inputs; {remedy}")
        described = [name for name in ("dim", "n_channels", "dtype", "pad_value") if getattr(self, name) is not None]
        if self.cache is not None and not (is_url(self.data_dir) and self.inputs is None and self.source is None):
            expected = "with the URL of a folder as data_dir, such as 's3://bucket/folder', and no other source"
            raise InputError(f"cache: expected {expected}; else give it to Remote itself: Npy(Remote(url, cache=...))")
        if self.inputs is not None:
            if self.source is not None or described:
                both = "dim, n_channels, dtype, pad_value and source"
                raise InputError(f"{both} describe the only input; where inputs is given, its sources do")
            return self.inputs
        if self.source is None:
            folder = self.data_dir
            if self.cache is not None:
                from shmgen._storage.remote import Remote

                folder = Remote(str(folder), cache=self.cache)
            return Npy(folder, self.dim, self.n_channels, self.dtype, pad_value=self.pad_value)
        if isinstance(self.source, str | os.PathLike):
            remedy = "pass data_dir=folder for .npy files, or as source Images(folder), or NpyRows(file) for rows of one file"
            raise InputError(f"source: expected a source or a function, found {str(self.source)!r}; {remedy}")
        if not isinstance(self.source, Source | SourceField):
            return Function(self.source, self.dim, self.n_channels, self.dtype, pad_value=self.pad_value)
        if described:
            source, key = (self.source.source, self.source.key) if isinstance(self.source, SourceField) else (self.source, None)
            name, takes = type(source).__name__, ", ".join(inspect.signature(type(source)).parameters) or "no arguments"
            remedy = f"leave {' and '.join(described)} out: {name} takes {takes}; or pass a function that reads samples as source"
            if key is not None or (isinstance(source, BuiltinSource) and source.finds_fields):
                remedy = f"pass source[{'key' if key is None else repr(key)}].shaped({'=..., '.join(described)}=...)"
            expected = "where the only input is a folder of .npy files or a function"
            raise InputError(f"{', '.join(described)}: expected {expected}, found {name}; {remedy}")
        return self.source

    def _targets(self) -> Any:
        """``targets``, or the only target, which ``labels``, ``n_classes`` and ``classes`` describe."""
        if self.targets is not None and (self.n_classes is not None or self.classes is not None):
            raise InputError("n_classes and classes are for labels; give them to the Values among targets")
        if self.labels is None:
            return self.targets
        if self.targets is not None:
            raise InputError("labels are the only target; give either labels or targets")
        return target(self.labels, self.n_classes, self.classes, self.ids)

    def _transforms(self) -> dict[str | None, Transform]:
        """What `transforms` has, checked."""
        names = [name for name in self.spec.names if not self.spec.measured(name)]
        if self.transform is None:
            return {}
        if not isinstance(self.transform, Mapping):
            if self.spec.has_one_input and self.spec.measured(next(iter(self.spec.names))):
                raise InputError("transform: expected an input that is read, found one that is measured; pass a dict by field")
            return {names[0] if self.spec.has_one_input else None: Transform.checked(self.transform)}
        if unknown := self.transform.keys() - set(names):
            raise InputError(f"transform: expected fields {', '.join(map(repr, names))}, found {sorted(unknown)}")
        return {name: Transform.checked(function) for name, function in self.transform.items()}


def _pair(shard: object) -> Shard:
    if not isinstance(shard, tuple | list) or len(shard) != 2:
        raise InputError(f"shard: expected (rank, world), 'auto' or None, found {shard!r}")
    return Shard(check_int(shard[0], "rank of shard", 0), check_int(shard[1], "world of shard", 1))


@dataclass(frozen=True, eq=False, repr=False)
class Options(DataOptions):
    """The arguments of a loader.

    Args:
        workers: processes that read; with 0, the main process reads. At most 32 are started, or 8 for each processor if that is
            more. ``"auto"`` begins with one for each processor that is free, at most 8, and has more or fewer as the trainer
            waits for data or not: `Stats.decisions` says when and why.
        reads: reads in flight in each worker, from 1 to 128. ``"auto"`` has more than one if reading waits for a disk or a
            network, as long as that pays. Whatever is given, it is 1 with ``workers=0``, and if any source is not ``concurrent``:
            a function is only as ``Function(f, concurrent=True)``.
    """

    _: KW_ONLY
    workers: int | Literal["auto"] = "auto"
    reads: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        self._keep(workers=_int_or_auto(self.workers, "workers", 0), reads=_int_or_auto(self.reads, "reads", 1, MAX_READERS))
        super().__post_init__()


def _int_or_auto(value: Any, name: str, least: int, most: int | None = None) -> Any:
    if isinstance(value, str):
        if value != "auto":
            raise InputError(f"{name}: expected a number, or 'auto', found {value!r}")
        return value
    return check_int(value, name, least, most)
