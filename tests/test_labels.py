"""Labels and other values reach the id that they are meant for, whatever they come in; where that can't be told, it is said."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmgen import Function, FunctionError, InputError, Loader, Npy, Values, tune
from shmgen._ids import kept
from shmgen._lookup import Lookup

TEXTS = ["d", "a", "c", "b"]


def batch(ids: Any, labels: Any = None, **options: Any) -> tuple[Any, Loader]:
    """What comes behind the inputs in the only batch of all ids, and the loader, closed."""
    options.setdefault("source", lambda id: np.zeros(2))
    if "inputs" in options:
        del options["source"]
    with Loader(ids, labels, len(ids), shuffle=False, workers=0, **options) as loader:
        _, *rest = loader.batch(0)
    return rest[0], loader


def labels_of(ids: Any, labels: Any = None, **options: Any) -> list[Any]:
    """The labels, in the order of the ids."""
    found: list[Any] = batch(ids, labels, **options)[0].tolist()
    return found


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
        batch(ids, **parts[role])
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
        batch(ids, Values(values, by=by))


def test_a_range_of_ids_is_not_written_out() -> None:
    """A thousand million ids and values take neither time nor memory until they are rows."""
    values = np.broadcast_to(np.zeros(1, np.int8), 10**9)
    tracemalloc.start()
    assert Lookup(range(10**9), "y", None).aligned(values) is values
    assert Lookup(range(1, 10**9), "y", None).aligned(values).base is not None
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
    source.bind(ids)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 9 * count


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
        batch(*make(df))
    assert labels_of(*follow(df)) == expected


def test_an_index_that_has_an_id_twice() -> None:
    """Which of the two values is meant can't be told."""
    labels = frame().label.set_axis(["a", "b", "a", "c"])
    with pytest.raises(InputError, match=r"each id once, found 'a' several times; drop duplicates, or pass Values\(.*'position'"):
        batch(["a", "b", "c", "c"], labels)
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
        batch(table)


# What an error advises works when it is followed.


def one_hot(*numbers: int) -> np.ndarray:
    """As ``keras.utils.to_categorical`` makes it, of 3 classes."""
    return np.eye(3)[list(numbers)]


