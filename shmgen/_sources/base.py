"""Sources and readers, which fill the rows of fields. A source is bound to the ids of a loader; its reader fills the rows."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from shmgen._checks import check_int
from shmgen._samples.sample_spec import ANY, SampleSpec
from shmgen.errors import FormatError, FunctionError, InputError, SampleError

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    from numpy.typing import DTypeLike

Measure: TypeAlias = Literal["length", "mask"]

IDLE = 0
"""In place of a number of rows begun: the worker is at no row."""

UNKNOWN = (1 << 64) - 1
"""In place of a number of rows begun: the worker is at a row, but its source does not say at which."""


def row_of(begun: int) -> int | None:
    """The row, counted from 0, that a worker is at after it has begun this number of rows; None if that is not known."""
    return None if begun in (IDLE, UNKNOWN) else begun - 1


class Reader:
    """Fills the rows of one source for one loader. `Source.bind` makes it, in the main process; every worker gets a pickled copy.

    Its attributes do not change once it is made. Open files are kept by the copies that `opened` makes.

    Attributes:
        shape: of one sample's row.
        dtype: of a row; as text where workers are to do without NumPy.
        fields: in place of these two, shape and dtype of each field by its key, where it fills several.

    Examples:
        >>> reader = Npy("data").bind(ids)
        >>> reader.shape, reader.dtype, reader.place("id-3")
        ((4, 3), '<f4', '...data/id-3.npy')
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    fields: Mapping[Any, tuple[tuple[int, ...], DTypeLike]] | None = None
    varies: bool = False  # samples may have other shapes than a row: they are padded, or a transform makes rows of them
    # What `fill` and `read` get in place of ids, one for each sample; None for the ids themselves. They are in shared memory once
    # for all workers, so they are not pickled.
    keys: Sequence[int] | np.ndarray | None = None
    classes: tuple[Any, ...] | None = None  # names of classes: the number k in a row stands for name k
    user_code: Any = None  # the function or source of the user's that does the reading; None for shmgen's own code
    in_main_process = False  # the main process fills the rows: `fill` gets positions in the list of ids, as an array
    takes_bytes = False  # `fill` takes a flat `memoryview` of the rows' bytes, so that a worker need not import NumPy
    concurrent: bool = False  # several threads of a process may read at once, each from a copy that `opened` makes
    draws: bool = False  # `read` needs a generator of random numbers
    leaves_out: bool = False  # it may fill only a part of a row, which must then be set to 0 beforehand

    @property
    def reads_one_by_one(self) -> bool:
        """Whether the next rows should be read by `read`, one by one, rather than by `fill`."""
        return False

    def opened(self, *, in_worker: bool = False) -> Self:
        """A copy for one thread of the process that reads, ready to read.

        Args:
            in_worker: whether it reads in a worker. In the main process nothing may be done that could end the process.
        """
        return copy(self)

    def fill(self, keys: Any, rows: Any, begun: Any, *, io_waits: bool = False) -> list[int] | None:
        """Fill ``rows``, of shape ``(len(keys), *shape)``, with the samples of these keys.

        Args:
            keys: the samples' ids, or what the reader has in place of them.
            rows: an array; bytes where it `takes_bytes`; a dict of arrays by key where there are several fields.
            begun: ``begun[0] = n`` says that row n, counted from 1, is being read. A sample that fails, hangs or ends the worker
                is then known at once; if a reader does not set it, the rows are tried one by one to find the sample.
            io_waits: whether reads have had to wait lately; the system may then be asked to read ahead.

        Returns:
            The numbers of rows that it left to `read`, since their samples have other shapes; None for none.
        """
        raise NotImplementedError

    def read(self, key: Any, row: Any, rng: np.random.Generator | None = None) -> Any:
        """Fill ``row``, or return the sample, as `Source.read`."""
        raise NotImplementedError

    def place(self, id: Any) -> str:
        """Where sample ``id`` is read from, for errors and warnings: the absolute path of a file, or a description."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "keys"}


class Source:
    """Where the rows of a field, or of several, come from. Subclass it to read what shmgen has no source for.

    ``source[key]`` is one of its fields; ``source`` itself is all of them, as a dict, or as a tuple if their keys are 0, 1, ...
    A source that a loader gets twice still reads each sample once.

    Attributes:
        shape: of one sample's row; set by `bind` at the latest.
        dtype: of a row; set by `bind` at the latest.
        fields: shape and dtype by key, in place of these two, where there are several fields; set by `bind` at the latest.
        concurrent: whether several copies of it may read at once, in threads of one process. Where reading waits for a disk or a
            network, many reads are then in flight.

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
    concurrent: bool = False

    def __getitem__(self, key: Hashable) -> SourceField:
        return SourceField(self, key)

    __iter__ = None  # else `list(source)` would ask for the fields 0, 1, 2, ... for ever

    def bind(self, ids: Sequence[Any]) -> Reader:
        """What fills the rows of these ids: called once for each loader, in the main process, on a copy of the source.

        Override it where shape and dtype are not known before: set them on ``self``, and ``return super().bind(ids)``.
        """
        return SourceReader(self)

    def open(self) -> None:
        """Get ready to read: open the file, connect to the database. Called once by each thread that reads, on a copy of its own.

        A source is pickled and sent to the workers before it is opened.
        """

    def read(self, id: Any, row: Any, /) -> Any:
        """Fill ``row``, an array of `shape` and `dtype` in shared memory, with sample ``id``, or return the sample.

        With several fields, ``row`` is a dict of their rows by key, and what is returned a dict (or tuple) of their samples. What
        is left out of a row stays 0. A sample that is padded, or of which a transform makes a row, may have another shape.
        """
        raise NotImplementedError

    def fill(self, ids: Sequence[Any], rows: Any, /) -> list[int] | None:
        """Fill ``rows``, of shape ``(len(ids), *shape)``, with the samples ``ids``. What is left out stays 0.

        With several fields, ``rows`` is a dict of such arrays by key. Override it where many rows are read faster at once. It may
        not draw random numbers: the global generators are seeded for each `read`, and not for `fill`.

        Returns:
            The numbers of rows that it left to `read`, such as samples of other shapes; None if there are none.
        """
        raise NotImplementedError

    def place(self, id: Any) -> str:
        """Where sample ``id`` is read from, for errors and warnings: the absolute path of a file, or a description."""
        return f"source {type(self).__name__}"


