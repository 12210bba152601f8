"""The arguments of a loader: each is named, typed, documented and checked here, once.

`shmgen.Sequence` and `shmgen.tune` take the same, and add some of their own to these classes.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, get_args

from shmgen._checks import check_float, check_int
from shmgen._engine.ranks import find_shard
from shmgen._memory.status_page import MAX_READERS
from shmgen._plan.by_length import Lengths
from shmgen._plan.damage import OnError
from shmgen._plan.sampler import ALONE, Shard, Tail
from shmgen._plan.weighted import WeightTable
from shmgen._samples.dataset import Sample, is_dataset
from shmgen._samples.ids import kept
from shmgen._samples.sample_spec import check_dtype, check_shape
from shmgen._sources.base import Source, SourceField
from shmgen._sources.batch_spec import BatchSpec, target
from shmgen._sources.function import Function
from shmgen._sources.npy import Npy
from shmgen._sources.numbers import numbers_of
from shmgen._sources.values import Ones, Values
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

ELSEWHERE = {
    # what other libraries call an argument -> what to pass here
    **dict.fromkeys(["num_workers", "n_workers", "worker_count", "num_parallel_calls", "use_multiprocessing"], "workers"),
    **dict.fromkeys(
        ["prefetch_factor", "prefetch", "prefetch_size", "max_queue_size", "buffer_size"], "slots, a number of batches"
    ),
    **dict.fromkeys(["drop_last", "drop_remainder"], "tail='drop', the default, or tail='keep'"),
    **dict.fromkeys(["collate_fn", "map_fn", "transforms", "augment", "preprocessing_function", "preprocess"], "transform"),
    **dict.fromkeys(["generator", "random_state", "rng", "shuffle_seed"], "seed"),
    **dict.fromkeys(["sampler", "batch_sampler"], "shuffle, or sampling_weights"),
    **dict.fromkeys(
        ["sample_weight", "sample_weights"], "weights, for the loss, or sampling_weights, for how often each is drawn"
    ),
    **dict.fromkeys(["pin_memory", "persistent_workers", "multiprocessing_context"], "nothing: leave it out"),
    **dict.fromkeys(["dataset", "reader", "loader"], "source"),
    **dict.fromkeys(["ids", "indices", "filenames", "file_paths", "paths"], "list_IDs"),
    **dict.fromkeys(["x", "X"], "inputs"),
    **dict.fromkeys(["y", "target"], "labels, or targets"),
    **dict.fromkeys(["directory", "root", "folder", "path", "data_path", "base_dir"], "data_dir"),
    **dict.fromkeys(["target_size", "image_size", "input_shape", "shape"], "dim; of images, source=Images(folder, size=...)"),
    **dict.fromkeys(["color_mode", "interpolation"], "source=Images(folder, mode=..., resize=...)"),
    **dict.fromkeys(["class_mode", "label_mode"], "n_classes, for one-hot rows"),
    **dict.fromkeys(["num_classes", "nb_classes"], "n_classes"),
    **dict.fromkeys(["channels", "num_channels"], "n_channels"),
    **dict.fromkeys(["validation_split", "subset"], "ids of one part: train, validation = shmgen.split(ids, labels, 0.2)"),
    "worker_init_fn": "setup",
    "steps_per_epoch": "steps_per_epoch to fit",
}

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""What `Images` calls a number of channels."""

P = ParamSpec("P")
OptionsT = TypeVar("OptionsT")
ResultT = TypeVar("ResultT")
SelfT = TypeVar("SelfT")