ADVICE = {
    # labels and options that are an error, what it says, and what follows its advice -> what comes
    "floats": (
        {"labels": [0.5, 1.0]},
        r"id 'p', field 'y': expected an int, found 0\.5 of type float; .*pass Values\(\.\.\., dtype='float32'\)",
        {"labels": Values([0.5, 1.0], dtype="float32")},
        [0.5, 1.0],
    ),
    "floats-in-a-mapping": (
        {"labels": {"p": 1, "q": 2.0}},
        r"id 'q', .*found 2\.0 of type float; .*pass Values\(\.\.\., dtype='float32'\)",
        {"labels": Values({"p": 1, "q": 2.0}, dtype="float32")},
        [1.0, 2.0],
    ),
    "floats-with-n_classes": (
        {"labels": [0.0, 1.0], "n_classes": 2},
        r"found 0\.0 of type float; .*pass Values\(\.\.\., dtype='float32'\), and no n_classes",
        {"labels": Values([0.0, 1.0], dtype="float32")},
        [0.0, 1.0],
    ),
    "texts": (
        {"labels": ["cat", "dog"]},
        r"id 'p', .*found 'cat' of type str; .*pass classes=\[\.\.\.\], .*or classes='sorted'",
        {"labels": ["cat", "dog"], "classes": "sorted"},
        [0, 1],
    ),
    "texts-with-n_classes": (
        {"labels": ["cat", "dog"], "n_classes": 2},
        "classes='sorted'",
        {"labels": ["cat", "dog"], "n_classes": 2, "classes": ["dog", "cat"]},
        [[0.0, 1.0], [1.0, 0.0]],
    ),
    "texts-as-targets": (
        {"targets": ["cat", "dog"]},
        "classes='sorted'",
        {"targets": Values(["cat", "dog"], classes="sorted")},
        [0, 1],
    ),
    "counted-from-1": (
        {"labels": [1, 2], "n_classes": 2},
        r"id 'q', .*expected an int from 0 to 1, found 2; with n_classes=2 they are counted from 0",
        {"labels": [0, 1], "n_classes": 2},
        [[1.0, 0.0], [0.0, 1.0]],
    ),
    "rows-of-another-length": (
        {"labels": one_hot(0, 2), "n_classes": 4},
        r"expected ints, or rows of n_classes=4 numbers, found rows of shape \(3,\)",
        {"labels": one_hot(0, 2), "n_classes": 3},
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
    ),
    "a-single-number": (
        {"labels": 3},
        "expected a mapping from id to value, a function of the id, or a list or array of values, found 3 of type int",
        {"labels": [3, 3]},
        [3, 3],
    ),
    "a-view-of-a-dict": (
        {"labels": {"x": 1, "y": 2}.values()},
        r"found dict_values\(\[1, 2\]\) of type dict_values; pass list\(values\)",
        {"labels": list({"x": 1, "y": 2}.values())},
        [1, 2],
    ),
    "keys-of-another-kind": (
        {"labels": {"p.npy": 1, "q.npy": 2}},
        r"id 'p', .*found none, but one for 'p\.npy': the keys must be the ids, as \[\(id \+ '\.npy'\) for id in ids\] are",
        {"labels": {"p": 1, "q": 2}},
        [1, 2],
    ),
    "far-too-large": (
        {"labels": [2**63, 1]},
        r"expected an int from .*, found 9223372036854775808; pass Values\(\.\.\., dtype=\.\.\.\) with one that holds it",
        {"labels": Values([2**63, 1], dtype="uint64")},
        [2**63, 1],
    ),
    "beyond-all-ints": (
        {"labels": [2**70, 1]},
        r"pass Values\(\.\.\., dtype=\.\.\.\) with one that holds it",
        {"labels": Values([2**70, 1], dtype="float64")},
        [2.0**70, 1.0],
    ),
    "beyond-float32": (
        {"targets": [1e300, 1.0]},
        r"expected a number that float32 holds, found 1e\+300; pass Values\(\.\.\., dtype='float64'\)",
        {"targets": Values([1e300, 1.0], dtype="float64")},
        [1e300, 1.0],
    ),
    "complex": (
        {"targets": [1j, 1.0]},
        r"found 1j of dtype complex128, .*; pass Values\(\.\.\., dtype='complex128'\)",
        {"targets": Values([1j, 1.0], dtype="complex128")},
        [1j, 1.0],
    ),
    "n_classes-and-targets": (
        {"targets": [0, 1], "n_classes": 2},
        "n_classes and classes are for labels; give them to the Values among targets",
        {"targets": Values([0, 1], n_classes=2)},
        [[1.0, 0.0], [0.0, 1.0]],
    ),
    "n_classes-and-a-source-as-labels": (
        {"labels": Function(lambda id: 7), "n_classes": 8},
        "n_classes and classes are for labels that are values",
        {"labels": Function(lambda id: 7)},
        [7, 7],
    ),
    "n_classes-of-two-minds": (
        {"labels": Values([0, 1], n_classes=2), "n_classes": 3},
        "n_classes: expected 2, as the Values given as labels say, found 3",
        {"labels": Values([0, 1], n_classes=2), "n_classes": 2},
        [[1.0, 0.0], [0.0, 1.0]],
    ),
    "classes-twice": (
        {"labels": Values(["a", "b"], classes=["b", "a"]), "classes": ["a", "b"]},
        "classes: the Values given as labels have classes of their own",
        {"labels": Values(["a", "b"], classes=["b", "a"])},
        [1, 0],
    ),
    "weights-alone": (
        {"weights": [1, 2]},
        "weights weigh the loss of targets, and there are none: give labels or targets too",
        {"weights": [1, 2], "labels": [3, 4]},
        [3, 4],
    ),
}


@pytest.mark.parametrize(("wrong", "text", "right", "expected"), ADVICE.values(), ids=ADVICE)
def test_advice_that_is_followed_works(wrong: dict, text: str, right: dict, expected: list[Any]) -> None:
    """Every remedy that an error names, taken at its word, gives the labels that were meant."""
    with pytest.raises(InputError, match=text):
        batch(["p", "q"], **wrong)
    assert labels_of(["p", "q"], **right) == expected


