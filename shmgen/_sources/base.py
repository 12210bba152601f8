"""Sources: what the rows of a field are filled from. A source says what shape and dtype a row has, and fills rows in the workers.

A worker imports this module, so NumPy is imported only where a source needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from shmgen.errors import FormatError, FunctionError, InputError, SampleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike


NO_CLASSES = "n_classes and classes are for labels that are values; give them to the Values among targets"

IDLE = 0
"""In place of a number of rows begun: the worker is at no row."""

UNKNOWN = (1 << 64) - 1
"""In place of a number of rows begun: the worker is at a row, but its source does not say at which."""


def row_of(begun: int) -> int | None:
    """The row, counted from 0, that a worker is at which has begun so many rows; None if that is not known."""
    return None if begun in (IDLE, UNKNOWN) else begun - 1


class Source:
    """Fills one field of a batch, row by row. Subclass it to read what shmgen has no source for.

    A loader works on a copy, which it binds in the main process, sends to each worker, and opens there.

    Attributes:
        shape: of one sample's row; set by `bind` at the latest.
        dtype: of a row; set by `bind` at the latest.
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
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    classes: tuple[Any, ...] | None = None
    field_name = "X"
    keys: Any = None
    key_table: int = 0
    in_main_process = False
    concurrent: bool = False
    io_waits: bool = False
    rows_begun: Any = [0]  # noqa: RUF012 # the assembler replaces it before `open`

    def bind(self, ids: Sequence[Any]) -> None:
        """Look at the ids, once, in the main process: for what has to be read to know `shape` and `dtype`."""

    def open(self) -> None:
        """Get ready to read: open the file, connect to the database. Called once by each reader, on a shallow copy of its own."""

    def read(self, id: Any, row: np.ndarray) -> None:
        """Fill ``row``, an array of `shape` and `dtype` in shared memory, with sample ``id``. What is left out stays 0."""
        raise NotImplementedError

    def fill(self, ids: Sequence[Any], rows: np.ndarray) -> None:
        """Fill ``rows``, of shape ``(len(ids), *shape)``, with the samples ``ids``. What is left out stays 0.

        Override it where many rows are read faster at once than one by one. Random numbers are then not drawn for each sample.
        """
        raise NotImplementedError

    def version(self, ids: Sequence[Any]) -> object:
        """Anything that is different once the data of ``ids`` have changed; asked for in the main process.

        Batches that were read ahead are read again if it has changed when their epoch begins.
        """
        return None

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
        does = "read" if self.reads_one_by_one else "fill"
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
    from shmgen._sources.ids import kept

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