@dataclass(frozen=True, eq=False, repr=False)
class DataOptions:
    """What is read, and how: all arguments of a loader but the number of its workers.

    Args:
        list_IDs: the samples' ids. An id that is in it twice is two samples. Or a `pathlib.Path`: the text file that has them, a
            line each, such as ``scan --good`` writes. Or a data set, torch's or any object that has ``__len__`` and
            ``__getitem__`` and can't be iterated over: its numbers are the ids, and it has the samples, ``x``, ``(x, y)``, ``(x,
            y, weight)`` or a dict of inputs.
        labels: an int for each id, or the name of one of ``classes``, or a row: a mapping from id to them, or a list, an array or
            a pandas column, as `Values` takes them. Or `Values`, or a function of the id, or whatever else ``targets`` may be.
            None for no labels.
        batch_size: samples in a batch; of all ranks together, if there are several.
        dim: shape of a sample without its channels; or its whole shape, where ``n_channels`` is left out. By default that of the
            first sample.
        n_channels: size of the last axis. By default that of the first sample, if ``dim`` leaves it out. If it is 1, samples of
            shape ``dim`` are accepted too, and get that axis.
        n_classes: labels, of whatever source, become one-hot rows of this length; or they are such rows already.
        shuffle: a new order for each epoch, which depends on ``seed`` and the epoch alone; else the order of ``list_IDs``.
        classes: labels are names, and become their positions in this list. ``"sorted"``: the list of all names that there are.
            See `Values`, and the attribute ``classes``.
        data_dir: the folder of the files, or its URL, or `Remote`, as `Npy` takes it; ids may not lead out of it. None if ids are
            paths.
        cache: of a URL: a folder on a local disk, in which files are kept; see `Remote`.
        dtype: of ``X``. By default that of the first sample. Files are cast to it if NumPy calls that cast "same_kind".
        pad_value: what fills the rest of a row of ``X`` where a sample is smaller than ``dim`` says, along any axis; see `Npy`.
        source: in place of files: a `Source`, one of its fields, or a function as `Function` takes it. Where it has several
            fields, they are the inputs, a dict; or, if it is a tuple, and there are no labels and targets, ``(x, y)`` or ``(x, y,
            weight)``.
        inputs: in place of everything that describes ``X``: a source, or a dict, tuple or list of sources. A mapping or array of
            values is taken as `Values` of it, and a function of the id as `Function` of it.
        targets: in place of ``labels``; the same kinds as for ``inputs``.
        weights: of samples, for the loss; the same kinds as for ``inputs``.
        sampling_weights: how often each sample is drawn, beside the others: a number from 0 for each id, as `Values` takes them.
            An epoch has as many samples as there are ids, and each comes as often as its weight says, rounded up or down by
            chance, so some come several times, and others not at all. By default, each comes exactly once.
        lengths: how long each sample is, in any unit: a number from 0 for each id, as `Values` takes them. Batches are then of
            samples of similar length: sorted within fifty batches of the epoch's order; then these are shuffled. Each sample
            comes as often as without.
        trim: ``"longest"``: padded fields, and their masks, are cut along their first axis, after the longest sample of a batch.
            They are views, which a framework that needs contiguous memory copies. None: all batches have the shape of a row.
        transform: changes samples in the workers. With one unnamed input it is ``transform(x, rng)``: it changes ``x``, the
            input's row, in place, or returns a new one. With several inputs, or named ones, it is ``transform(sample, rng)``:
            ``sample`` is a dict of all rows by field, with the keys of ``inputs``, ``targets`` and ``weights``. Fields of a tuple
            are ``"X[0]"`` and so on, single ones ``"X"``, ``"y"``, ``"weights"``; a name used twice is ``"targets.mask"``, for
            example. Or a dict from field to a function of its row and ``rng``. ``rng`` is a `numpy.random.Generator` that depends
            on ``seed``, the epoch, and the sample's position in the epoch. Where ``dim`` says how large a row is, samples may be
            larger, or vary in size: a transform gets them as they are, and returns a row, a random crop for instance. A function
            with a parameter called ``epoch`` gets the epoch, an int from 0: ``transform(x, rng, epoch)``.
        setup: a function without arguments that each worker calls once, before it reads: it may register openers, set module
            variables, or open connections, since workers import modules afresh. With ``workers=0`` the main process calls it.
        slots: batches that shared memory has room for, at least 2. By default 4, and up to 16 if batches are small. If shared
            memory is short there are fewer, which is logged.
        seed: of orders and random numbers, an int from 0.
        epoch: the first epoch, an int from 0.
        tail: what becomes of the last batch if the samples don't fill it. ``"drop"``: it is left out. ``"keep"``: it is shorter,
            which several ranks can't have. ``"wrap"``: the epoch's first samples fill it up. ``"pad"``: likewise, and there are
            weights, those given or else ones: the filled up rows weigh 0, and all others the more for it, so that losses and
            weighted metrics are those of the samples.
        shard: (rank, world): this process is one of several that train together, and gets its part of each batch, ``batch_size /
            world`` rows. ``"auto"``: as the framework, or the launcher, that runs says. None: this process gets all.
        on_error: what to do about a sample that can't be read. ``"raise"``: its batch is an error. ``"replace"``: another sample
            of the epoch replaces it, with all its fields: the same one in every run. That is logged, counted, and in ``damaged``.
            ``"collect"``: it is in ``damaged``, and nothing is said of its row, which may hold anything: for one pass over all
            samples, as `scan` makes it.
        max_damaged: the fraction of the samples that may be unreadable, where that is no error. With more, the run ends.
        timeout: seconds after which a read, or a function, that has not ended is given up and its worker replaced; None for
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
    sampling_weights: Values | Mapping[Any, float] | Iterable[float] | Callable[[Any], float] | None = None
    lengths: Values | Mapping[Any, float] | Iterable[float] | Callable[[Any], float] | None = None
    trim: Literal["longest"] | None = None
    transform: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None
    setup: Callable[[], object] | None = None
    slots: int | None = None
    seed: int = 0
    epoch: int = 0
    tail: Tail = "drop"
    shard: tuple[int, int] | Literal["auto"] | None = None
    on_error: OnError = "raise"
    max_damaged: float = 0.01
    timeout: float | None = 300.0

    ids: Sequence[Any] = field(init=False)
    """``list_IDs``, out of reach of later changes."""

    draws: WeightTable | None = field(init=False)
    """``sampling_weights``, ready to draw by."""

    batch_lengths: Lengths | None = field(init=False)
    """``lengths``, ready to make batches by."""

    part: Shard = field(init=False)
    """Which part of each batch this process gets."""

    spec: BatchSpec = field(init=False)
    """The fields of a batch. Their sources are copies, for one loader to bind."""

    transforms: dict[str, Transform] = field(init=False)
    """By field: what changes its rows."""

    sample_transform: Transform | None = field(init=False)
    """What changes whole samples, dicts of rows by field."""

    def __post_init__(self) -> None:
        self._keep(
            batch_size=check_int(self.batch_size, "batch_size", 1),
            dim=check_shape(self.dim),
            n_channels=None if self.n_channels is None else check_int(self.n_channels, "n_channels", 1),
            n_classes=None if self.n_classes is None else check_int(self.n_classes, "n_classes", 1),
            dtype=check_dtype(self.dtype),
            slots=None if self.slots is None else check_int(self.slots, "slots", 2),
            seed=check_int(self.seed, "seed", 0),
            epoch=check_int(self.epoch, "epoch", 0),
            max_damaged=check_float(self.max_damaged, "max_damaged", "a fraction from 0 to 1", lambda number: 0 <= number <= 1),
            timeout=None
            if self.timeout is None
            else check_float(self.timeout, "timeout", "seconds above 0, or None", lambda number: number > 0),
        )
        if self.tail not in get_args(Tail):
            raise InputError(f"tail: expected {' or '.join(map(repr, get_args(Tail)))}, found {self.tail!r}")
        if self.trim not in ("longest", None):
            raise InputError(f"trim: expected 'longest' or None, found {self.trim!r}")
        self._check_shard()
        if self.on_error not in get_args(OnError):
            raise InputError(f"on_error: expected {' or '.join(map(repr, get_args(OnError)))}, found {self.on_error!r}")
        if is_dataset(self.list_IDs):
            if self.source is not None or self.inputs is not None:
                raise InputError(
                    "list_IDs: expected ids beside source and inputs, found a data set, which has the samples; give one"
                )
            self._keep(source=Sample(self.list_IDs), list_IDs=range(len(self.list_IDs)))
        ids = kept(self.list_IDs)
        fewest = self.batch_size if self.tail == "drop" else 1
        if len(ids) < fewest:
            other = "keep" if self.part.world == 1 else "wrap"
            raise InputError(
                f"expected at least {fewest} ids, found {len(ids)}; give more, a smaller batch_size, or tail={other!r}"
            )
        self._keep(list_IDs=ids, ids=ids, draws=self._draws(ids), batch_lengths=self._batch_lengths(ids))
        rest = Ones() if self.tail == "pad" else None
        spec = BatchSpec(
            self._inputs(),
            self._targets(),
            self.weights,
            ids,
            is_sample=self.source is not None,
            default_weights=rest,
            n_classes=self.n_classes,
            trims=self.trim is not None,
        )
        self._keep(spec=spec)
        if self.setup is not None and not callable(self.setup):
            raise InputError(f"setup: expected a function without arguments, found {self.setup!r}")
        transforms, sample_transform = self._split_transform()
        self._keep(transforms=transforms, sample_transform=sample_transform)

    @property
    def transformed(self) -> frozenset[str]:
        """The fields that a transform changes, or may change."""
        return frozenset(self.spec.names if self.sample_transform is not None else self.transforms)

    def _keep(self, **checked: Any) -> None:
        """Put what was checked in the place of what was given: frozen is for everybody else."""
        vars(self).update(checked)

    def _check_shard(self) -> None:
        self._keep(part=ALONE if self.shard is None else find_shard() if self.shard == "auto" else _pair(self.shard))
        rank, world = self.part
        if not 0 <= rank < world:
            raise InputError(f"shard: expected a rank from 0 to {world - 1}, found {rank} of {world}")
        if self.batch_size % world:
            raise InputError(
                f"batch_size: expected a multiple of the {world} ranks, since it counts samples of all together, "
                f"found {self.batch_size}"
            )
        if self.tail == "keep" and world > 1:
            raise InputError(
                f"tail='keep': the last batch would have other rows on each of the {world} ranks; give 'drop', 'wrap' or 'pad'"
            )

    def _draws(self, ids: Sequence[Any]) -> WeightTable | None:
        """``sampling_weights``, checked."""
        if self.sampling_weights is None:
            return None
        if not self.shuffle:
            raise InputError("sampling_weights: expected with shuffle=True, since samples are drawn by chance, found False")
        return WeightTable(numbers_of(self.sampling_weights, ids, "sampling_weights"))

    def _batch_lengths(self, ids: Sequence[Any]) -> Lengths | None:
        """``lengths``, checked."""
        if self.lengths is None:
            return None
        if not self.shuffle:
            raise InputError(
                "lengths: expected with shuffle=True, since batches are made of samples of similar length, found False"
            )
        return Lengths(numbers_of(self.lengths, ids, "lengths"), self.batch_size)

    def _inputs(self) -> Any:
        """``inputs``, or the only input, which the blog's terms describe."""
        described = any(one is not None for one in (self.dim, self.n_channels, self.dtype, self.pad_value))
        if self.cache is not None and (self.inputs is not None or self.source is not None):
            raise InputError("cache: expected with data_dir; give that of a source to Remote: Npy(Remote(url, cache=...))")
        if self.inputs is not None:
            if self.source is not None or described:
                raise InputError(
                    "dim, n_channels, dtype, pad_value and source describe the only input; where inputs is given, its sources do"
                )
            return self.inputs
        if self.source is None:
            return Npy(self._folder(), self.dim, self.n_channels, self.dtype, pad_value=self.pad_value)
        if isinstance(self.source, str | os.PathLike):
            raise InputError(
                f"source: expected a source or a function, found {str(self.source)!r}; of a folder of .npy files, pass data_dir="
                "folder; of images, source=Images(folder); of rows of one file, source=NpyRows(file)"
            )
        if not isinstance(self.source, Source | SourceField):
            return Function(self.source, self.dim, self.n_channels, self.dtype, pad_value=self.pad_value)
        if described:
            raise InputError(self._describe_there())
        return self.source

    def _folder(self) -> str | os.PathLike[str] | Remote | None:
        """``data_dir``, with the ``cache`` that belongs to it."""
        if self.cache is None:
            return self.data_dir
        if not is_url(self.data_dir):
            raise InputError(
                f"cache: expected with the URL of a folder as data_dir, such as 's3://bucket/folder', found with "
                f"{self.data_dir!r}; give it to Remote itself: Remote(url, cache=...)"
            )
        from shmgen._storage.remote import Remote

        return Remote(str(self.data_dir), cache=self.cache)

    def _describe_there(self) -> str:
        """What to do where arguments that describe rows were given beside a source."""
        source = self.source.source if isinstance(self.source, SourceField) else self.source
        name = type(source).__name__
        takes = inspect.signature(type(source)).parameters
        given = {name: getattr(self, name) for name in ("dim", "n_channels", "dtype", "pad_value")}
        given = {name: value for name, value in given.items() if value is not None}
        there, left_out = [], []
        for argument, value in given.items():
            text = repr(str(value) if argument == "dtype" else value)
            if argument == "dim" and "size" in takes:
                there.append(f"size={text}")
            elif argument in takes:
                there.append(f"{argument}={text}")
            elif argument == "n_channels" and "mode" in takes and value in MODES:
                there.append(f"mode={MODES[value]!r}")
            else:
                left_out.append(argument)
        remedy = f"pass {' and '.join(there)} to {name} itself: source={name}(..., {', '.join(there)})" if there else ""
        if left_out:
            remedy += f"{'; ' if there else ''}leave {' and '.join(left_out)} out, which {name} finds itself"
        return (
            f"{', '.join(given)}: expected where the only input is a folder of .npy files or a function, found a {name}; {remedy}"
        )

    def _targets(self) -> Any:
        """``targets``, or the only target, which the blog's terms describe."""
        if self.targets is not None and (self.n_classes is not None or self.classes is not None):
            raise InputError("n_classes and classes are for labels; give them to the Values among targets")
        if self.labels is None:
            return self.targets
        if self.targets is not None:
            raise InputError("labels are the only target; give either labels or targets")
        return target(self.labels, self.n_classes, self.classes, self.ids)

    def _split_transform(self) -> tuple[dict[str, Transform], Transform | None]:
        """The functions of a field's row, by field, and that of a whole sample."""
        names = [name for name in self.spec.names if not self.spec.measured(name)]
        if self.transform is None:
            return {}, None
        if not isinstance(self.transform, Mapping):
            if self.spec.has_one_input and self.spec.measured(next(iter(self.spec.names))):
                raise InputError("transform: expected an input that is read, found one that is measured; pass a dict by field")
            transform = Transform.checked(self.transform)
            return ({names[0]: transform}, None) if self.spec.has_one_input else ({}, transform)
        if unknown := self.transform.keys() - set(names):
            raise InputError(f"transform: expected fields {', '.join(map(repr, names))}, found {sorted(unknown)}")
        return {name: Transform.checked(function) for name, function in self.transform.items()}, None