ACCEPTED = {
    # labels and options -> what comes, and its dtype
    "to_categorical": ({"labels": one_hot(0, 2)}, [[1, 0, 0], [0, 0, 1]], "float32"),
    "to_categorical-with-n_classes": ({"labels": one_hot(0, 2), "n_classes": 3}, [[1, 0, 0], [0, 0, 1]], "float32"),
    "to_categorical-of-ints": ({"labels": one_hot(0, 2).astype(int)}, [[1, 0, 0], [0, 0, 1]], "int64"),
    "to_categorical-in-a-mapping": ({"labels": {"q": one_hot(1)[0], "p": one_hot(2)[0]}}, [[0, 0, 1], [0, 1, 0]], "float32"),
    "rows-as-lists-with-n_classes": ({"labels": [[1, 0], [0, 1]], "n_classes": 2}, [[1, 0], [0, 1]], "float32"),
    "list-with-n_classes": ({"labels": [1, 0], "n_classes": 2}, [[0, 1], [1, 0]], "float32"),
    "tuple-with-n_classes": ({"labels": (1, 0), "n_classes": 2}, [[0, 1], [1, 0]], "float32"),
    "Values": ({"labels": Values([4, 5])}, [4, 5], "int64"),
    "Values-of-floats": ({"labels": Values([4.5, 5])}, [4.5, 5], "float32"),
    "Values-with-n_classes": ({"labels": Values([1, 0]), "n_classes": 2}, [[0, 1], [1, 0]], "float32"),
    "Values-with-classes": ({"labels": Values(["x", "y"]), "classes": ["y", "x"]}, [1, 0], "int64"),
    "function": ({"labels": ord}, [112, 113], "int64"),
    "function-of-floats": ({"labels": lambda id: ord(id) / 2}, [56, 56.5], "float64"),
    "function-of-rows": ({"labels": lambda id: np.full(2, ord(id), "u1")}, [[112, 112], [113, 113]], "uint8"),
    "function-with-n_classes": ({"labels": lambda id: ord(id) - 112, "n_classes": 2}, [[1, 0], [0, 1]], "float32"),
    "function-with-classes": ({"labels": lambda id: id, "classes": ["q", "p"]}, [1, 0], "int64"),
    "function-with-sorted-classes": ({"labels": lambda id: id, "classes": "sorted"}, [0, 1], "int64"),
    "Function": ({"labels": Function(lambda id: 7)}, [7, 7], "int64"),
    "function-as-Values": ({"targets": Values(lambda id: ord(id) / 2)}, [56, 56.5], "float32"),
    "classes-as-floats": ({"labels": Values(["x", "y"], dtype="f4", classes=["y", "x"])}, [1, 0], "float32"),
    "numbers-as-classes": ({"labels": [50, 10], "classes": "sorted"}, [1, 0], "int64"),
}


@pytest.mark.parametrize(("options", "expected", "dtype"), ACCEPTED.values(), ids=ACCEPTED)
def test_whatever_labels_come_in(options: dict[str, Any], expected: list[Any], dtype: str) -> None:
    """Rows, lists, functions, Values and sources as labels, with n_classes or without."""
    found, _ = batch(["p", "q"], **options)
    assert (found.tolist(), found.dtype) == (expected, dtype)


def test_a_function_of_labels_that_fails_is_named() -> None:
    """The id, the field, and the function's own traceback."""

    def half(id: str) -> int:
        return 1 // (113 - ord(id))

    with pytest.raises(FunctionError, match=r"sample 'q'.*field 'y'(.|\n)*ZeroDivisionError(.|\n)*in half"):
        batch(["p", "q"], half, n_classes=2)


def test_labels_that_are_fields_of_their_own(folder: Any) -> None:
    """A source, or several fields, given as labels: as targets would be."""
    data = folder(4)
    options = {"source": None, "data_dir": data.path}
    assert batch(data.ids, Npy(data.path), **options)[0][:, 0, 0].tolist() == [0, 1, 2, 3]
    found, _ = batch(data.ids, {"a": [5, 6, 7, 8], "b": data.labels}, **options)
    assert {name: values.tolist() for name, values in found.items()} == {"a": [5, 6, 7, 8], "b": [0, 1, 2, 3]}


# Several fields, or a value for each id.

IDS = ["p", "q", "r", "s"]
A, B = [1, 2, 3, 4], [5, 6, 7, 8]

