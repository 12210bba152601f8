"""What a field's rows are filled from: a source says what shape and dtype a row has, and fills rows in the workers.

A worker imports this module, so NumPy is imported only where a source needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from shmgen._arguments import meant, numbers, sizes, what_bytes_may_be, whole
from shmgen.errors import FunctionError, InputError, Misfit, SampleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike


IDLE = 0
"""In place of a row's number: the worker is at no row."""

UNKNOWN = (1 << 64) - 1
"""In place of a row's number: the worker is at a row, but its source does not say at which."""


def row_of(at: int) -> int | None:
    """The row, counted from 0, that ``at[0]`` of a source means; None if that is not known."""
    return None if at in (IDLE, UNKNOWN) else at - 1


class Source:
    """Fills one field of a batch, row by row; to be subclassed.

    A loader works on a copy of its own, which it binds in the calling process, sends to each worker, and opens there.

    Attributes:
        shape: of one sample's row; set at the latest by `bind`.
        dtype: of a row; set at the latest by `bind`.
        at: where a `fill` that reads one row after another says which it is at: ``self.at[0] = number``, counted from 1. A sample
            that fails, hangs or ends the worker is then known at once; else its rows are tried one by one.
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    at: Any = [0]  # noqa: RUF012 # nobody reads it before `open` has put another in its place

    def bind(self, ids: Sequence[Any]) -> None:
        """Look at the ids, once, in the calling process: for what has to be read to know `shape` and `dtype`."""

    def open(self) -> None:
        """Get ready to read, once in each process that reads: open the file, connect to the database."""

    def read(self, id: Any, row: np.ndarray) -> None:
        """Fill ``row``, an array of `shape` and `dtype` in shared memory, with sample ``id``; what is left out stays 0."""
        raise NotImplementedError

    def fill(self, ids: Sequence[Any], rows: np.ndarray) -> None:
        """Fill ``rows``, of shape ``(len(ids), *shape)``, with the samples ``ids``; what is left out stays 0.

        To be overridden where many are read faster at once than one by one; random numbers are then not drawn for each.
        """
        raise NotImplementedError

    def hint(self, ids: Sequence[Any]) -> None:
        """``ids`` will be read next, and reading waits for a disk: have them read ahead."""

    def version(self, ids: Sequence[Any]) -> object:
        """What is different once the data of ``ids`` have changed, asked for in the calling process.

        Batches that were read ahead are read again if it has changed when their epoch begins.
        """
        return None

    def place(self, id: Any) -> str:
        """Where sample ``id`` is read from, for errors and warnings: a file, as an absolute path, or what else there is."""
        return f"source {type(self).__name__}"

    @property
    def reads_one_by_one(self) -> bool:
        """Whether `read` does the work, not `fill`."""
        return type(self).fill is Source.fill

    @property
    def may_leave_out(self) -> bool:
        """Whether it may fill a part of a row only, so that rows must be clear before. Sources of shmgen's fill them whole."""
        does = "read" if self.reads_one_by_one else "fill"
        written_by = next(cls for cls in type(self).__mro__ if does in vars(cls))
        return not written_by.__module__.startswith("shmgen.")


class RawSource(Source):
    """A source whose `fill` takes a flat `memoryview` of the rows' bytes, so that a worker need not import NumPy."""


