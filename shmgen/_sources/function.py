"""`Function`: a function of the id as a source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shmgen._samples.sample_spec import ANY, SampleSpec, as_array
from shmgen._sources.base import BuiltinSource, Reader, function_error
from shmgen.errors import FormatError, InputError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


class Function(BuiltinSource):
    """A function of the id: ``function(id)`` returns a sample's array, or ``function(id, row)`` fills the row that it is given.

    The row that it is given is all zeros, so a short sample may fill only a part of it. A function that returns a dict or a
    tuple of arrays fills several fields: ``Function(f)["image"]`` is one of them. Where one of its parameters is called ``rng``,
    it gets the generator that a transform gets: ``function(id, rng)`` or ``function(id, row, rng)``.

    Args:
        function: the function; it is called in the workers.
        dim: shape of a sample without its channels; or its whole shape, where ``n_channels`` is left out.
        n_channels: size of the last axis. Where it is 1, an array of shape ``dim`` is taken, too, and gets that axis.
        dtype: of a row.
        pad_value: what fills the rest of a row where a sample is smaller; see `Npy`.
        concurrent: whether the function may be called in several threads of a process at once, so that, where it waits for
            something, as many calls as pay off run at once. It must not draw from the global generators then.

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
        self._fills, self._draws = _parameters(function)
        self.given = SampleSpec.checked(dim, n_channels, dtype, pad_value)
        self.finds_fields = not self._fills and self.given == ANY

    def bind(self, ids: Sequence[Any], *, field: str = "X", varies: bool = False) -> FunctionReader:
        dim, n_channels, dtype, pad_value = self.given
        reader = FunctionReader(self._function, fills=self._fills, draws=self._draws)
        reader.concurrent = self.concurrent
        if self._fills and (dim is None or dtype is None):
            raise InputError(f"{_name(self._function)} fills a row that it is given: say its dim and dtype")
        if dim is not None and dtype is not None and (self._fills or n_channels is not None or pad_value is not None):
            reader.shape, reader.dtype = (*dim, *([] if n_channels is None else [n_channels])), dtype
            reader.varies = varies
            return reader
        from shmgen._worker.rng import own_random_state

        where = f"source of field {field!r}"
        try:
            with own_random_state():
                first = reader.read(ids[0], None, np.random.default_rng(0))
            if self.finds_fields and isinstance(first, Mapping | tuple):
                if not first:
                    raise FormatError(f"expected an array, or several, found an empty {type(first).__name__}")
                # Without dim, samples are as the first.
                parts = first.items() if isinstance(first, Mapping) else enumerate(first)
                reader.fields = {key: _shape_and_dtype(key, part) for key, part in parts}
            else:
                array = as_array(first)
                row = self.given.row(array.shape, array.dtype, varies=varies)
                reader.shape, reader.dtype, reader.varies = row.shape, row.dtype, row.varies
        except Exception as error:
            raise function_error(ids[0], where, error) from error
        return reader


class FunctionReader(Reader):
    """Calls a function of the user's for each sample."""

    reads_one_by_one = True

    def __init__(self, function: Callable[..., Any], *, fills: bool, draws: bool) -> None:
        self.user_code = function
        self.draws = draws
        self.leaves_out = self._fills = fills

    def read(self, key: Any, row: Any, rng: np.random.Generator | None = None) -> Any:
        drawn = {"rng": rng} if self.draws else {}
        if self._fills:
            return self.user_code(key, row, **drawn)
        result = self.user_code(key, **drawn)
        if result is None:  # which would say that the row is filled
            remedy = "let the function return one, or fill the row that it is given: function(id, row), with dim and dtype"
            raise FormatError(f"expected an array, found None; {remedy}")
        return result

    def place(self, id: Any) -> str:
        return _name(self.user_code)


def _shape_and_dtype(key: object, part: Any) -> tuple[tuple[int, ...], DTypeLike]:
    """Of the rows of a field that a function returns."""
    if isinstance(part, Mapping):
        remedy = "return one dict of all arrays, and choose of it: inputs={'a': source['a']}, targets=source['y']"
        raise FormatError(f"field {key!r}: expected an array, found a dict: {remedy}, where source is Function(...)")
    try:
        array = as_array(part)
    except FormatError as error:
        raise FormatError(f"field {key!r}: {error}") from None
    return array.shape, array.dtype


def _parameters(function: Callable[..., Any]) -> tuple[bool, bool]:
    """Whether a function takes a row, and whether it takes a generator, beside the id."""
    import inspect  # imported late: workers would start slower

    try:
        every = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C have no signature
        return False, False
    parameters = [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p for p in parameters if p.default is p.empty]
    draws = any(p.name == "rng" for p in parameters[1:])
    return sum(p.kind is not p.KEYWORD_ONLY and p.name != "rng" for p in required) == 2, draws


def _name(function: Callable[..., Any]) -> str:
    return f"function {getattr(function, '__qualname__', None) or function!r}"