def _pair(shard: object) -> Shard:
    if not isinstance(shard, tuple | list) or len(shard) != 2:
        raise InputError(f"shard: expected (rank, world), 'auto' or None, found {shard!r}")
    return Shard(check_int(shard[0], "rank of shard", 0), check_int(shard[1], "world of shard", 1))


@dataclass(frozen=True, eq=False, repr=False)
class Options(DataOptions):
    """The arguments of a loader.

    Args:
        workers: processes that read; with 0, the main process reads. More than 32, or 8 for each processor, are not
            started. ``"auto"`` begins with one for each processor that is free,
            at most 8, and has more or fewer as the trainer waits for data or not: `Stats.decisions` says when and why.
        reads: reads in flight in each worker, from 1 to 128. ``"auto"`` has more than one where reading waits for a disk or a
            network, as long as that pays. Whatever is given, it is 1 with ``workers=0``, and if any source is not ``concurrent``:
            a function is only as ``Function(f, concurrent=True)``.
    """

    _: KW_ONLY
    workers: int | Literal["auto"] = "auto"
    reads: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.workers, str):
            if self.workers != "auto":
                raise InputError(f"workers: expected a number from 0, or 'auto', found {self.workers!r}")
        else:
            self._keep(workers=check_int(self.workers, "workers", 0))
        if isinstance(self.reads, str):
            if self.reads != "auto":
                raise InputError(f"reads: expected an int from 1 to {MAX_READERS}, or 'auto', found {self.reads!r}")
        else:
            self._keep(reads=check_int(self.reads, "reads", 1, MAX_READERS))
        super().__post_init__()


