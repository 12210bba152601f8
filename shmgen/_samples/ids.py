"""The ids of all samples, in no more memory than the caller's, and text files of ids."""

from __future__ import annotations

import hashlib
import math
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np

from shmgen._samples.files import some_of
from shmgen.errors import FormatError, InputError

BLOCK = 1 << 16
"""Ids or values that are handled at once: more would take more memory, and no less time."""

LONGEST_ID = 4096
"""The most bytes of an id in a file; Linux has no longer paths."""


def kept(ids: Any) -> Sequence[Any]:
    """``ids`` as a sequence of texts, bytes or ints. It is a copy, unless they are a range or an array of texts.

    Paths become texts; a path in place of the sequence is that of a text file, an id a line. All else is an InputError.
    """
    if isinstance(ids, range):
        return ids
    if isinstance(ids, os.PathLike):
        return read_ids(os.fspath(ids), f"list_IDs: {os.fspath(ids)}")
    if is_frame(ids):
        raise InputError(f"list_IDs: expected ids, found a {type(ids).__name__}; pass its column of ids, as df['id']")
    if isinstance(ids, str | bytes | set | frozenset | Mapping) or hasattr(ids, "_fields") or not isinstance(ids, Iterable):
        raise InputError(f"list_IDs: expected a list or array of ids, in an order, found {_no_list(ids)}")
    if hasattr(ids, "__array__"):  # arrays, and columns of pandas, polars, pyarrow
        array = column_as_array(ids)
        if array.ndim != 1:
            remedy = "pass ids[:, 0], or, where these are samples in memory, range(len(x)) as ids, and inputs=Values(x)"
            raise InputError(f"list_IDs: expected an array of one axis, found one of shape {array.shape}; {remedy}")
        if array.dtype.kind in "USiu":
            return _ArrayIds(array if array.dtype.kind in "US" else array.copy(), index_of(ids))
        return _ColumnIds(_plain_ids(array.tolist()), index_of(ids))
    return _plain_ids(list(ids))


def _plain_ids(ids: list[Any]) -> list[Any]:
    # With NumPy's scalars every worker would import NumPy.
    return ids if set(map(type, ids)) <= {str, bytes, int} else [_plain(id, position) for position, id in enumerate(ids)]


def _plain(id: Any, position: int) -> str | bytes | int:
    """``id`` as a text, bytes or an int of Python's own."""
    if isinstance(id, os.PathLike):
        id = os.fspath(id)
    if isinstance(id, str):
        return str.__str__(id)
    if isinstance(id, bytes):
        return bytes(id)
    if hasattr(id, "__index__") and not isinstance(id, bool | np.bool_):
        return operator.index(id)
    remedy = "leave it out, as df.dropna() does" if is_missing(id) else "pass [str(id) for id in ids] where these are the ids"
    found = f"{id!r} of type {type(id).__name__} at position {position:,}"
    raise InputError(f"list_IDs: expected texts, bytes or ints, found {found}; {remedy}")


def is_missing(value: Any) -> bool:
    """Whether this is a missing value: None, NaN, or one of pandas."""
    is_nan = isinstance(value, float | np.floating) and math.isnan(value)
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


def _no_list(ids: Any) -> str:
    if isinstance(ids, Mapping):
        return f"a {type(ids).__name__} with {some_of(ids)}; pass one of its lists, as partition['train'], or list(ids)"
    if isinstance(ids, str | bytes):
        return f"{ids!r}; pass [id] for a single one, or Path({str(ids)!r}) for a text file of ids, a line each"
    if fields := getattr(ids, "_fields", None):  # of a named tuple, such as `ImageFolder`
        return f"a whole {type(ids).__name__} of {', '.join(fields)}; pass the ids in it, as found.partition['train'] are"
    return f"one of type {type(ids).__name__}; pass a list of the ids"


def take(ids: Sequence[Any], samples: np.ndarray) -> list[Any]:
    """The ids of ``samples``, positions in ``ids``."""
    if isinstance(ids, _ArrayIds):
        taken: list[Any] = ids.array[samples].tolist()
        return taken
    return list(map(ids.__getitem__, samples.tolist()))


def as_ints(ids: Sequence[Any]) -> range | np.ndarray | None:
    """``ids`` as a range or an array if all are ints, else None. The array holds Python's ints if one is too large for int64."""
    if isinstance(ids, range):
        return ids
    if isinstance(ids, _ArrayIds):
        return ids.array if ids.array.dtype.kind in "iu" else None
    if not set(map(type, ids)) <= {int}:
        return None
    try:
        return np.array(ids, np.int64)
    except OverflowError:
        return np.array(ids, object)


def first_outside(ids: Sequence[Any], count: int) -> int | None:
    """The position of an id that is no int from 0 to ``count - 1``; None if all are."""
    numbers = as_ints(ids)
    if numbers is None:
        return next(position for position, id in enumerate(ids) if not isinstance(id, int) or not 0 <= id < count)
    if isinstance(numbers, range):
        return next((position for position in (0, len(ids) - 1) if ids and not 0 <= ids[position] < count), None)
    outside = (numbers < 0) | (numbers >= count)
    return int(outside.argmax()) if outside.any() else None


def require_numbers(ids: Sequence[Any], count: int, expected: str, remedy: str = "") -> None:
    """Refuse ids that are not ``expected``, an int from 0 to ``count - 1``; ``remedy`` is for texts other than those of ints."""
    if (wrong := first_outside(ids, count)) is None:
        return
    id = ids[wrong]
    if isinstance(id, int):
        remedy = ""
    elif str(id).isdecimal():
        remedy = "; pass [int(id) for id in ids], or, where a text file has them, list_IDs=np.loadtxt(file, int, ndmin=1)"
    raise InputError(f"id {id!r}: expected {expected}{remedy}")


