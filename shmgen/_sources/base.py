"""What a field's rows are filled from: a source says what shape and dtype a row has, and fills rows in the workers.

A worker imports this module, so NumPy is imported only where a source needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shmgen._checks import meant
from shmgen.errors import FormatError, FunctionError, SampleError

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


def row_shapes(
    found: tuple[int, ...], dim: tuple[int, ...] | None, n_channels: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of a row ``(*dim, n_channels)``, and the other shape that a sample may have, where the first one's is ``found``.

    Raises:
        Misfit: the first sample's shape contradicts what is given.
    """
    if 0 in found:
        raise FormatError(f"expected a sample of at least one element, found shape {found}")
    if dim is None:
        if n_channels is None:
            return found, found
        if found[-1:] != (n_channels,) and n_channels != 1:
            raise FormatError(f"expected a last axis of n_channels={n_channels}, found shape {found}")
        dim = found[:-1] if found[-1:] == (n_channels,) else found
    elif n_channels is None:
        if found != dim and found[:-1] != dim:
            raise FormatError(f"expected shape {dim}, with or without channels behind it, found {found}")
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
            raise FormatError(f"expected numbers from {bounds.min} to {bounds.max}, found {array.min()} to {array.max()}")
        array = array.astype(row.dtype)
    if array.shape != row.shape:
        if (*array.shape, 1) != row.shape:
            raise FormatError(f"expected shape {row.shape}, found {array.shape}")
        array = array[..., None]
    if not np.can_cast(array.dtype, row.dtype, "same_kind"):
        if meant(array.dtype, row.dtype) != row.dtype:
            raise FormatError(f"expected dtype {row.dtype}, found {array.dtype}, whose cast would lose more than precision")
        array = array.view(row.dtype)
    row[...] = array


def function_error(id: object, where: str, error: Exception) -> SampleError:
    """What is raised where ``error`` came out of a user's function."""
    if type(error) in (SampleError, FunctionError):
        return error  # type: ignore[return-value]
    return FunctionError(id, where, str(error) if isinstance(error, FormatError) else told(error))


def told(error: Exception) -> str:
    """``error`` and its traceback, as text: it may be of a class that only exists here, or fail to tell of itself."""
    import traceback

    # The outermost frames are ours, which called the user's function; the last is all there is where the call itself failed.
    frames = error.__traceback__
    while frames and frames.tb_next and frames.tb_frame.f_globals.get("__name__", "").startswith("shmgen."):
        frames = frames.tb_next
    summary = "".join(traceback.format_exception_only(error)).strip()
    return f"{summary}\n\n{''.join(traceback.format_exception(type(error), error, frames))}"