class SourceReader(Reader):
    def __init__(self, source: Source) -> None:
        self.user_code = source
        self.fields, self.concurrent = source.fields, source.concurrent
        if source.fields is None:
            if unset := [name for name in ("shape", "dtype") if not hasattr(source, name)]:
                expected = "shape and dtype of a row, or fields, set in the class or by bind"
                raise InputError(f"source {type(source).__name__}: expected {expected}, found no {' and no '.join(unset)}")
            self.shape, self.dtype = source.shape, source.dtype
        self._fills_many = type(source).fill is not Source.fill

    leaves_out = True

    @property
    def reads_one_by_one(self) -> bool:
        return not self._fills_many

    def opened(self, *, in_worker: bool = False) -> Self:
        reader = copy(self)
        reader.user_code = copy(self.user_code)
        reader.user_code.open()
        return reader

    def fill(self, keys: Any, rows: Any, begun: Any, *, io_waits: bool = False) -> list[int] | None:
        left = self.user_code.fill(keys, rows)
        try:
            return None if left is None or left is rows else [range(len(keys))[number] for number in left]
        except (TypeError, IndexError):
            expected = f"None, or the numbers of rows left to read, from 0 to {len(keys) - 1}"
            raise FormatError(f"what fill returns: expected {expected}, found {left!r}") from None

    def read(self, key: Any, row: Any, rng: np.random.Generator | None = None) -> Any:
        return self.user_code.read(key, row)

    def place(self, id: Any) -> str:
        return str(self.user_code.place(id))