def column_as_array(values: Any) -> np.ndarray:
    """``values``, an array or a column of pandas, polars or pyarrow, as an array."""
    # Not `np.asarray` of a column of pandas: it looks up attributes in the index, for which pandas makes a table and keeps it.
    return np.asarray(values if index_of(values) is None else values.to_numpy())


def index_of(values: Any) -> Any:
    """The index of a column of pandas, the labels of its rows; None for anything else."""
    index = getattr(values, "index", None)
    return index if hasattr(index, "get_indexer") else None


def is_frame(value: object) -> bool:
    """Whether ``value`` is a table of columns, of pandas, polars or pyarrow."""
    return hasattr(type(value), "columns") and len(getattr(value, "shape", ())) == 2


def fingerprint(ids: Sequence[Any]) -> str:
    """A hash of ``ids`` and their order, of 32 hexadecimal digits. Equal ids in a list, array or range have the same."""
    hashed = hashlib.blake2b(digest_size=16)
    numbers = as_ints(ids)
    if numbers is None or (isinstance(numbers, np.ndarray) and numbers.dtype.kind == "O"):
        for block in blocks(ids):
            hashed.update(ascii(block).encode())
    elif (steps := _as_range(numbers)) is not None:
        hashed.update(repr((steps.start, steps.step, len(steps))).encode())
    else:
        array = np.asarray(numbers)
        hashed.update(np.ascontiguousarray(array, "<i8" if array.dtype.kind == "i" else "<u8").data)
    return hashed.hexdigest()


def _as_range(numbers: range | np.ndarray) -> range | None:
    """``numbers`` as a range, if all steps between them are equal; the range of equal numbers has equal parts."""
    if len(numbers) < 2:
        return range(int(numbers[0]), int(numbers[0]) + 1) if len(numbers) else range(0)
    first, step = int(numbers[0]), int(numbers[1]) - int(numbers[0])
    if step == 0 or (not isinstance(numbers, range) and (np.diff(numbers.astype(np.int64)) != step).any()):
        return None
    return range(first, first + len(numbers) * step, step)


class _ArrayIds(Sequence[Any]):
    """Ids in an array. As Python objects they would take more memory, so these are made only when they are needed."""

    def __init__(self, array: np.ndarray, row_index: Any) -> None:
        self.array = array
        self.row_index = row_index  # of the column of pandas that they come from; None if they don't

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, position: Any) -> Any:
        return self.array[position].tolist()

    def __iter__(self) -> Iterator[Any]:
        return objects(self.array)


class _ColumnIds(list[Any]):
    """Ids from a column of pandas or another library, with the index of its rows; None if it has none."""

    def __init__(self, ids: list[Any], row_index: Any) -> None:
        super().__init__(ids)
        self.row_index = row_index


def objects(values: Sequence[Any] | np.ndarray) -> Iterator[Any]:
    """Values as Python objects; those of an array are made a block at a time."""
    if not isinstance(values, np.ndarray):
        return iter(values)
    return chain.from_iterable(block.tolist() for block in blocks(values))


def blocks(values: Any, size: int = BLOCK) -> Iterator[Any]:
    """Ids or values in slices of ``size`` elements, so that what is made of them takes little memory."""
    return (values[first : first + size] for first in range(0, len(values), size))


def refuse_ways_out(ids: Sequence[object], folder: str, remedy: str) -> None:
    """Refuse ids that lead out of ``folder``; an error ends in ``remedy``."""
    for block in blocks(ids):
        some = list(map(str, block))
        # A block is searched as one text: one by one, a million ids would take a second.
        together = "\0".join(some)
        if ".." not in together and "\0/" not in f"\0{together}":
            continue
        for id in some:
            if id.startswith("/") or ".." in id.split("/"):
                raise InputError(f"id {id!r}: expected one that stays in folder {folder}, found a path out of it; {remedy}")


def read_ids(file: str, named: str) -> list[str]:
    """The ids in a text file, which errors call ``named``; see `id_lines`."""
    try:
        with open(file, "rb") as opened:
            return list(map(os.fsdecode, id_lines(opened.read())))
    except OSError as error:
        raise InputError(f"{named}: {error.strerror} (errno {error.errno}); give a file that can be opened") from None
    except FormatError as error:
        raise InputError(f"{named}: {error}") from None


def id_lines(data: bytes) -> list[bytes]:
    """The lines of a text file in UTF-8, an id each, without a byte order mark, carriage returns, and empty lines."""
    lines = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").removesuffix(b"\r").split(b"\n")
    if b"\0" in data or max(map(len, lines)) > LONGEST_ID:
        number, line = next((number, line) for number, line in enumerate(lines, 1) if b"\0" in line or len(line) > LONGEST_ID)
        found = "a NUL byte" if b"\0" in line else f"more than {LONGEST_ID:,} bytes"
        raise FormatError(f"line {number:,}: expected an id, found {found}; write an id a line, as text in UTF-8")
    if ids := [line for line in lines if line]:
        return ids
    raise FormatError("expected ids, an id a line, found none")


def as_lines(ids: Iterable[object]) -> bytes:
    """The text file of ``ids``, an id a line; an InputError names one that `id_lines` would read as another, or not at all."""
    lines = [f"{id}\n".encode("utf-8", "surrogateescape") for id in ids]
    for line in lines:
        with suppress(FormatError):
            if id_lines(line) == [line[:-1]]:
                continue
        expected = f"1 to {LONGEST_ID:,} bytes without a line break, NUL or byte order mark, to be a line of a text file"
        raise InputError(f"id {os.fsdecode(line[:-1])!r}: expected {expected}; rename that sample, or leave it out")
    return b"".join(lines)
