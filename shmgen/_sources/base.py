"""Sources: what the rows of a field are filled from. A source says what shape and dtype a row has, and fills rows in the workers.

A worker imports this module, so NumPy is imported only where a source needs it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shmgen._samples.sample_spec import ANY, SampleSpec
from shmgen.errors import FormatError, FunctionError, InputError, SampleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

    from shmgen._sources.source_field import Measure, SourceField


NO_CLASSES = "n_classes and classes are for labels that are values; give them to the Values among targets"

IDLE = 0
"""In place of a number of rows begun: the worker is at no row."""

UNKNOWN = (1 << 64) - 1
"""In place of a number of rows begun: the worker is at a row, but its source does not say at which."""


def row_of(begun: int) -> int | None:
    """The row, counted from 0, that a worker is at which has begun so many rows; None if that is not known."""
    return None if begun in (IDLE, UNKNOWN) else begun - 1


class _Measured:
    """An attribute of a source of one field that is the `SourceField` of this name. A subclass may have another of that name."""

    def __set_name__(self, owner: type, name: Measure) -> None:
        self._name: Measure = name

    def __get__(self, source: Source | None, owner: type) -> SourceField:
        if source is None:
            raise AttributeError(f"{owner.__name__} itself has no {self._name}; an instance has")
        from shmgen._sources.source_field import SourceField  # late: workers don't need it

        return SourceField(source, measure=self._name)


class Source:
    """Fills a field of a batch, row by row, or several at once. Subclass it to read what shmgen has no source for.

    A loader works on a copy, which it binds in the main process, sends to each worker, and opens there.

    ``source[key]`` is one of its fields; ``source`` itself is all of them, as a dict, or as a tuple if their keys are 0, 1, ...
    Given twice to a loader, a source reads a sample once all the same. ``source.length`` and ``source.mask`` are fields that say
    how much of a padded row is the sample's; see `SourceField`.

    Attributes:
        shape: of one sample's row; set by `bind` at the latest.
        dtype: of a row; set by `bind` at the latest.
        fields: shape and dtype by key, in place of these two, where there are several fields; set by `bind` at the latest.
        given: what the user says of a row, and with it what rows are padded with.
        varies: whether samples may have other shapes than a row, because a transform makes rows of them, or they are padded; set
            before `bind`, which may set it to False.
        draws: whether `read` draws random numbers from `rng`.
        rng: the `numpy.random.Generator` of the sample that is being read, the one that a transform gets; only if ``draws``.
        classes: the names of the classes that a row's numbers mean, in the order of these numbers; None where they mean none.
        field_name: what errors call the field; set before `bind`.
        keys: what `fill` and `read` get in place of ids, one for each sample: a range, or an array of ints. Set by `bind`, where
            a source looks its ids up once and for all; None for the ids themselves. See `key_tables`.
        key_table: which table its keys are in; 0, that of the ids, where it has none of its own.
        in_main_process: whether the main process fills the rows, and workers never see the source. `fill` then gets positions in
            the list of ids in place of ids.
        rows_begun: where a `fill` that reads one row after another says how far it is: ``self.rows_begun[0] = 1`` before it reads
            the first row, 2 before the second. A sample that fails, hangs or ends the worker is then known at once; else its rows
            are tried one by one.
        concurrent: whether several copies of it may read at once, in threads of one process. Then there are as many reads in
            flight as pay where reading waits for a disk or a network.
        io_waits: whether reads have had to wait lately; set before each `fill`, which may then have the system read ahead.

    Examples:
        >>> class Noise(Source):
        ...     shape, dtype = (3,), "float32"
        ...
        ...     def read(self, id, row):
        ...         row[:] = np.random.default_rng(id).normal(size=3)
        >>> loader = Loader(range(8), batch_size=4, source=Noise(), workers=1)
        >>> (X,) = loader.batch(0)
        >>> X.shape
        (4, 3)

        One that fills two fields:

        >>> class Pairs(Source):
        ...     fields = {"image": ((4, 3), "float32"), "label": ((), "int64")}
        ...
        ...     def read(self, id, rows):
        ...         rows["image"][:] = rows["label"][...] = id
        >>> pairs = Pairs()
        >>> loader = Loader(range(8), inputs=pairs["image"], targets=pairs["label"], batch_size=4, shuffle=False)
        >>> loader.batch(0)[1]
        array([0, 1, 2, 3])
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    fields: Mapping[Any, tuple[tuple[int, ...], DTypeLike]] | None = None
    given: SampleSpec = ANY
    varies: bool = False
    draws: bool = False
    rng: np.random.Generator
    classes: tuple[Any, ...] | None = None
    field_name = "X"
    keys: Any = None
    key_table: int = 0
    in_main_process = False
    concurrent: bool = False
    io_waits: bool = False
    rows_begun: Any = [0]  # noqa: RUF012 # the assembler replaces it before `open`

    length = _Measured()
    mask = _Measured()

    def __getitem__(self, key: Hashable) -> SourceField:
        from shmgen._sources.source_field import SourceField

        return SourceField(self, key)

    __iter__ = None  # so that nobody takes it for a list of fields

    def field(
        self,
        key: Hashable,
        dim: int | Iterable[int] | None = None,
        n_channels: int | None = None,
        dtype: DTypeLike | None = None,
        *,
        pad_value: float | None = None,
    ) -> SourceField:
        """``source[key]``, with what `Npy` takes to describe rows; what is left out is taken from the first sample.

        Raises:
            InputError: an argument describes no rows.
        """
        from shmgen._sources.source_field import SourceField

        return SourceField(self, key, SampleSpec.checked(dim, n_channels, dtype, pad_value))

    def find_fields(self, ids: Sequence[Any]) -> None:
        """Set `fields`, if there are several, in the main process; called before `bind` where the keys must be known."""

    def bind(self, ids: Sequence[Any]) -> None:
        """Look at the ids, once, in the main process: for what has to be read to know `shape` and `dtype`."""

    def open(self) -> None:
        """Get ready to read: open the file, connect to the database. Called once by each reader, on a shallow copy of its own."""

    def read(self, id: Any, row: Any, /) -> Any:
        """Fill ``row``, an array of `shape` and `dtype` in shared memory, with sample ``id``, or return the sample.

        With several fields, ``row`` is a dict of their rows by key, and what is returned a dict (or tuple) of their samples. What
        is left out of a row stays 0. A sample that is returned may have another shape, if a transform makes a row of it, or it is
        padded.
        """
        raise NotImplementedError

    def fill(self, ids: Sequence[Any], rows: Any, /) -> list[int] | None:
        """Fill ``rows``, of shape ``(len(ids), *shape)``, with the samples ``ids``. What is left out stays 0.

        With several fields, ``rows`` is a dict of such arrays by key. Override it where many rows are read faster at once than
        one by one. Random numbers are then not drawn for each sample.

        Returns:
            The numbers of rows that it left to `read`, since their samples have other shapes; None if there are none.
        """
        raise NotImplementedError

    def place(self, id: Any) -> str:
        """Where sample ``id`` is read from, for errors and warnings: the absolute path of a file, or a description."""
        return f"source {type(self).__name__}"

    def with_classes(self, n_classes: int | None, classes: Iterable[Any] | str | None) -> Source:
        """The source as labels of these classes, as far as they are not None.

        Raises:
            InputError: it has no values that could be classes, or has others of its own.
        """
        if n_classes is None and classes is None:
            return self
        raise InputError(NO_CLASSES)

    @property
    def is_users(self) -> bool:
        """Whether code of the user's does the reading."""
        return not type(self).__module__.startswith("shmgen.")

    @property
    def reads_one_by_one(self) -> bool:
        """Whether `read` does the work, not `fill`."""
        return type(self).fill is Source.fill

    @property
    def may_leave_out(self) -> bool:
        """Whether it may fill only a part of a row, so that rows must be cleared before. shmgen's own sources fill whole rows."""
        does = "read" if type(self).fill is Source.fill else "fill"
        written_by = next(cls for cls in type(self).__mro__ if does in vars(cls))
        return not written_by.__module__.startswith("shmgen.")