NESTS = {
    # what is given for the ids p, q, r, s -> what comes
    "dict-of-arrays": ({"a": np.array(A), "b": np.array(B)}, {"a": A, "b": B}),
    "dict-of-lists": ({"a": A, "b": B}, {"a": A, "b": B}),
    "dict-of-one": ({"a": A}, {"a": A}),
    "dict-of-mappings": ({"a": dict(zip(IDS, A, strict=True)), "b": B}, {"a": A, "b": B}),
    "dict-of-rows": ({"a": np.eye(4), "b": B}, {"a": np.eye(4).tolist(), "b": B}),
    "list-of-arrays": ([np.array(A), np.array(B)], (A, B)),
    "tuple-of-lists": ((A, B), (A, B)),
    "list-of-one": ([A], (A,)),
    "nested": ({"a": A, "b": {"c": B, "d": A}}, {"a": A, "b": {"c": B, "d": A}}),
    "list-of-dicts": ([{"a": A}, B], ({"a": A}, B)),
    "a-row-for-each-id": ([A, B, A, B], [A, B, A, B]),
    "a-mapping-to-rows": (dict(zip(IDS, [A, B, A, B], strict=True)), [A, B, A, B]),
    "a-mapping-to-rows-and-more": ({**dict(zip(IDS, [A, B, A, B], strict=True)), "x": A}, [A, B, A, B]),
    "an-array-of-rows": (np.array([A, B, A, B]), [A, B, A, B]),
}


def lists(part: Any) -> Any:
    """``part`` with lists in the place of arrays."""
    if isinstance(part, dict):
        return {key: lists(value) for key, value in part.items()}
    return tuple(map(lists, part)) if isinstance(part, tuple) else part.tolist()


@pytest.mark.parametrize(("given", "expected"), NESTS.values(), ids=NESTS)
@pytest.mark.parametrize("role", ["targets", "labels", "inputs"])
def test_fields_are_told_from_values(given: Any, expected: Any, role: str) -> None:
    """``{"a": array, "b": array}`` and ``[y, z]`` are several fields; a mapping from id to rows, or a row for each id, is one."""
    options = {"inputs": given, "targets": A} if role == "inputs" else {role: given, "inputs": Values(A)}
    with Loader(IDS, batch_size=4, shuffle=False, workers=0, **options) as loader:
        assert lists(loader.batch(0)[role != "inputs"]) == expected


@pytest.mark.parametrize(
    ("given", "text"),
    [
        pytest.param({"a": A, "b": A[:3]}, "field 'b': expected a value for each of the 4 ids, found 3", id="dict"),
        pytest.param([A, A[:3]], r"field 'y\[1\]': expected a value for each of the 4 ids, found 3", id="list"),
        pytest.param({"a": [1, 2]}, "id 'p', field 'y': expected a value, .*found none among 'a'", id="all-too-short"),
        pytest.param({"P": A, "Q": B, "R": A, "S": B}, "id 'p', field 'y': expected a value, .*found none among", id="keys"),
        pytest.param({"a": A, "q": B}, "id 'p', field 'y': expected a value", id="an-id-among-the-keys"),
    ],
)
def test_fields_and_values_that_are_mistakes(given: Any, text: str) -> None:
    """The field that has too few, or the id that has none."""
    with pytest.raises(InputError, match=text):
        batch(IDS, targets=given)


# Names of classes.


@pytest.mark.parametrize("n_classes", [None, 3])
@pytest.mark.parametrize("kind", ["mapping", "list", "array", "objects", "pandas", "categories"])
def test_names_of_classes(kind: str, n_classes: int | None) -> None:
    """They become their positions in ``classes``, or one-hot rows; the order can be read afterwards."""
    names: Any = ["dog", "cat", "dog", "bird"]
    if kind == "mapping":
        names = {**dict(zip(TEXTS, names, strict=True)), "elsewhere": "bird"}
    elif kind in ("array", "objects"):
        names = np.array(names, object if kind == "objects" else None)
    elif kind in ("pandas", "categories"):
        names = pytest.importorskip("pandas").Series(names, dtype="category" if kind == "categories" else None)
    for classes, expected in ((["cat", "dog", "bird"], [1, 0, 1, 2]), ("sorted", [2, 1, 2, 0])):
        found, loader = batch(TEXTS, names, classes=classes, n_classes=n_classes)
        assert found.tolist() == (np.eye(3)[expected].tolist() if n_classes else expected)
        assert loader.classes == (("cat", "dog", "bird") if classes != "sorted" else ("bird", "cat", "dog"))


