"""Values reach the id that they are meant for, by id or by position; where that can't be told, it is said."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ways import batch_of, labels_of

from shmgen import InputError, Values, tune
from shmgen._samples.ids import kept
from shmgen._samples.lookup import Lookup

TEXTS = ["d", "a", "c", "b"]


# By id, or by position.

READINGS = [
    # ids, values, what they mean
    pytest.param([3, 1, 2, 0], [30, 30, 30, 30], [30] * 4, id="both-are-equal"),
    pytest.param([0, 1, 2, 3], [7, 8, 9, 6], [7, 8, 9, 6], id="ids-are-positions"),
    pytest.param(range(4), [7, 8, 9, 6], [7, 8, 9, 6], id="range"),
    pytest.param([3, 1], [7, 8, 9, 6], [6, 8], id="more-values-than-ids"),
    pytest.param(range(3, 0, -2), [7, 8, 9, 6], [6, 8], id="range-backwards"),
    pytest.param(range(3, -1, -1), [7, 8, 9, 6, 5], [6, 9, 8, 7], id="range-to-0"),
    pytest.param([True, False, 2], [5, 6, 6, 7], [6, 5, 6], id="bools-are-ints"),
    pytest.param([np.int8(2), np.uint64(0)], [5, 6, 7], [7, 5], id="numpy-ints"),
    pytest.param(np.array([2, 0], np.uint64), np.array([5, 6, 7]), [7, 5], id="array-of-uint64"),
    pytest.param(["2", "0", "1"], [5, 6, 7], [5, 6, 7], id="digits-are-texts"),
    pytest.param([2, "0", 1], [5, 6, 7], [5, 6, 7], id="not-all-are-ints"),
    pytest.param([2, 1, 0], {0: 5, 1: 6, 2: 7}, [7, 6, 5], id="mapping"),
    pytest.param(TEXTS, range(4), [0, 1, 2, 3], id="range-as-values"),
    pytest.param([3, 1], range(10, 14), [13, 11], id="range-as-values-by-id"),
    pytest.param(TEXTS, defaultdict(lambda: 9, a=1), [9, 1, 9, 9], id="defaultdict"),
    pytest.param([2, 0], [[1, 2], [3, 4], [5, 6]], [[5, 6], [1, 2]], id="rows-by-id"),
    pytest.param([1, 1], [[1, 2], [1, 2]], [[1, 2], [1, 2]], id="rows-that-are-equal"),
    pytest.param([1, 0], [np.array([1, 2]), np.array([1, 2])], [[1, 2], [1, 2]], id="arrays-that-are-equal"),
]


@pytest.mark.parametrize(("ids", "values", "expected"), READINGS)
@pytest.mark.parametrize("given", ["as-it-is", "array", "Values"])
def test_readings_that_leave_no_doubt(ids: Any, values: Any, expected: list[Any], given: str) -> None:
    """From a mapping by id; from a list or array by id where ids are ints and position gives the same, else by position."""
    if given == "array" and isinstance(values, list):
        values = np.array(values)
    assert labels_of(ids, Values(values) if given == "Values" else values) == expected


AMBIGUOUS = [
    pytest.param([3, 1, 2, 0], [30, 10, 20, 0], [0, 10, 20, 30], id="list"),
    pytest.param(np.array([3, 1, 2, 0]), np.array([30, 10, 20, 0]), [0, 10, 20, 30], id="array"),
    pytest.param(range(3, -1, -1), (30, 10, 20, 0), [0, 20, 10, 30], id="range"),
    pytest.param([3, True, 2, False], [30, 10, 20, 0], [0, 10, 20, 30], id="bools"),
    pytest.param([np.int64(3), 1, 2, 0], range(4), [3, 1, 2, 0], id="numpy-ints"),
    pytest.param([0, 0, 2], [1, 2, 3], [1, 1, 3], id="twice"),
    pytest.param([1, 0], [[1, 2], [1, 3]], [[1, 3], [1, 2]], id="rows"),
    pytest.param([1, 0], [np.array([1, 2]), np.array([1, 3])], [[1, 3], [1, 2]], id="arrays"),
]


@pytest.mark.parametrize("ids", [[1001, 7], [10**30, 0], [-1, 0], [1, 2], range(1, 3), np.array([7, 1])], ids=repr)
def test_ints_that_number_no_value(ids: Any) -> None:
    """Ids that are ints are looked up: one beyond the values is named, with the remedy where a value for each was meant."""
    with pytest.raises(InputError, match=r"expected a value, .*found none: there are 2, of ids 0 to 1; pass ") as raised:
        labels_of(ids, [5, 6])
    assert (remedy := "Values(values, by='position')") in str(raised.value)
    values = [5, 6]  # noqa: F841 # the remedy names it
    assert labels_of(ids, eval(remedy)) == [5, 6]


@pytest.mark.parametrize(("ids", "values", "by_id"), AMBIGUOUS)
@pytest.mark.parametrize("role", ["labels", "targets", "Values"])
def test_two_readings_that_differ_are_an_error_that_names_both_remedies(ids: Any, values: Any, by_id: list, role: str) -> None:
    """By id and by position are both possible: nothing is guessed, and each remedy gives what it says."""
    parts = {"labels": {"labels": values}, "targets": {"targets": values}, "Values": {"labels": Values(values)}}
    with pytest.raises(InputError, match=r"id \d, field 'y': .*two that differ: by id .* by position") as raised:
        batch_of(ids, **parts[role])
    for remedy, expected in (("Values(values, by='id')", by_id), ("Values(values, by='position')", np.array(values).tolist())):
        assert remedy in str(raised.value)
        followed = eval(remedy)
        assert labels_of(ids, **{"targets" if role == "targets" else "labels": followed}) == expected


def test_the_first_difference_is_told_however_far_it_is() -> None:
    """Of many values, compared piece by piece: the id, and what it would have in either reading."""
    count = 300_000
    ids = np.arange(count)
    ids[[count - 2, count - 1]] = ids[[count - 1, count - 2]]
    values = np.zeros(count, int)
    values[-1] = 5
    with pytest.raises(InputError, match=r"id 299999, .*by id it has 5, and by position, 299,998, 0"):
        Values(values).bind(kept(ids))


BY = [
    pytest.param([1, 0], {0: 1, 1: 2}, "position", "by='position'.*type dict", id="a-mapping-has-no-positions"),
    pytest.param(["a", "b"], [1, 2], "id", "id 'a'.*expected an int.*pass a mapping", id="texts-number-no-list"),
    pytest.param([1, 2], [5, 6], "id", r"id 2, .*found none: there are 2, of ids 0 to 1", id="beyond"),
    pytest.param([1, 2], [5, 6, 7], "position", "each of the 2 ids, found 3", id="too-many"),
    pytest.param([1, 9], [5, 6, 7], None, "id 9, .*found none: there are 3, of ids 0 to 2$", id="neither"),
    pytest.param(range(5, 9), [5, 6, 7], None, "id 5, .*found none: there are 3, of ids 0 to 2$", id="neither-of-a-range"),
    pytest.param([1, 0], [1, 2], "row", "by: expected 'id' or 'position', found 'row'", id="unknown"),
]


@pytest.mark.parametrize(("ids", "values", "by", "text"), BY)
def test_an_impossible_reading_is_refused(ids: Any, values: Any, by: Any, text: str) -> None:
    """What is asked for by ``by``, or what all readings lack, with the numbers."""
    with pytest.raises(InputError, match=text):
        batch_of(ids, Values(values, by=by))


def test_a_range_of_ids_is_not_written_out() -> None:
    """A thousand million ids and values take neither time nor memory until they are rows."""
    values = np.broadcast_to(np.zeros(1, np.int8), 10**9)
    tracemalloc.start()
    assert Lookup(range(10**9), "y", None).aligned(values) is values
    picked = Lookup(range(1, 10**9), "y", None).aligned(values)
    assert isinstance(picked, np.ndarray)
    assert picked.base is not None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("kind", ["array", "names", "mapping"])
def test_labels_are_held_in_an_array(kind: str) -> None:
    """At most 9 bytes an id, whatever they came in."""
    count = 100_000
    ids = [f"id-{k}" for k in range(count)]
    values: Any = np.arange(count) % 2
    if kind == "names":
        values = np.array(["cat", "dog"])[values]
    elif kind == "mapping":
        values = dict(zip(ids, values.tolist(), strict=True))
    source = Values(values, classes="sorted" if kind == "names" else None)
    tracemalloc.start()
    reader = source.bind(ids)  # noqa: F841 # it holds the labels
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 9 * count


@pytest.mark.parametrize("kind", ["numbers", "n_classes", "classes", "sorted", "rows", "floats"])
def test_labels_in_an_array_take_no_more_than_it(kind: str) -> None:
    """Small ints and floats are held as they came in, and become what rows are to be when a batch is filled."""
    count = 1_000_000
    ids = range(count)
    values: Any = (np.arange(count) % 3).astype(np.uint8)
    options: dict[str, Any] = {}
    if kind == "rows":
        values = np.stack([values, values], axis=1)[:, :1]
    elif kind == "floats":
        values = values.astype(np.float16)
        options["dtype"] = "float64"
    elif kind != "numbers":
        options = {"n_classes": 3} if kind == "n_classes" else {"classes": [2, 1, 0] if kind == "classes" else "sorted"}
    source = Values(values, **options)
    tracemalloc.start()
    reader = source.bind(ids)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < (1.1 if kind != "floats" else 2.1) * count
    assert peak < 6 * count
    rows = np.zeros((4, *reader.shape), reader.dtype)
    reader.fill(np.array([1, 2, 0, 999_998]), rows, None)
    expected: Any = [1, 2, 0, 2]
    if kind == "classes":
        expected = [1, 0, 2, 0]
    elif kind == "rows":
        expected = [[1], [2], [0], [2]]
    elif kind == "n_classes":
        expected = np.eye(3)[expected].tolist()
    assert rows.tolist() == expected
    assert reader.dtype == {"n_classes": np.float32, "floats": np.float64}.get(kind, np.int64)


def test_labels_of_a_range_follow_no_later_change() -> None:
    """What the caller writes into the array afterwards reaches no batch."""
    values = np.arange(4, dtype=np.uint8)
    source = Values(values)
    reader = source.bind(range(4))
    values[:] = 9
    rows = np.zeros(4, np.int64)
    reader.fill(np.arange(4), rows, None)
    assert rows.tolist() == [0, 1, 2, 3]


def test_an_index_of_many_ints_is_not_written_out() -> None:
    """Labels by the index of a column, in the ids' order or in another, take no objects of Python."""
    pd = pytest.importorskip("pandas")
    count = 300_000
    labels = pd.Series(np.zeros(count, np.uint8))
    for ids, column in (
        (range(count), labels),
        (np.arange(count)[::-1], labels.rename_axis("id")),
        (range(5), labels.rename_axis("id")),
    ):
        tracemalloc.start()
        found = Lookup(kept(ids), "y", None).aligned(column)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(found) == len(ids)
        assert peak < 60 * count


