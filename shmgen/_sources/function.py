"""`Function`: a function of the id as a source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from shmgen._sources.base import Source, function_error
from shmgen._sources.sample_spec import SampleSpec, write_row
from shmgen.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike


class Function(Source):
    """A function of the id: ``function(id)`` returns a sample's array, or ``function(id, row)`` fills the row that it is given.

    The row that it is given is all zeros, so a short sample may fill only a part of it.

    Args:
        function: the function; it is called in the workers.
        dim: shape of a sample without its channels.
        n_channels: size of the last axis.
        dtype: of a row.
        concurrent: whether the function may be called in several threads of a process at once, so that as many calls are in
            flight as pay where it waits for something. It must then not draw from the global generators of `random` and NumPy.

    What is left out is taken from the array of the first id, for which the function is called once in the main process. For a
    function that fills a row, ``dim`` and ``dtype`` must be given.

    Examples:
        >>> loader = Loader(range(8), batch_size=4, source=Function(lambda id: np.full(3, id), dtype="float32"), shuffle=False)
        >>> (X,) = loader.batch(1)
        >>> X[:, 0]
        array([4., 5., 6., 7.], dtype=float32)
    """

    def __init__(
        self,
        function: Callable[..., Any],
        dim: int | Iterable[int] | None = None,
        n_channels: int | None = None,
        dtype: DTypeLike | None = None,
        *,
        concurrent: bool = False,
    ) -> None:
        self._function = function
        self.concurrent = concurrent
        self._fills = _takes_two(function)
        self._given = SampleSpec.checked(dim, n_channels, dtype)

    def bind(self, ids: Sequence[Any]) -> None:
        dim, n_channels, dtype = self._given
        if self._fills:
            if dim is None or dtype is None:
                raise InputError(f"{_name(self._function)} fills a row that it is given: say its dim and dtype")
            self.shape, self.dtype = (*dim, *([] if n_channels is None else [n_channels])), dtype
        elif dim is None or n_channels is None or dtype is None:
            import numpy as np

            from shmgen._sources.rng import own_random_state

            try:
                with own_random_state():
                    first = np.asarray(self._function(ids[0]))
                row = self._given.row(first.shape, first.dtype)
            except Exception as error:
                raise function_error(ids[0], f"source of field {self.field_name!r}", error) from error
            self.shape, self.dtype = row.shape, row.dtype
        else:
            self.shape, self.dtype = (*dim, n_channels), dtype

    def read(self, id: Any, row: np.ndarray) -> None:
        result = self._function(id, row) if self._fills else self._function(id)
        if not (self._fills and (result is None or result is row)):
            write_row(row, result)

    @property
    def is_users(self) -> bool:
        return True

    @property
    def may_leave_out(self) -> bool:
        return self._fills or super().may_leave_out

    def place(self, id: Any) -> str:
        return _name(self._function)


def _takes_two(function: Callable[..., Any]) -> bool:
    import inspect  # imported late: workers would start slower

    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C have no signature
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters) == 2


def _name(function: Callable[..., Any]) -> str:
    return f"function {getattr(function, '__qualname__', None) or function!r}"
