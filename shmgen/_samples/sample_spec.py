"""The shape and dtype of samples: those that are given, those of the first sample, and whether another sample fits."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Self, SupportsIndex

from shmgen._checks import check_int
from shmgen._samples.casting import cast, cast_into, unmasked
from shmgen.errors import FormatError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

NO_NUMBERS = "; make them numbers, or leave them out; where they are of ml_dtypes, such as bfloat16, pass that as dtype"

LOSSY_CAST = "whose cast would lose more than precision"

OF_ANOTHER_SHAPE = (
    "; dim and n_channels, or shaped(dim=...) of a field, say what shape a row has, and left out it is the first sample's. Where "
    "samples vary in size, give dim, and a transform that makes rows of them, or a pad_value"
)


class SampleSpec(NamedTuple):
    """What the user gives about samples, as `Npy` takes it; None stands for what the first sample has.

    ``dtype`` is text: see `dtype_text`. With a ``pad_value``, ``dim`` is the whole shape of a row unless ``n_channels`` is given.
    """

    dim: tuple[int, ...] | None = None
    n_channels: int | None = None
    dtype: str | None = None
    pad_value: float | None = None

    @classmethod
    def checked(
        cls,
        dim: int | Iterable[int] | None,
        n_channels: SupportsIndex | None,
        dtype: DTypeLike | None,
        pad_value: float | None = None,
    ) -> Self:
        """The arguments of these names; an InputError says which describes no rows."""
        checked_dtype = check_dtype(dtype)
        return cls(
            check_shape(dim),
            None if n_channels is None else check_int(n_channels, "n_channels", 1),
            None if checked_dtype is None else dtype_text(checked_dtype),
            check_pad_value(pad_value, dim),
        )

    def row(self, shape: tuple[int, ...], dtype: np.dtype[np.generic], *, varies: bool = False) -> RowSpec:
        """The row for a first sample of this shape and dtype, which need not fit; as large as ``dim`` says if samples vary."""
        dim, n_channels, row_dtype, pad_value = self
        varies = varies and dim is not None
        if 0 in shape and not varies:
            raise FormatError(f"expected a sample of at least one element, found shape {shape}")
        if 0 in shape and row_dtype is None and dtype == "float64":
            found = "float64, which np.array([]) has whatever the others are"
            raise FormatError(f"expected dtype to be given where the first sample is empty, found {found}; pass dtype=...")
        row_shape = shape
        if dim is not None and n_channels is not None:
            row_shape = (*dim, n_channels)
        elif dim is not None and varies:
            row_shape = self._varied(dim, shape)
        elif dim is not None and dim not in (shape, shape[:-1]):
            raise FormatError(f"expected shape {dim}, with or without an axis of channels after it, found {shape}")
        elif n_channels is not None and shape[-1:] != (n_channels,):
            if n_channels != 1:
                raise FormatError(f"expected a last axis of n_channels={n_channels}, found shape {shape}")
            row_shape = (*shape, 1)
        has_channel = row_shape[-1:] == (1,) and pad_value is None and (dim, n_channels) != (None, None)
        bare_shape = row_shape[:-1] if has_channel else row_shape
        if row_dtype is None:
            check_numbers(dtype)
            row_dtype = dtype_text(dtype.newbyteorder("="))
        return RowSpec(row_shape, bare_shape, row_dtype, varies)

    def _varied(self, dim: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a row where samples vary, and the first one has this shape."""
        if self.pad_value is not None or len(shape) == len(dim):
            return dim
        if len(shape) != len(dim) + 1:
            raise FormatError(f"expected n_channels beside dim={dim}, since a sample has another number of axes: shape {shape}")
        return (*dim, shape[-1])


ANY = SampleSpec()
"""Nothing is given: all is as in the first sample."""