def init_from(
    options: Callable[P, OptionsT],
) -> Callable[[Callable[[SelfT, OptionsT], None]], Callable[Concatenate[SelfT, P], None]]:
    """Make of an ``__init__`` that takes checked options one that takes the arguments which these ``options`` are made from.

    So there is one list of arguments for callers, ``help``, editors and type checkers.
    """

    def decorate(init: Callable[[SelfT, OptionsT], None]) -> Callable[Concatenate[SelfT, P], None]:
        signature = inspect.signature(options)

        @wraps(init)
        def call(self: SelfT, /, *args: P.args, **kwargs: P.kwargs) -> None:
            _check_names(type(self).__name__, signature, args, kwargs)
            init(self, options(*args, **kwargs))

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        _describe(call, options, [own, *signature.parameters.values()])
        return call

    return decorate


def call_from(options: Callable[P, OptionsT]) -> Callable[[Callable[[OptionsT], ResultT]], Callable[P, ResultT]]:
    """As `init_from`, for a function of checked options."""

    def decorate(function: Callable[[OptionsT], ResultT]) -> Callable[P, ResultT]:
        signature = inspect.signature(options)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> ResultT:
            _check_names(function.__name__, signature, args, kwargs)
            return function(options(*args, **kwargs))

        _describe(call, options, list(signature.parameters.values()))
        return call

    return decorate