class SourceField:
    """One of the fields that a source fills: what ``source["image"]`` is. However many are used, a sample is read once.

    Examples:
        >>> pairs = Function(lambda id: {"x": np.full(3, id), "y": id % 2})
        >>> loader = Loader(range(8), inputs=pairs["x"], targets=pairs["y"], batch_size=4, shuffle=False)
        >>> X, y = loader.batch(1)
        >>> X[:, 0], y
        (array([4, 5, 6, 7]), array([0, 1, 0, 1]))
        >>> isinstance(pairs["x"], SourceField)
        True
    """

    def __init__(
        self,
        source: Source,
        key: Hashable | None = None,
        given: SampleSpec = ANY,
        measure: Measure | None = None,
        n_classes: int | None = None,
        axes: int | None = None,
    ) -> None:
        self.source = source
        self.key = key
        self.given = given
        self.measure = measure
        self.n_classes = n_classes
        self.axes = axes

    def shaped(
        self,
        dim: int | Iterable[int] | None = None,
        n_channels: int | None = None,
        dtype: DTypeLike | None = None,
        *,
        pad_value: float | None = None,
    ) -> SourceField:
        """The field with what `Npy` takes to describe rows; what is left out is taken from the first sample.

        Raises:
            InputError: an argument describes no rows.
        """
        return SourceField(self.source, self.key, SampleSpec.checked(dim, n_channels, dtype, pad_value), self.measure)

    @property
    def length(self) -> SourceField:
        """The field that says how much of a padded row is the sample's, along its first axis; int64, of shape ``()``."""
        return SourceField(self.source, self.key, self.given, "length")

    @property
    def mask(self) -> SourceField:
        """The field that is true where a padded row is the sample's; of shape ``dim``; bool, and as weights float32."""
        return SourceField(self.source, self.key, self.given, "mask")

    def mask_along(self, axes: int = 1) -> SourceField:
        """As `mask`, along the first axes of a row alone: of shape ``(time,)`` for rows ``(time, features)``, as layers take it.

        Raises:
            InputError: ``axes`` is no int from 1.
        """
        return SourceField(self.source, self.key, self.given, "mask", axes=check_int(axes, "axes", 1))

    def one_hot(self, n_classes: int) -> SourceField:
        """The field's ints, from 0 to ``n_classes - 1``, as one-hot rows: float32, with one more axis of ``n_classes``.

        A last axis of size 1 becomes that axis: masks of shape ``(height, width, 1)`` become ``(height, width, n_classes)``.

        Raises:
            InputError: ``n_classes`` is no int from 1, or shape and dtype of the ints were given here, and not to the source.
        """
        if self.given != ANY or self.measure is not None:
            raise InputError("one_hot: expected a field as its source gives it; give dim and dtype to the source")
        return SourceField(self.source, self.key, n_classes=check_int(n_classes, "n_classes", 1))


class BuiltinSource(Source):
    """A source of shmgen's own. Its reader does what `Source.open`, `read`, `fill` and `place` do for a source of the user's."""

    given: SampleSpec = ANY  # what the user says of a row, and with it what rows are padded with
    finds_fields: bool = False  # only `bind` says whether it has several

    def bind(self, ids: Sequence[Any], *, field: str = "X", varies: bool = False) -> Reader:
        """As `Source.bind`; errors name the ``field``. If it ``varies``, something makes rows of samples of other shapes."""
        raise NotImplementedError

    @property
    def length(self) -> SourceField:
        """`SourceField.length` of the only field."""
        return SourceField(self).length

    @property
    def mask(self) -> SourceField:
        """`SourceField.mask` of the only field."""
        return SourceField(self).mask

    def mask_along(self, axes: int = 1) -> SourceField:
        """`SourceField.mask_along` of the only field."""
        return SourceField(self).mask_along(axes)

    def one_hot(self, n_classes: int) -> SourceField:
        """`SourceField.one_hot` of the only field."""
        return SourceField(self).one_hot(n_classes)


def function_error(id: object, where: str, error: Exception) -> SampleError:
    """What to raise where a user's function raised ``error``."""
    if type(error) in (SampleError, FunctionError):
        return error  # type: ignore[return-value]
    if isinstance(error, FormatError):
        return FunctionError(id, where, str(error))
    if isinstance(error, EOFError) or type(error).__qualname__ == "BdbQuit":  # of input() and breakpoint()
        error.add_note("(a worker has no terminal: with workers=0, functions run in the main process, which has)")
    kinds = tuple((kind.__module__, kind.__qualname__) for kind in type(error).__mro__[:-2])
    return FunctionError.of(id, where, error_text(error), kinds)


def error_text(error: Exception) -> str:
    """``error`` and its traceback, as text: its class may exist only in this process, and its own ``str`` may fail."""
    import traceback

    # The outermost frames are shmgen's, which called the user's function. The last is left in: the call itself may have failed.
    frames = error.__traceback__
    while frames and frames.tb_next and frames.tb_frame.f_globals.get("__name__", "").startswith("shmgen."):
        frames = frames.tb_next
    summary = "".join(traceback.format_exception_only(error)).strip()
    return f"{summary}\n\n{''.join(traceback.format_exception(type(error), error, frames))}"