class RowSpec(NamedTuple):
    """A row of a batch, and which samples fit in it: those of its ``shape`` or, without its only channel, ``bare_shape``."""

    shape: tuple[int, ...]
    bare_shape: tuple[int, ...]
    dtype: str
    varies: bool = False  # samples may have other shapes, because they are padded or a transform makes rows of them

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes that fit, that of a row first."""
        return self.shape, self.bare_shape

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        return dtype_of(self.dtype)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    def check(
        self, shape: tuple[int, ...], dtype: np.dtype[np.generic], *, shape_remedy: str = "", dtype_remedy: str = ""
    ) -> None:
        if shape not in self.shapes and not self.varies:
            raise FormatError(_wrong_shape(self.shapes, shape) + shape_remedy)
        if not can_cast(dtype, self.numpy_dtype):
            raise FormatError(_wrong_dtype(self.numpy_dtype, dtype) + dtype_remedy)


class ShapeError(FormatError):
    """An array has another shape than was expected."""


def write_row(
    row: np.ndarray, value: Any, *, pad_value: float | None = None, shape_remedy: str = "", dtype_remedy: str = ""
) -> tuple[int, ...]:
    """Write what a function returned into ``row``, and ``pad_value`` into its rest; returns the shape of the written part."""
    import numpy as np

    if type(value) is np.ndarray and value.shape == row.shape and value.dtype == row.dtype:  # the usual case, made fast
        row[...] = value
        return row.shape
    array = _array(row, value)
    if array.shape != row.shape:
        if pad_value is None:
            bare_shape = row.shape[:-1] if row.shape[-1:] == (1,) else row.shape
            raise ShapeError(_wrong_shape((row.shape, bare_shape), np.shape(value)) + shape_remedy)
        check_smaller(array.shape, row.shape, shape_remedy)
    array = _castable(row, array, dtype_remedy)
    if array.shape != row.shape:
        if np.may_share_memory(array, row):
            array = array.copy()
        row[...] = pad_value
    written: tuple[Any, ...] = (*map(slice, array.shape), ...)  # the dots: of a row without axes, an array too
    cast_into(row[written], array, dtype_remedy)
    return array.shape


def check_smaller(shape: tuple[int, ...], row: tuple[int, ...], remedy: str = "") -> None:
    full = (*shape, 1) if len(shape) == len(row) - 1 and row[-1] == 1 else shape
    if len(full) != len(row) or not all(map(operator.le, full, row)):
        axes = f"{len(row)} {'axis' if len(row) == 1 else 'axes'}"
        raise ShapeError(f"expected shape {row}, or a smaller one of {axes}, found {shape}{remedy}")


def sample_for(row: np.ndarray, value: Any, *, own: bool, dtype_remedy: str = "") -> np.ndarray:
    """``value``, of another shape than ``row``, as an array of its dtype to be changed: a copy, or the loader's ``own``."""
    array = _castable(row, _array(row, value), dtype_remedy)
    return array if own and array.flags.writeable and array.dtype == row.dtype else cast(array, row.dtype, dtype_remedy)


def _array(row: np.ndarray, value: Any) -> np.ndarray:
    """``value`` as an array; with an axis of one channel if ``row`` has one."""
    array = as_array(value)
    return array[..., None] if array.ndim == row.ndim - 1 and row.shape[-1] == 1 else array


def as_array(value: Any) -> np.ndarray:
    import numpy as np

    if value is None:
        raise FormatError("expected an array, found None")
    try:
        return np.asarray(unmasked(value))
    except ValueError:  # NumPy's, of parts of several shapes
        found = f"found a {type(value).__name__} of parts of several shapes; return fields as a dict or a tuple"
        raise FormatError(f"expected an array, {found}") from None


def _castable(row: np.ndarray, array: np.ndarray, dtype_remedy: str) -> np.ndarray:
    if not can_cast(array.dtype, row.dtype):
        remedy = dtype_remedy.format(found=dtype_for(array.dtype)) if are_numbers(array.dtype) else "; numbers are needed"
        raise FormatError(_wrong_dtype(row.dtype, array.dtype) + (remedy if dtype_remedy else ""))
    return array if reinterpreted(array.dtype, row.dtype) == array.dtype else array.view(row.dtype)


