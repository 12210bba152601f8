"""A row's shape and dtype come from the arguments and the first sample; other samples must fit, or are refused."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pytest
from conftest import python

from shmgen import FunctionError, Loader
from shmgen._samples.sample_spec import RowSpec, SampleSpec
from shmgen.errors import FormatError

ROWS = [
    # the arguments, the first sample's shape, and the two shapes that fit: the row's, and the one without its only channel
    pytest.param({}, (4, 3), (4, 3), (4, 3), id="nothing"),
    pytest.param({}, (), (), (), id="a-number"),
    pytest.param({"dim": (4, 3, 1)}, (4, 3, 1), (4, 3, 1), (4, 3), id="dim-with-its-only-channel"),
    pytest.param({"dim": (4, 3), "n_channels": 1}, (4, 3), (4, 3, 1), (4, 3), id="one-channel-missing"),
    pytest.param({"dim": (4,)}, (4, 3), (4, 3), (4, 3), id="dim-with-channels"),
    pytest.param({"n_channels": 1}, (4, 3), (4, 3, 1), (4, 3), id="one-channel-added"),
    pytest.param({"dim": (4,), "n_channels": 3}, (9, 9), (4, 3), (4, 3), id="both"),
]


@pytest.mark.parametrize(("given", "first", "shape", "bare_shape"), ROWS)
def test_rows(given: dict[str, Any], first: tuple[int, ...], shape: tuple[int, ...], bare_shape: tuple[int, ...]) -> None:
    """A row has the given shape and dtype, or else those of the first sample; at most two shapes of samples fit."""
    row = SampleSpec(**given).row(first, np.dtype(">f4"))
    assert row == RowSpec(shape, bare_shape, np.dtype("f4").str)
    assert row.row_bytes == 4 * int(np.prod(shape))
    for fits in (shape, bare_shape):
        row.check(fits, np.dtype("f8"))
    with pytest.raises(FormatError, match=r"^expected shape .*found \(7, 7, 7\); remedy$"):
        row.check((7, 7, 7), np.dtype("f4"), shape_remedy="; remedy")


REFUSED = [
    # the arguments, the first sample's shape and dtype, and a part of the error
    pytest.param({}, (0, 3), "f4", "expected a sample of at least one element, found shape (0, 3)", id="empty"),
    pytest.param({"n_channels": 3}, (3, 4), "f4", "expected a last axis of n_channels=3, found shape (3, 4)", id="n_channels"),
    pytest.param({"dim": (4,)}, (3,), "f4", "expected shape (4,), with or without an axis of channels after it, found", id="dim"),
]


@pytest.mark.parametrize(("given", "shape", "dtype", "text"), REFUSED)
def test_a_first_sample_that_cannot_be_a_row(given: dict[str, Any], shape: tuple[int, ...], dtype: str, text: str) -> None:
    """A first sample that can't be a row is an error with the shape expected and found."""
    with pytest.raises(FormatError, match=re.escape(text)):
        SampleSpec(**given).row(shape, np.dtype(dtype))


def test_an_empty_first_sample_says_no_dtype() -> None:
    """The dtype of an empty float64 array, such as ``np.array([])``, becomes that of all padded rows only if it is given."""
    empty = np.array([])
    with pytest.raises(FormatError, match=r"where the first sample is empty, found float64, .*pass dtype="):
        SampleSpec.checked(5, None, None, 0).row(empty.shape, empty.dtype, varies=True)
    for dtype, found in (("i8", empty.dtype), ("f8", empty.dtype), (None, np.dtype("i8"))):
        row = SampleSpec.checked(5, None, dtype, 0).row(empty.shape, found, varies=True)
        assert row.numpy_dtype == (dtype or found)


def test_a_functions_first_array_that_cannot_be_a_row() -> None:
    """If a function's first array can't be a row, the error names the id and the field."""
    with pytest.raises(FunctionError, match=r"^sample 3, source of field 'y': expected numbers, .* <U4; make them numbers"):
        Loader([3, 4], None, 2, workers=0, source=abs, targets=lambda id: "text")


def test_specifications_are_unpickled_without_numpy() -> None:
    """A row's specification can be unpickled without NumPy."""
    row = SampleSpec.checked(3, 1, np.float32).row((3,), np.dtype("f4"))
    code = "import pickle, sys; print(*pickle.load(sys.stdin.buffer)[:2]); print('numpy' in sys.modules)"
    run = python("-c", code, input=pickle.dumps(row), text=False, check=True)
    assert run.stdout.decode() == "(3, 1) (3,)\nFalse\n"
