"""Sources that are rows of one file, values, functions or users' own classes: what each reads and refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from shmgen import Function, FunctionError, InputError, Loader, Npy, NpyRows, Reader, Source, StartError, Values

N = 40


def table(rows: int = N, dtype: Any = np.float32, first: int = 0) -> np.ndarray:
    """Rows of three equal elements: the number of the row, counted from ``first``."""
    return (np.arange(first, first + rows)[:, None] * np.ones((1, 3))).astype(dtype)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of 40 rows of three float32; row k is filled with k."""
    np.save(tmp_path / "big.npy", table())
    return tmp_path / "big.npy"


def pairs(loader: Loader) -> Iterator[tuple[list[Any], int]]:
    """The row and the label of each sample of an epoch."""
    for X, y in loader:
        yield from zip(X.tolist(), y.tolist(), strict=True)


@pytest.mark.parametrize("dtype", [">f4", "<i8", "?"])
def test_rows_of_one_file(tmp_path: Path, dtype: str) -> None:
    """Rows of any dtype and byte order, shuffled or not, come with their own labels, in native byte order."""
    array = table(dtype=dtype)
    np.save(tmp_path / "big.npy", array)
    for shuffle in (True, False):
        with Loader(range(N), range(N), 8, source=NpyRows(tmp_path / "big.npy"), shuffle=shuffle, workers=0) as loader:
            for X, y in loader:
                assert X.dtype == np.dtype(dtype).newbyteorder("=")
                np.testing.assert_array_equal(X, array[y])
            assert shuffle != (list(pairs(loader))[3][1] == 3)


def test_a_worker_opens_a_file_of_rows_once(big: Path, workers: Callable[[], list[psutil.Process]]) -> None:
    """A worker opens a file of rows once, and once more to map it; the main process does not keep it open."""
    with Loader(range(N), None, 8, source=NpyRows(big), workers=2, reads=1) as loader:
        for _ in range(3):
            list(loader)
        found = [[file.path for file in worker.open_files()] for worker in workers()]
        here = [file.path for file in psutil.Process().open_files()]
    assert any(found)
    assert all(set(files) <= {str(big)} and len(files) <= 2 for files in found)
    assert str(big) not in here


def test_fortran_order_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """A file in Fortran order is refused, since its rows are not contiguous; the remedy works."""
    path = tmp_path / "big.npy"
    np.save(path, np.asfortranarray(table()))
    with pytest.raises(InputError, match=r"big\.npy: expected C order, found Fortran order.*np\.save\(file, np\.ascontig"):
        Loader(range(N), None, 8, source=NpyRows(path))
    np.save(path, np.ascontiguousarray(np.load(path)))
    with Loader(range(N), None, 8, source=NpyRows(path), workers=0) as loader:
        assert len(list(loader)) == 5


@pytest.mark.parametrize(
    ("array", "text"),
    [
        pytest.param(np.float64(3.0), r"an array of rows, found shape \(\)", id="no-axis"),
        pytest.param(np.zeros((3, 0)), r"an array of rows, found shape \(3, 0\)", id="empty-rows"),
        pytest.param(np.array(["a", "b"]), "expected numbers, found dtype <U1", id="text"),
    ],
)
def test_files_without_rows_are_refused(tmp_path: Path, array: np.ndarray, text: str) -> None:
    """A file without rows of numbers is refused with its path when the loader is made."""
    np.save(tmp_path / "big.npy", array)
    with pytest.raises(InputError, match=rf"big\.npy: .*{text}"):
        Loader([0], None, 1, source=NpyRows(tmp_path / "big.npy"))


def test_a_missing_file_of_rows(tmp_path: Path) -> None:
    """A missing file of rows is named by its path, without advice about data_dir."""
    with pytest.raises(InputError, match=r"none\.npy: expected a file, found none") as caught:
        Loader([0], None, 1, source=NpyRows(tmp_path / "none.npy"))
    assert "data_dir" not in str(caught.value)


class Frame:
    """Has the methods of a mapping, but is no Mapping."""

    def __init__(self, values: dict[Any, Any]) -> None:
        self._values = values

    def __getitem__(self, label: Any) -> Any:
        return self._values[label]

    def keys(self) -> Any:
        return self._values.keys()


STR = ["a", "b", "c", "d"]


def test_objects_like_a_mapping_are_looked_up_by_id() -> None:
    """An object that has a mapping's methods is looked up by id, like a mapping."""
    for ids, values in ((STR, dict(zip("abcd", (3, 1, 4, 1), strict=True))), ([5, 0, 2, 0], {5: 3, 0: 1, 2: 4})):
        frame: Any = Frame(values)
        for given in (frame, Values(frame)):
            with Loader(ids, None, 4, inputs=given, shuffle=False, workers=0) as loader:
                assert loader.batch(0)[0].tolist() == [3, 1, 4, 1]