def dtype_for(found: np.dtype[np.generic]) -> str:
    """The dtype to advise for rows where a function computes in ``found``; float64 is mostly NumPy's default, not intended."""
    return "float32" if found == "float64" else found.name


def _wrong_shape(shapes: Iterable[tuple[int, ...]], found: tuple[int, ...]) -> str:
    return f"expected shape {' or '.join(map(str, dict.fromkeys(shapes)))}, found {found}"


def _wrong_dtype(dtype: np.dtype[np.generic], found: np.dtype[np.generic]) -> str:
    return f"expected dtype {dtype}, found {found}, {LOSSY_CAST}"


def check_shape(dim: int | Iterable[int] | None, name: str = "dim") -> tuple[int, ...] | None:
    if dim is None:
        return None
    sizes = dim if isinstance(dim, Iterable) and not isinstance(dim, str) else (dim,)
    return tuple(check_int(size, name, 1) for size in sizes)


def check_pad_value(pad_value: float | None, dim: object) -> float | None:
    if pad_value is None:
        return None
    if dim is None:
        raise InputError("pad_value: expected with dim, which says how large the padded rows are")
    number = pad_value.item() if hasattr(pad_value, "item") else pad_value  # of NumPy
    if not isinstance(number, int | float):
        raise InputError(f"pad_value: expected a number, found {pad_value!r}")
    return number


def check_dtype(dtype: DTypeLike | None) -> np.dtype[np.generic] | None:
    """``dtype`` in native byte order, or None. It must be one of numbers, of NumPy or of ml_dtypes."""
    if dtype is None:
        return None
    try:
        native = dtype_of(dtype)
    except TypeError:
        raise InputError(f"dtype: expected one of numbers, found {dtype!r}") from None
    if not are_numbers(native):
        raise InputError(f"dtype: expected one of numbers, found {native}")
    return native


def check_numbers(dtype: np.dtype[np.generic]) -> None:
    if not are_numbers(dtype):
        raise FormatError(f"expected numbers, found dtype {dtype}{NO_NUMBERS}")


def dtype_of(dtype: DTypeLike) -> np.dtype[np.generic]:
    """``dtype`` in native byte order. A name that NumPy does not know is looked up in ml_dtypes."""
    import numpy as np

    try:
        return np.dtype(dtype).newbyteorder("=")
    except TypeError:
        if not isinstance(dtype, str):
            raise
    try:
        import ml_dtypes  # needed only for its own dtypes

        extended: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, dtype))
    except (ImportError, AttributeError):
        raise TypeError(f"data type {dtype!r} not understood") from None
    return extended


def dtype_text(dtype: np.dtype[np.generic]) -> str:
    """A text from which `dtype_of` makes ``dtype`` again. Unlike the dtype, it can be unpickled without NumPy."""
    return dtype.name if _is_extended(dtype) else dtype.str


def are_numbers(dtype: np.dtype[np.generic]) -> bool:
    return dtype.kind in "biufc" or _is_extended(dtype)


def can_cast(found: np.dtype[np.generic], dtype: np.dtype[np.generic]) -> bool:
    """Whether numbers of dtype ``found`` may be cast to ``dtype``, if each fits: see `shmgen._samples.casting`."""
    import numpy as np

    return np.can_cast(reinterpreted(found, dtype), dtype, "same_kind") or (found.kind in "iu" and dtype.kind in "iu")


def reinterpreted(found: np.dtype[np.generic], dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The dtype of elements stored as ``found`` if ``dtype`` is expected: of ml_dtypes, `numpy.save` stores only the size."""
    is_bytes = found.char == "V" and found.fields is None and found.subdtype is None
    return dtype if is_bytes and _is_extended(dtype) and found.itemsize == dtype.itemsize else found


def _is_extended(dtype: np.dtype[np.generic]) -> bool:
    """Whether ``dtype`` is one of ml_dtypes, whose kind NumPy gives as raw bytes for most."""
    return dtype.type.__module__ == "ml_dtypes"