def test_tune_measures_labels_that_go_by_position(folder: Any) -> None:
    """A part of the samples in another order than the labels': each keeps its own."""
    data = folder(40)
    options = {"data_dir": data.path, "workers": [0], "seconds": 0.02}
    tuning = tune(data.ids, list(range(40)), 4, **options)
    assert tuning.of == 40
    numbers = list(range(40))
    tune(numbers, numbers, 4, source=lambda id: np.full(2, id), workers=[0], seconds=0.02)


# Tables.


def test_tables_are_no_dependency() -> None:
    """A loader of a list imports none of the packages whose columns it takes."""
    code = "import sys; from shmgen import Loader, Values; Loader([0, 1], [1, 1], 1, inputs=Values([1, 1])); print(*sys.modules)"
    root = Path(__file__).parents[1]
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert not {"pandas", "polars", "pyarrow"} & set(ended.stdout.split())


def frame() -> Any:
    """Paths, labels, and so on, of four samples; rows are numbered from 0."""
    pd = pytest.importorskip("pandas")
    return pd.DataFrame({"path": TEXTS, "label": [3, 0, 2, 1], "id": [3, 1, 2, 0], "far": [13, 11, 12, 10], "name": list("ynyn")})


COLUMNS = {
    # a frame -> ids, labels, what is expected
    "columns-of-one-frame": lambda df: (df.path, df.label, [3, 0, 2, 1]),
    "shuffled": lambda df: (df.iloc[[2, 0, 3, 1]].path, df.iloc[[2, 0, 3, 1]].label, [2, 3, 1, 0]),
    "filtered": lambda df: (df[df.label > 0].path, df[df.label > 0].label, [3, 2, 1]),
    "list-of-ids": lambda df: (df.path.tolist(), df.label, [3, 0, 2, 1]),
    "by-id-in-order": lambda df: (df.path, df.set_index("path").label, [3, 0, 2, 1]),
    "by-id": lambda df: (["a", "b", "c", "d"], df.set_index("path").label, [0, 1, 2, 3]),
    "by-id-of-some": lambda df: (["c", "a"], df.set_index("path").label, [2, 0]),
    "by-id-twice": lambda df: (["c", "a", "c", "a"], df.set_index("path").label, [2, 0, 2, 0]),
    "by-int-id-of-a-named-index": lambda df: ([0, 1, 2, 3], df.set_index("id").label, [1, 0, 2, 3]),
    "by-int-id": lambda df: ([10, 11, 12, 13], df.set_index("far").label, [1, 0, 2, 3]),
    "by-int-id-without-a-name": lambda df: ([10, 11, 12, 13], df.label.set_axis(df.far.to_numpy()), [1, 0, 2, 3]),
    "int-ids-that-number-no-rows": lambda df: (df.far, df.label, [3, 0, 2, 1]),
    "int-ids-of-which-some-number-rows": lambda df: (df.id + 2, df.label, [3, 0, 2, 1]),
    "int-ids-of-a-filtered-frame": lambda df: (df[df.label < 2].id, df[df.label < 2].label, [0, 1]),
    "int-ids-with-equal-labels": lambda df: (df.id, df.label * 0 + 5, [5] * 4),
    "int-ids-by-number-of-row": lambda df: ([3, 1], df.label, [1, 0]),
    "tuples": lambda df: ([("d", 3), ("b", 0)], df.set_index(["path", "id"]).label, [3, 1]),
    "repeated-index": lambda df: (df.path, df.label.set_axis([0, 0, 1, 1]), [3, 0, 2, 1]),
    "repeated-index-of-int-ids": lambda df: (df.id, df.label.set_axis([0, 1, 0, 1]), [3, 0, 2, 1]),
    "repeated-ids-in-order": lambda df: (["a", "a", "b", "b"], df.label.set_axis(["a", "a", "b", "b"]), [3, 0, 2, 1]),
    "nullable": lambda df: (df.path, df.label.astype("Int64"), [3, 0, 2, 1]),
    "small": lambda df: (df.path, df.label.astype("int8"), [3, 0, 2, 1]),
    "bools": lambda df: (df.path, (df.label > 1).astype("boolean"), [1, 0, 1, 0]),
    "categories-as-ids": lambda df: (df.path.astype("category"), df.label, [3, 0, 2, 1]),
    "strings-as-ids": lambda df: (df.path.astype("string"), df.label, [3, 0, 2, 1]),
    "objects-as-ids": lambda df: (df.path.astype(object), df.label, [3, 0, 2, 1]),
    "nullable-ids": lambda df: (df.far.astype("Int64"), df.label, [3, 0, 2, 1]),
    "an-index-as-ids": lambda df: (df.set_index("path").index, df.label, [3, 0, 2, 1]),
    "by-int-id-of-an-index-in-another-order": lambda df: ([13, 10, 11, 10], df.set_index("far").label, [3, 1, 0, 1]),
    "by-int-id-of-small-ints": lambda df: (np.array([3, 1, 0], np.int8), df.set_index(df.id.astype("int16")).label, [3, 0, 1]),
    "by-uint64-id": lambda df: (np.array([3, 1], np.uint64), df.set_index(df.id.astype("uint64")).label, [3, 0]),
    "by-uint64-id-of-an-int64-index": lambda df: (np.array([3, 1], np.uint64), df.set_index("id").label, [3, 0]),
    "by-id-of-a-range": lambda df: (range(13, 9, -2), df.set_index("far").label, [3, 0]),
    "by-float-of-an-int": lambda df: ([3, 1], df.set_index(df.id.astype(float)).label, [3, 0]),
    "a-column-as-a-mapping": lambda df: (["a", "c"], df.set_index("path").label.to_dict(), [0, 2]),
}