@pytest.mark.parametrize(
    ("values", "options", "dtype", "shape"),
    [
        pytest.param([3, 1, 4, 1], {}, "int64", (), id="ints"),
        pytest.param(np.array([3, 1, 4, 1], np.uint8), {}, "int64", (), id="small-ints"),
        pytest.param([3.5, 1, 4, 1], {}, "float32", (), id="floats"),
        pytest.param([[1, 0], [0, 1], [1, 1], [0, 0]], {}, "int64", (2,), id="multi-label"),
        pytest.param(np.arange(24.0).reshape(4, 3, 2), {"dtype": "f8"}, "float64", (3, 2), id="float64"),
        pytest.param([3, 1, 4, 1], {"dtype": ">f4"}, "float32", (), id="ints-as-floats"),
        pytest.param([True, False, True, True], {"dtype": bool}, "bool", (), id="bools-as-bools"),
        pytest.param([3, 1, 4, 1], {"n_classes": 5, "dtype": "u1"}, "uint8", (5,), id="one-hot-bytes"),
    ],
)
def test_dtypes_and_shapes_of_values(values: Any, options: dict[str, Any], dtype: str, shape: tuple[int, ...]) -> None:
    """Without a dtype, values become int64 or float32; they may be scalars, vectors or arrays, or become one-hot rows."""
    with Loader(STR, None, 2, inputs=Values(values, **options), shuffle=False, workers=0) as loader:
        found = np.concatenate([X for (X,) in loader])
    expected = np.eye(5)[values] if "n_classes" in options else np.asarray(values)
    assert (found.dtype, found.shape) == (np.dtype(dtype), (4, *shape))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("values", "options", "text"),
    [
        pytest.param([1.5, 2, float("nan"), 1], {}, "id 'c', field 'age': expected a number, found nan", id="nan"),
        pytest.param({"a": 1, "b": 2, "d": 3}, {}, "id 'c', field 'age': expected a value .* found none", id="missing"),
        pytest.param([[1, 2], [1, 2], [1, 2, 3], [1, 2]], {}, r"id 'c', .*expected shape \(2,\), .*found \(3,\)", id="shapes"),
        pytest.param([1, 2, 1.5, 4], {"dtype": "i8"}, r"id 'c', field 'age': expected an int, found 1\.5 of type", id="float"),
        pytest.param([[1], [2], [1.5], [4]], {"dtype": "i8"}, "id 'c', .*expected dtype int64, found", id="float-in-a-vector"),
        pytest.param([1, 2, 256, 4], {"dtype": "u1"}, "id 'c', .*expected an int from 0 to 255, found 256", id="too-large"),
        pytest.param(
            [[1], [2], [300], [4]], {"dtype": "i1"}, "id 'c', .*expected numbers that dtype int8 holds", id="large-in-a-vector"
        ),
        pytest.param([1, 2, 2**63, 4], {}, f"id 'c', field 'age': expected an int .*found {2**63}", id="beyond-int64"),
        pytest.param([1, 2, 2**70, 4], {}, "id 'c', field 'age': expected ", id="beyond-uint64"),
        pytest.param(
            [np.ma.masked_equal([n, 0], 3) for n in (1, 2, 3, 4)], {}, "id 'c', .* found some; fill it", id="masked-rows"
        ),
        pytest.param([1.0, 2, 1e300, 4], {}, r"id 'c', field 'age': expected .*found 1e\+300", id="beyond-float32"),
        pytest.param([1, 2, "3", 4], {}, "id 'c', field 'age': expected .*found '3'", id="text"),
        pytest.param(np.ma.masked_equal([1, 2, 3, 4], 3), {}, "field 'age': expected .* found some; fill it", id="masked"),
        pytest.param([1, 2, 5, 4], {"n_classes": 5}, "id 'c', field 'age': expected an int from 0 to 4, found 5", id="class"),
    ],
)
def test_unconvertible_values_are_named(values: Any, options: dict[str, Any], text: str) -> None:
    """A value that can't be converted exactly is an error of the constructor that names id and field."""
    with pytest.raises(InputError, match=text):
        Loader(STR, None, 2, inputs={"age": Values(values, **options)})


def filled(id: int, row: Any) -> None:
    row[...] = id