def test_sorted_classes_are_those_of_all_labels() -> None:
    """Training and validation that share a mapping share the classes, though one has samples of one class alone."""
    labels = {"a": "cat", "b": "dog", "c": "dog", "unused": None}
    assert batch(["b", "c"], labels, classes="sorted")[1].classes == ("cat", "dog")
    assert labels_of(["b", "c"], labels, classes="sorted") == [1, 1]
    assert batch([1, 2], ["cat", "dog", "dog"], classes="sorted")[1].classes == ("cat", "dog")


def test_classes_of_several_targets() -> None:
    """By field; None where labels are numbers, or there are none."""
    targets = {"animal": Values(["dog", "cat"], classes="sorted"), "number": [1, 2]}
    assert batch(["a", "b"], targets=targets)[1].classes == {"animal": ("cat", "dog")}
    assert batch(["a", "b"], targets=Values(["x", "y"], classes=["y", "x"]))[1].classes == ("y", "x")
    assert batch(["a", "b"], [1, 2])[1].classes is None


WRONG_CLASSES = [
    # labels, options, and what the error says
    pytest.param(
        ["cat", "fox"],
        {"classes": ["cat", "dog"]},
        "id 'q', field 'y': expected one of the classes 'cat', 'dog', found 'fox'; add it",
        id="unknown",
    ),
    pytest.param(["cat", None], {"classes": ["cat"]}, "id 'q', .*classes 'cat', found None; leave such ids out", id="none"),
    pytest.param(["cat", float("nan")], {"classes": "sorted"}, "id 'q', .*classes 'cat', found nan; leave", id="nan"),
    pytest.param([0, 1], {"classes": ["cat", "dog"]}, "id 'p', .*found 0; leave classes out where", id="numbers-already"),
    pytest.param([["cat"], ["dog"]], {"classes": ["cat", "dog"]}, r"id 'p', .*classes .*found \['cat'\]", id="lists"),
    pytest.param([0.5, 1.5], {"classes": "sorted"}, "id 'p', .*expected the name of a class.*found 0.5", id="floats"),
    pytest.param(["a", "b"], {"classes": list("abcdefghijklmnopqrstuvwxyz")[::-1][:-1]}, "and 5 others, found 'a'", id="many"),
    pytest.param(["a", "b"], {"classes": ["a", "b"], "n_classes": 3}, "n_classes: expected 2, .*found 3", id="n_classes"),
    pytest.param(["a", "b"], {"classes": "sorted", "n_classes": 3}, "n_classes: expected 2, .*found 3", id="n_classes-sorted"),
    pytest.param(["a", "b"], {"classes": ["a", "b", "a"]}, "classes: expected each name once, found 'a' twice", id="twice"),
    pytest.param(["a", "b"], {"classes": []}, "classes: expected each name once, found none", id="no-names"),
    pytest.param(["a", "b"], {"classes": "alphabetical"}, "list of names in order, or 'sorted', found 'alphabetical'", id="text"),
    pytest.param(["a", "b"], {"classes": {"a", "b"}}, r"classes: .*; pass sorted\(classes\)", id="set"),
    pytest.param(["a", "b"], {"classes": {"a": 1, "b": 0}}, r"pass sorted\(classes, key=classes.get\)", id="dict"),
    pytest.param(["a", "b"], {"classes": [1.5]}, r"classes: expected names, texts or ints, found 1\.5", id="float-as-a-name"),
    pytest.param(["a", "b"], {"classes": 3}, "classes: expected a list of names in order, or 'sorted', found 3", id="number"),
]


@pytest.mark.parametrize(("labels", "options", "text"), WRONG_CLASSES)
def test_classes_that_are_mistakes(labels: Any, options: dict[str, Any], text: str) -> None:
    """The id, its label, and the classes there are; or what is wrong with the list of them."""
    with pytest.raises(InputError, match=text):
        batch(["p", "q"], labels, **options)


def test_class_indices_of_a_dict() -> None:
    """What the error about a dict advises keeps the dict's numbers."""
    classes = {"cat": 1, "dog": 0}
    with pytest.raises(InputError) as raised:
        batch(["p", "q"], ["cat", "dog"], classes=classes)
    [advice] = re.findall(r"pass (.*)$", str(raised.value))
    assert labels_of(["p", "q"], ["cat", "dog"], classes=eval(advice)) == [1, 0]