@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize("given", ["as-it-is", "Values"])
def test_columns_of_pandas(make: Any, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By position where the index is not made of the ids, else by id; never one by one, which takes 25 microseconds each."""
    import_pandas = pytest.importorskip("pandas")
    ids, labels, expected = make(frame())
    if given == "Values":
        labels = Values(labels)

    def refuse(*_: object) -> None:
        raise AssertionError("one by one")

    monkeypatch.setattr(import_pandas.Series, "__getitem__", refuse)
    monkeypatch.setattr(import_pandas.Series, "__iter__", refuse)
    assert labels_of(ids, labels) == expected


WRONG_COLUMNS = {
    # a frame -> ids, labels, what the error says, and what follows its advice
    "int-ids-that-number-rows": (
        lambda df: (df.id, df.label),
        r"two that differ: by id it has 1, and by position, 0, 3.*by='id'.*by='position'",
        lambda df: (df.id, Values(df.label, by="position")),
        [3, 0, 2, 1],
    ),
    "int-ids-that-number-rows-by-id": (
        lambda df: (df.id.to_numpy(), df.sample(frac=1, random_state=0).label),
        "by='id'.*by='position'",
        lambda df: (df.id.to_numpy(), Values(df.sample(frac=1, random_state=0).label, by="id")),
        [1, 0, 2, 3],
    ),
    "one-id-is-not-in-the-index": (
        lambda df: (["a", "b", "c", "x"], df.set_index("path").label),
        "id 'x', field 'y': expected a value, .*found none in the index among 'd', 'a', 'c' and others",
        lambda df: (["a", "b", "c"], df.set_index("path").label),
        [0, 1, 2],
    ),
    "one-int-id-is-not-in-a-named-index": (
        lambda df: ([10, 11, 12, 14], df.set_index("far").label),
        "id 14, field 'y': expected a value, .*found none in the index",
        lambda df: ([10, 11, 12], df.set_index("far").label),
        [1, 0, 2],
    ),
    "no-id-is-in-the-index-and-another-length": (
        lambda df: (["x", "y"], df.label),
        "expected a value for each of the 2 ids, found 4",
        lambda df: (["x", "y"], df.label[:2]),
        [3, 0],
    ),
    "int-ids-of-a-filtered-frame-that-number-its-rows": (
        lambda df: (df[df.label > 0].id, df[df.label > 0].label),
        "by='id'.*by='position'",
        lambda df: (df[df.label > 0].id, Values(df[df.label > 0].label, by="position")),
        [3, 2, 1],
    ),
    "a-frame-as-ids": (
        lambda df: (df[["path", "label"]], df.label),
        r"list_IDs: .*found a DataFrame; pass .*df\['path'\] or df\['label'\]",
        lambda df: (df["path"], df.label),
        [3, 0, 2, 1],
    ),
    "a-frame-as-labels": (
        lambda df: (df.path, df[["label", "id"]]),
        r"field 'y': .*found a DataFrame; pass a column of it, df\['label'\] or df\['id'\], .*df\[\[\.\.\.\]\]\.to_numpy\(\)",
        lambda df: (df.path, df[["label", "id"]].to_numpy()),
        [[3, 3], [0, 1], [2, 2], [1, 0]],
    ),
    "missing-value": (
        lambda df: (df.path, df.label.where(df.label != 2)),
        "id 'c', field 'y': expected an int, found nan: its value is missing; leave such ids out",
        lambda df: (df.path[df.label != 2], df.label[df.label != 2]),
        [3, 0, 1],
    ),
    "missing-value-nullable": (
        lambda df: (df.path, df.label.astype("Int64").where(df.label != 2)),
        "id 'c', field 'y': expected an int, found (nan|<NA>)",
        lambda df: (df.path[df.label != 2], df.label[df.label != 2].astype("Int64")),
        [3, 0, 1],
    ),
    "texts": (
        lambda df: (df.path, df.name),
        r"id 'd', field 'y': expected an int, found 'y' of type str; .*classes='sorted'",
        lambda df: (df.path, Values(df.name, classes="sorted")),
        [1, 0, 1, 0],
    ),
    "categories": (
        lambda df: (df.path, df.name.astype("category")),
        r"id 'd', field 'y': expected an int, found 'y' of type str; .*classes='sorted'",
        lambda df: (df.path, Values(df.name.astype("category"), classes="sorted")),
        [1, 0, 1, 0],
    ),
}


@pytest.mark.parametrize(("make", "text", "follow", "expected"), WRONG_COLUMNS.values(), ids=WRONG_COLUMNS)
def test_tables_that_are_mistakes(make: Any, text: str, follow: Any, expected: list[Any]) -> None:
    """Columns named as they are, and advice that helps."""
    df = frame()
    with pytest.raises(InputError, match=text):
        batch_of(*make(df))
    assert labels_of(*follow(df)) == expected


def test_an_index_that_has_an_id_twice() -> None:
    """Which of the two values is meant can't be told."""
    labels = frame().label.set_axis(["a", "b", "a", "c"])
    with pytest.raises(InputError, match=r"each id once, found 'a' several times; drop duplicates, or pass Values\(.*'position'"):
        batch_of(["a", "b", "c", "c"], labels)
    assert labels_of(["a", "b", "c"], labels[~labels.index.duplicated()]) == [3, 0, 1]
    assert labels_of(["a", "b", "c", "c"], Values(labels, by="position")) == [3, 0, 2, 1]


@pytest.mark.parametrize("package", ["polars", "pyarrow"])
def test_columns_of_others(package: str) -> None:
    """Any column that NumPy can read: by position."""
    module = pytest.importorskip(package)
    make = module.Series if package == "polars" else module.array
    assert labels_of(make(["b", "a"]), make([1, 2])) == [1, 2]
    assert labels_of(make(["b", "a"]), make(["x", "y"]), classes=["y", "x"]) == [1, 0]
    table = module.DataFrame({"path": ["a"]}) if package == "polars" else module.table({"path": ["a"]})
    with pytest.raises(InputError, match=r"df\['path'\]"):
        batch_of(table)