class RawSource(Source):
    """A source whose `fill` takes a flat `memoryview` of the rows' bytes, so that a worker need not import NumPy."""


def key_tables(ids: Sequence[Any], sources: Iterable[Source]) -> list[Sequence[Any]]:
    """What samples are called where rows are filled: by their ids, and by the keys of sources that have such.

    Each source is told its table, and lets go of its keys: they are in shared memory once, and not sent to each worker.

    Args:
        ids: of all samples.
        sources: of a batch, bound.
    """
    from shmgen._samples.ids import kept

    tables = [ids]
    for source in sources:
        if source.keys is not None:
            source.key_table = len(tables)
            tables.append(kept(source.keys))
            source.keys = None
    return tables


def function_error(id: object, where: str, error: Exception) -> SampleError:
    """What to raise where a user's function raised ``error``."""
    if type(error) in (SampleError, FunctionError):
        return error  # type: ignore[return-value]
    return FunctionError(id, where, str(error) if isinstance(error, FormatError) else error_text(error))


def error_text(error: Exception) -> str:
    """``error`` and its traceback, as text: its class may exist only in this process, and its own ``str`` may fail."""
    import traceback

    # The outermost frames are shmgen's, which called the user's function. The last is left in: the call itself may have failed.
    frames = error.__traceback__
    while frames and frames.tb_next and frames.tb_frame.f_globals.get("__name__", "").startswith("shmgen."):
        frames = frames.tb_next
    summary = "".join(traceback.format_exception_only(error)).strip()
    return f"{summary}\n\n{''.join(traceback.format_exception(type(error), error, frames))}"