@pytest.mark.parametrize(
    ("function", "options", "dtype", "shape"),
    [
        pytest.param(lambda n: np.full((2, 3), n), {}, "int64", (2, 3), id="learned"),
        pytest.param(lambda n: float(n), {}, "float64", (), id="a-number"),  # noqa: PLW0108
        pytest.param(lambda n: np.full((2, 3), n, ">f4"), {}, "float32", (2, 3), id="big-endian"),
        pytest.param(lambda n: np.full((2, 3), n), {"n_channels": 1}, "int64", (2, 3, 1), id="channels-added"),
        pytest.param(lambda n: np.full((2, 3), n), {"dim": 2}, "int64", (2, 3), id="dim-learned-channels"),
        pytest.param(lambda n: np.full(2, n), {"dim": (2,), "n_channels": 1, "dtype": "f4"}, "float32", (2, 1), id="given"),
        pytest.param(filled, {"dim": (2,), "dtype": "f4"}, "float32", (2,), id="fills-the-row"),
        pytest.param(lambda n, k=2: np.full(2, k * n // k), {}, "int64", (2,), id="default-argument"),
    ],
)
def test_dtypes_and_shapes_of_functions(function: Any, options: dict[str, Any], dtype: str, shape: tuple[int, ...]) -> None:
    """Rows have the given shape and dtype, or else those of the first array; a function of two arguments fills the row."""
    for given in ({"inputs": Function(function, **options)}, {"source": function, **options}):
        with Loader(range(1, 5), None, 2, shuffle=False, workers=0, **given) as loader:
            found = np.concatenate([X for (X,) in loader])
        assert (found.dtype, found.shape) == (np.dtype(dtype), (4, *shape))
        assert (found.reshape(4, -1) == np.arange(1, 5)[:, None]).all()


def test_a_filling_function_requires_dim_and_dtype() -> None:
    """A function that fills rows is refused, by name and without a call, unless dim and dtype are given."""
    for options in ({}, {"dim": 2}, {"dtype": "f4"}, {"n_channels": 2, "dtype": "f4"}):
        with pytest.raises(InputError, match=r"function '?filled'? fills a row that it is given: say its dim and dtype"):
            Loader(range(4), None, 2, source=filled, **options)


def test_a_function_is_called_once_in_the_main_process() -> None:
    """The main process calls a function once, for the first id, and not at all if shape and dtype are given."""
    called: list[int] = []

    def function(id: int) -> np.ndarray:
        called.append(id)
        return np.zeros(3)

    with Loader(range(4), None, 2, source=function, workers=1):
        assert called == [0]
    with Loader(range(4), None, 2, source=function, dim=3, n_channels=1, dtype="f8", workers=1):
        assert called == [0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_of_the_users_own(workers: int) -> None:
    """`bind` runs in the main process, and attributes that it sets reach workers; `open` runs before `read`, on a copy."""

    class Own(Source):
        shape, dtype = (3,), "f4"
        opened = False

        def bind(self, ids: Any) -> Reader:
            self.first = ids[0]
            return super().bind(ids)

        def open(self) -> None:
            assert not self.opened
            self.opened = True

        def read(self, id: Any, row: np.ndarray) -> None:
            assert self.opened
            row[:] = id + self.first

    source = Own()
    ids = range(100, 100 + N)
    with Loader(ids, {id: id for id in ids}, 8, source=source, workers=workers) as loader:
        for _ in range(2):
            assert all(row == [label + 100] * 3 for row, label in pairs(loader))
    assert not source.opened


def test_fill_gets_all_ids_of_a_ticket() -> None:
    """A source with `fill` gets all ids of a ticket in one call, in place of calls of `read`."""

    class Many(Source):
        shape, dtype = (2,), np.int64

        def read(self, id: Any, row: np.ndarray) -> None:
            raise AssertionError("read is not to be called")

        def fill(self, ids: Any, rows: np.ndarray) -> None:
            assert rows.shape == (len(ids), 2)
            rows[:, 0] = ids
            rows[:, 1] = len(ids)

    with Loader(range(N), range(N), 8, source=Many(), workers=2) as loader:
        for X, y in loader:
            np.testing.assert_array_equal(X[:, 0], y)
            assert set(X[:, 1].tolist()) == {4}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fill_that_fails_names_its_sample(workers: int) -> None:
    """When a `fill` fails, its rows are read again one by one, so that the error names the sample that can't be read."""

    class Table(Source):
        shape, dtype = (1,), "f4"

        def fill(self, ids: Any, rows: np.ndarray) -> None:
            for row, id in zip(rows, ids, strict=True):
                row[:] = 1 / (id - 7)

    with Loader(range(16), None, 16, source=Table(), shuffle=False, workers=workers) as loader:
        with pytest.raises(FunctionError) as caught:
            loader.batch(0)
        assert caught.value.id == 7


class Leaves(Source):
    """Its `fill` leaves the rows ``left`` to `read`, which draws 2 or 3."""

    fields = {"x": ((1,), "i4")}  # noqa: RUF012

    def __init__(self, left: Any) -> None:
        self.left = left

    def fill(self, ids: Any, rows: Any) -> Any:
        rows["x"][:, 0] = ids
        return self.left

    def read(self, id: Any, rows: Any) -> None:
        assert rows["x"] == id
        rows["x"][:] = np.random.randint(2) + 2


@pytest.mark.parametrize("left", [[1, 2], (1, np.int64(2)), np.array([1, 2]), {1, 2}])
def test_rows_that_fill_leaves_to_read(left: Any) -> None:
    """Rows whose numbers `fill` returns are read by `read`, with seeded random numbers, and as one-hot rows too."""
    source = Leaves(left)
    inputs = {"x": source["x"], "one_hot": source["x"].one_hot(4)}
    found = []
    for _ in range(2):
        with Loader(range(4), inputs=inputs, batch_size=4, shuffle=False, workers=0, seed=1) as loader:
            (batch,) = loader.batch(0)
        np.testing.assert_array_equal(batch["one_hot"], np.eye(4)[batch["x"][:, 0]])
        found.append(batch["x"][:, 0].tolist())
    assert found == [[0, found[0][1], found[0][2], 3]] * 2
    assert {2, 3} >= {*found[0][1:3]}


@pytest.mark.parametrize("left", [[4], "rows", np.zeros((4, 1)), 1])
def test_fill_returns_no_row_numbers(left: Any) -> None:
    """What `fill` returns must be None or the numbers of rows."""
    with (
        Loader(range(4), inputs=Leaves(left)["x"], batch_size=4, shuffle=False, workers=0) as loader,
        pytest.raises(FunctionError, match=r"expected None, or the numbers of rows left to read, from 0 to 0, found"),
    ):
        loader.batch(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_that_cannot_be_opened(workers: int) -> None:
    """An `open` that fails is a StartError with the source's fields and the traceback, with and without workers."""

    class Database(Source):
        fields = {"scan": ((2,), "f4"), "mask": ((2,), "f4")}  # noqa: RUF012

        def open(self) -> None:
            raise OSError("no route to host")

    with (
        pytest.raises(StartError, match="source of fields 'scan', 'mask' can't be opened: OSError: no route to host") as caught,
        Loader(range(8), None, 4, inputs=Database(), workers=workers) as loader,
    ):
        list(loader)
    assert "in open" in str(caught.value)


def test_a_source_of_no_elements_or_no_numbers_is_refused() -> None:
    """A source whose shape has no elements, or whose dtype is not of numbers, is refused; so is one without them."""

    class Odd(Source):
        pass

    with pytest.raises(InputError, match=r"source Odd: expected shape and dtype .*, or fields, .*, found no shape and no dtype"):
        Loader(range(8), None, 4, inputs=Odd())
    for shape, dtype, found in (((0, 3), "f4", r"found shape \(0, 3\)"), ((3,), "U3", "<U3")):
        Odd.shape, Odd.dtype = shape, dtype
        with pytest.raises(InputError, match=f"field 'scan': expected rows of numbers, .*{found}"):
            Loader(range(8), None, 4, inputs={"scan": Odd()})


def test_one_source_in_two_loaders(big: Path, folder: Callable) -> None:
    """Loaders with different ids that share source objects do not affect each other."""
    data = folder(8)
    rows, files, values = NpyRows(big), Npy(data.path), Values({id: 10 * k for k, id in enumerate(data.ids)})
    with (
        Loader([4, 5, 6, 7], None, 2, inputs=(rows, rows), shuffle=False, workers=0) as one,
        Loader([9, 8], None, 2, inputs=rows, shuffle=False, workers=0) as other,
        Loader(data.ids, None, 4, inputs=files, targets=values, workers=0) as third,
        Loader(data.ids[:2], None, 2, inputs=files, targets=values, shuffle=False, workers=0) as fourth,
    ):
        assert [(a[:, 0].tolist(), b[:, 0].tolist()) for ((a, b),) in one] == [([4, 5], [4, 5]), ([6, 7], [6, 7])]
        assert [X[:, 0].tolist() for (X,) in other] == [[9, 8]]
        for X, y in third:
            np.testing.assert_array_equal(10 * X[:, 0, 0], y)
        assert [y.tolist() for _, y in fourth] == [[0, 10]]
