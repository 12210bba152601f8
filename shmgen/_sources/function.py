"""`Function`: a function of the id as a source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shmgen._samples.sample_spec import ANY, SampleSpec
from shmgen._sources.base import Source, function_error
from shmgen.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


class Function(Source):
    """A function of the id: ``function(id)`` returns a sample's array, or ``function(id, row)`` fills the row that it is given.

    The row that it is given is all zeros, so a short sample may fill only a part of it. A function that returns a dict or a
    tuple of arrays fills several fields: ``Function(f)["image"]`` is one of them. Where one of its parameters is called ``rng``,
    it gets the generator that a transform gets: ``function(id, rng)`` or ``function(id, row, rng)``.

    Args:
        function: the function; it is called in the workers.
        dim: shape of a sample without its channels.
        n_channels: size of the last axis.
        dtype: of a row.
        pad_value: what fills the rest of a row where a sample is smaller; see `Npy`.
        concurrent: whether the function may be called in several threads of a process at once, so that as many calls are in
            flight as pay where it waits for something. It must then not draw from the global generators of `random` and NumPy.

    What is left out is taken from the array of the first id, for which the function is called once in the main process. For a
    function that fills a row, ``dim`` and ``dtype`` must be given. Where a transform makes rows of samples that are larger, or of
    varying size, ``dim`` says how large a row is.

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
        pad_value: float | None = None,
        concurrent: bool = False,
    ) -> None:
        self._function = function
        self.concurrent = concurrent
        self._fills, self.draws = _parameters(function)
        self.given = SampleSpec.checked(dim, n_channels, dtype, pad_value)
        self._first: tuple[Any, ...] = ()  # what it returned for the first id, until it is bound

    def find_fields(self, ids: Sequence[Any]) -> None:
        if self._fills or self.given != ANY or self._first:
            return
        self._first = (first := self._call(ids[0]),)
        if isinstance(first, Mapping | tuple):
            parts = first if isinstance(first, Mapping) else dict(enumerate(first))
            try:
                arrays = {key: np.asarray(value) for key, value in parts.items()}
            except Exception as error:
                raise self._failed(ids[0], error) from error
            self.fields = {key: (array.shape, array.dtype) for key, array in arrays.items()}

    def bind(self, ids: Sequence[Any]) -> None:
        dim, n_channels, dtype, _ = self.given
        if self._fills and (dim is None or dtype is None):
            raise InputError(f"{_name(self._function)} fills a row that it is given: say its dim and dtype")
        if self._fills or self.given.is_complete:
            assert dim is not None
            assert dtype is not None
            self.shape, self.dtype = (*dim, *([] if n_channels is None else [n_channels])), dtype
            return
        self.find_fields(ids)
        if self.fields is None:
            [first] = self._first or [self._call(ids[0])]
            try:
                array = np.asarray(first)
                row = self.given.row(array.shape, array.dtype, varies=self.varies)
            except Exception as error:
                raise self._failed(ids[0], error) from error
            self.shape, self.dtype, self.varies = row.shape, row.dtype, row.varies
        else:
            self.varies = False  # without dim, samples are as the first
        self._first = ()

    def _call(self, id: Any) -> Any:
        """What the function returns for an id, here in the main process."""
        from shmgen._worker.rng import own_random_state

        try:
            with own_random_state():
                return self._function(id, rng=np.random.default_rng(0)) if self.draws else self._function(id)
        except Exception as error:
            raise self._failed(id, error) from error

    def _failed(self, id: Any, error: Exception) -> Exception:
        return function_error(id, f"source of field {self.field_name!r}", error)

    def read(self, id: Any, row: Any) -> Any:
        drawn = {"rng": self.rng} if self.draws else {}
        if self._fills:
            return self._function(id, row, **drawn)
        result = self._function(id, **drawn)
        if result is None:  # which would say that the row is filled
            return np.array(None) if self.fields is None else {}
        return result

    @property
    def is_users(self) -> bool:
        return True

    @property
    def may_leave_out(self) -> bool:
        return self._fills or super().may_leave_out

    def place(self, id: Any) -> str:
        return _name(self._function)


def _parameters(function: Callable[..., Any]) -> tuple[bool, bool]:
    """Whether a function takes a row, and whether it takes a generator, beside the id."""
    import inspect  # imported late: workers would start slower

    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C have no signature
        return False, False
    required = [p for p in parameters if p.default is inspect.Parameter.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    draws = any(p.name == "rng" for p in required[1:])
    return sum(p.kind is not p.KEYWORD_ONLY and p.name != "rng" for p in required) == 2, draws


def _name(function: Callable[..., Any]) -> str:
    return f"function {getattr(function, '__qualname__', None) or function!r}"