def _check_names(name: str, signature: inspect.Signature, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    """Raise a `TypeError` that names what was called, and not the class of its options, where the arguments don't match it."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        unknown = next((given for given in kwargs if given not in signature.parameters), None)
        raise TypeError(f"{name}: {error}{_meant(unknown, signature) if unknown else ''}") from None


def _meant(unknown: str, signature: inspect.Signature) -> str:
    """What an argument that there is not was probably meant as."""
    from difflib import get_close_matches

    if unknown in ELSEWHERE:
        return f"; pass {ELSEWHERE[unknown]}"
    by_lower_case = {known.lower(): known for known in signature.parameters}
    close = get_close_matches(unknown.lower(), by_lower_case, 1, 0.6)
    return f"; did you mean {by_lower_case[close[0]]}?" if close else ""


def _describe(call: Any, options: Any, parameters: list[inspect.Parameter]) -> None:
    """Give a function the signature, and the description of its arguments, that callers see."""
    call.__signature__ = inspect.signature(call.__wrapped__).replace(parameters=parameters)
    described = [inspect.cleandoc(cls.__doc__ or "").partition("Args:\n") for cls in reversed(options.__mro__)]
    arguments = "\n".join(text for _, found, text in described if found)
    summary, raises, errors = inspect.cleandoc(call.__doc__ or "").partition("\n\nRaises:")
    call.__doc__ = f"{summary}\n\nArgs:\n{arguments}{raises}{errors}"