class Function(Source):
    """A function of the id: ``function(id)`` returns a sample's array, ``function(id, row)`` fills the row that it is given.

    The row is all zeros when it is given, so that a short sample may fill a part of it.

    Args:
        function: is called in the workers.
        dim: shape of a sample without its channels.
        n_channels: size of the last axis.
        dtype: of a row.

    What is left out is that of what the function returns for the first id, for which it is called once in the calling process.
    A function that fills a row must be told ``dim`` and ``dtype``.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        dim: int | Iterable[int] | None = None,
        n_channels: int | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        self._function = function
        self._fills = _takes_two(function)
        self._given = sizes(dim), None if n_channels is None else whole(n_channels, "n_channels", 1), numbers(dtype)

    def bind(self, ids: Sequence[Any]) -> None:
        dim, n_channels, dtype = self._given
        if self._fills:
            if dim is None or dtype is None:
                raise InputError(f"{_name(self._function)} fills a row that it is given: say its dim and dtype")
            self.shape, self.dtype = (*dim, *([] if n_channels is None else [n_channels])), dtype
        elif dim is None or n_channels is None or dtype is None:
            import numpy as np

            from shmgen._dice import own_random_state

            try:
                with own_random_state():
                    first = np.asarray(self._function(ids[0]))
                if dtype is None and (remedy := what_bytes_may_be(first.dtype)):
                    raise Misfit(f"expected numbers, found dtype {first.dtype}{remedy}")
                self.shape, _ = row_shapes(first.shape, dim, n_channels)
            except Exception as error:
                raise function_error(ids[0], _name(self._function), error) from error
            self.dtype = first.dtype if dtype is None else dtype
        else:
            self.shape, self.dtype = (*dim, n_channels), dtype

    def read(self, id: Any, row: np.ndarray) -> None:
        result = self._function(id, row) if self._fills else self._function(id)
        if not (self._fills and (result is None or result is row)):
            put(row, result)

    @property
    def may_leave_out(self) -> bool:
        return self._fills or super().may_leave_out

    def place(self, id: Any) -> str:
        return _name(self._function)


def row_shapes(
    found: tuple[int, ...], dim: tuple[int, ...] | None, n_channels: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of a row ``(*dim, n_channels)``, and the other shape that a sample may have, where the first one's is ``found``.

    Raises:
        Misfit: the first sample's shape contradicts what is given.
    """
    if 0 in found:
        raise Misfit(f"expected a sample of at least one element, found shape {found}")
    if dim is None:
        if n_channels is None:
            return found, found
        if found[-1:] != (n_channels,) and n_channels != 1:
            raise Misfit(f"expected a last axis of n_channels={n_channels}, found shape {found}")
        dim = found[:-1] if found[-1:] == (n_channels,) else found
    elif n_channels is None:
        if found != dim and found[:-1] != dim:
            raise Misfit(f"expected shape {dim}, with or without channels behind it, found {found}")
        n_channels = 1 if found == dim else found[-1]
    shape = (*dim, n_channels)
    return shape, dim if n_channels == 1 else shape


def put(row: np.ndarray, value: Any) -> None:
    """Write into ``row`` what a function returned for it.

    Raises:
        Misfit: it has another shape, or a dtype whose cast would lose more than precision.
    """
    import numpy as np

    array = np.asarray(value)
    if not isinstance(value, np.ndarray | np.generic) and array.dtype.kind in "iu" and row.dtype.kind in "iu":
        # Python's own numbers have no dtype; what counts is whether they fit.
        bounds = np.iinfo(row.dtype)
        if array.size and (array.min() < bounds.min or array.max() > bounds.max):
            raise Misfit(f"expected numbers from {bounds.min} to {bounds.max}, found {array.min()} to {array.max()}")
        array = array.astype(row.dtype)
    if array.shape != row.shape:
        if (*array.shape, 1) != row.shape:
            raise Misfit(f"expected shape {row.shape}, found {array.shape}")
        array = array[..., None]
    if not np.can_cast(array.dtype, row.dtype, "same_kind"):
        if meant(array.dtype, row.dtype) != row.dtype:
            raise Misfit(f"expected dtype {row.dtype}, found {array.dtype}, whose cast would lose more than precision")
        array = array.view(row.dtype)
    row[...] = array


def function_error(id: object, where: str, error: Exception) -> SampleError:
    """What is raised where ``error`` came out of a user's function."""
    if type(error) in (SampleError, FunctionError):
        return error  # type: ignore[return-value]
    return FunctionError(id, where, str(error) if isinstance(error, Misfit) else told(error))


def told(error: Exception) -> str:
    """``error`` and its traceback, as text: it may be of a class that only exists here, or fail to tell of itself."""
    import traceback

    # The outermost frames are ours, which called the user's function; the last is all there is where the call itself failed.
    frames = error.__traceback__
    while frames and frames.tb_next and frames.tb_frame.f_globals.get("__name__", "").startswith("shmgen."):
        frames = frames.tb_next
    summary = "".join(traceback.format_exception_only(error)).strip()
    return f"{summary}\n\n{''.join(traceback.format_exception(type(error), error, frames))}"


def _takes_two(function: Callable[..., Any]) -> bool:
    import inspect  # late, since it would make workers start slower

    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C tell nothing
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters) == 2


def _name(function: Callable[..., Any]) -> str:
    return f"function {getattr(function, '__qualname__', None) or function!r}"
