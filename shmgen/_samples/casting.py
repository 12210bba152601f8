"""The rule for all casts of samples to rows: a row may hold a number less precisely, but never another number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmgen.errors import FormatError

if TYPE_CHECKING:
    import numpy as np


def cast_into(rows: np.ndarray, found: np.ndarray, remedy: str = "") -> None:
    """Write ``found`` into ``rows`` of the same shape. Both are ints, or NumPy calls the cast "same_kind".

    A number that does not fit, as 300 in uint8, or 1e300 in float32, is a FormatError that ends in ``remedy``, where ``{found}``
    stands for the dtype of ``found``. The rows are then undefined.
    """
    import numpy as np

    if np.can_cast(found.dtype, rows.dtype):
        rows[...] = found
        return
    with np.errstate(all="ignore"):  # under the user's np.seterr(all="raise"), a loss of precision would be an error
        rows[...] = found
        misfits = _misfits(rows, found)
    if misfits is not None and misfits.any():
        first, others = found[misfits].flat[0].item(), int(misfits.sum()) - 1
        more = f" and {others:,} more of {found.size:,}" if others else ""
        remedy = (remedy or "; pass dtype='{found}'").format(found=found.dtype.name)
        found_text = f"{first}{more} in dtype {found.dtype}{remedy}"
        raise FormatError(f"expected numbers that dtype {rows.dtype} holds, found {found_text}")


def cast(found: np.ndarray, dtype: np.dtype[Any], remedy: str = "") -> np.ndarray:
    """A copy of ``found`` of another dtype; as `cast_into`."""
    import numpy as np

    rows = np.empty(found.shape, dtype)
    cast_into(rows, found, remedy)
    return rows


def holds(dtype: np.dtype[Any], number: float) -> bool:
    """Whether rows of ``dtype`` can hold a number; those of ints hold whole numbers in their range."""
    import numpy as np

    if dtype.kind in "iub":
        # Compared as Python's numbers: NumPy would wrap -1 to the largest uint64, which compares as -1 again.
        lowest, highest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        return lowest <= number <= highest and number == int(number)
    given = np.float64(number)
    with np.errstate(all="ignore"):
        stored = given.astype(dtype)
        if dtype.name.startswith(("int", "uint")):  # of ml_dtypes
            return bool(stored.astype(given.dtype) == given)
        return bool(np.isnan(given) or stored == given or np.isfinite(stored))


def unmasked(value: Any) -> Any:
    """``value``; refused if it has masked elements, since a row would show the numbers under the mask."""
    if hasattr(value, "mask") and hasattr(value, "filled") and value.mask.any():
        raise FormatError("expected an array without masked elements, found some; fill it: array.filled(number)")
    return value


def _misfits(rows: np.ndarray, found: np.ndarray) -> Any:
    """Where numbers of ``found`` did not fit into ``rows``; None if all did."""
    import numpy as np

    if rows.dtype.kind in "iu":
        bounds = np.iinfo(rows.dtype)
        # Compared as Python's ints: NumPy compares an int64 with a uint64 as floats.
        if not found.size or bounds.min <= int(found.min()) <= int(found.max()) <= bounds.max:
            return None
        return rows != found
    if rows.dtype.name.startswith(("int", "uint")):  # of ml_dtypes
        return rows.astype(found.dtype) != found
    finite = np.isfinite(rows)
    return None if finite.all() else np.isfinite(found) & ~finite
