"""The rule that gives each id its value does not depend on the values; if it is ambiguous, the error says what to write."""

from __future__ import annotations

import os
import tracemalloc
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from ways import batch_of, labels_of

from shmgen import InputError, Values

TEXTS = ["d", "a", "c", "b"]

ROWS = [[1, 2], [3, 4], [5, 6]]

RULES: list[tuple[Any, Any, Any, list[Any]]] = [
    # ids, values, `by`, and the value of each id
    (range(3, 0, -2), [7, 8, 9, 6], "id", [6, 8]),
    (TEXTS, [7, 8, 9, 6], None, [7, 8, 9, 6]),
    ([2, "0", 1], [5, 6, 7], None, [5, 6, 7]),
    ([0, 1, 2, 3], [7, 8, 9, 6], None, [7, 8, 9, 6]),
    ([np.int8(0), np.uint64(1)], [5, 6], None, [5, 6]),
    ([2, 1, 0], {0: 5, 1: 6, 2: 7}, None, [7, 6, 5]),
    (TEXTS, defaultdict(lambda: 9, a=1), None, [9, 1, 9, 9]),
    ([3, 1, 2, 0], [30, 10, 20, 0], "id", [0, 10, 20, 30]),
    ([3, 1, 2, 0], [30, 10, 20, 0], "position", [30, 10, 20, 0]),
    (range(3, -1, -1), (30, 10, 20, 0), "id", [0, 20, 10, 30]),
    ([0, 0, 2], [1, 2, 3], "id", [1, 1, 3]),
    ([2, 0], ROWS, "id", [[5, 6], [1, 2]]),
    ([10**30, 0], [5, 6], "position", [5, 6]),
]


def test_values_go_by_key_position_or_id() -> None:
    """A mapping goes by key, a list or array by position, or by id if ``by`` says so."""
    for ids, values, by, expected in RULES:
        given: Any
        for given in [values, np.array(values)] if isinstance(values, list) else [values]:
            assert labels_of(ids, given if by is None else Values(given, by=by)) == expected, (ids, values, by)


UNCLEAR = [
    # ids, values, and the values of the ids with each possible `by`
    pytest.param([3, 1, 2, 0], [30, 10, 20, 0], {"id": [0, 10, 20, 30], "position": [30, 10, 20, 0]}, id="both"),
    pytest.param([3, 1], [7, 8, 9, 6], {"id": [6, 8]}, id="more-values-than-ids"),
    pytest.param([1001, 7], [5, 6], {"position": [5, 6]}, id="ids-beyond-the-values"),
    pytest.param([-1, 0], [5, 6], {"position": [5, 6]}, id="a-negative-id"),
    pytest.param(range(5, 9), [5, 6, 7], {}, id="neither"),
]


@pytest.mark.parametrize(("ids", "values", "readings"), UNCLEAR)
def test_int_ids_other_than_positions_require_by(ids: Any, values: list, readings: dict[str, list]) -> None:
    """If ids are ints other than 0, 1, 2 and so on, a list of values is refused without ``by``."""
    for given, role in ((values, "labels"), (np.array(values), "targets")):
        with pytest.raises(InputError, match="field 'y': expected by='id' or by='position' beside a list"):
            batch_of(ids, **{role: given})
        for by, expected in readings.items():
            assert labels_of(ids, **{role: Values(given, by=by)}) == expected  # type: ignore[arg-type]


REFUSED: list[tuple[Any, Any, Any, str]] = [
    # ids, values, `by`, and the error's text
    ([1, 0], {0: 1, 1: 2}, "position", "by='position'.*type dict"),
    (["a", "b"], [1, 2], "id", "id 'a'.*expected an int.* a mapping"),
    ([1, -1], [5, 6], "id", r"id -1, .*expected an int from 0 to 1"),
    ([1, 2], [5, 6, 7], "position", "each of the 2 ids, found 3"),
    (range(3), [5, 6], None, "each of the 3 ids, found 2; .*in the order of the ids"),
    ([1, 0], [1, 2], "row", "by: expected 'id' or 'position', found 'row'"),
    (["a", "b"], {"c": 1}, None, "ids, found none for any among the keys, 'c'"),
]


def test_values_that_do_not_fit_the_ids_are_refused() -> None:
    """Values that are missing, or don't fit ``by``, are refused."""
    for ids, values, by, text in REFUSED:
        with pytest.raises(InputError, match=text):
            batch_of(ids, Values(values, by=by))


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (["b"], "none for this one"),
        (["b", "d"], "none for 2 of them, 'b', 'd'"),
        (list("abcd"), "none for 4 of them, .*and 1 more"),
    ],
)
def test_ids_without_a_value_are_counted(without: list[str], said: str) -> None:
    """The error of a missing label says how many are missing, which, and how to leave them out."""
    ids, labels = list("abcdef"), {id: ord(id) for id in "abcdef" if id not in without}
    with pytest.raises(
        InputError, match=f"id '{without[0]}', field 'y': expected a value for each of the 6 ids, found {said}"
    ) as raised:
        batch_of(ids, labels)
    remedy = str(raised.value).partition("leave them out, as ")[2].partition(" does")[0]
    left = eval(remedy, {"ids": ids, "labels": labels})
    assert labels_of(left, labels) == list(map(ord, left))
    with pytest.raises(InputError, match=r"as \[id for id in ids if id in weights\] does"):
        batch_of(ids, list(range(6)), weights=labels)


KEYS = {
    # ids, keys of the labels
    "without-a-folder": (["x/a", "x/b"], ["a", "b"]),
    "ints": (["0001", "0012"], [1, 12]),
    "leading-zeros-lost": ([1, 12], ["0001", "0012"]),
    "bytes": ([b"a", b"b"], ["a", "b"]),
}


@pytest.mark.parametrize(("ids", "keys"), KEYS.values(), ids=KEYS)
def test_ids_and_keys_in_different_spellings(ids: Any, keys: Any) -> None:
    """If ids and keys are written differently, the error says how to turn ids into keys, which works."""
    mapping = dict(zip(keys, [5, 6], strict=True))
    for labels in (mapping, pytest.importorskip("pandas").Series(mapping).rename_axis("id")):
        with pytest.raises(InputError, match=f"none for any, but one for {keys[0]!r}") as raised:
            batch_of(ids, labels)
        followed = eval(str(raised.value).partition("pass ")[2].partition(" as ids")[0], {"ids": ids, "os": os})
        assert labels_of(followed, labels) == [5, 6]


@pytest.mark.parametrize("kind", ["names", "mapping"])
def test_labels_are_held_in_an_array(kind: str) -> None:
    """Labels take at most 9 bytes an id once bound, whether they were names or in a mapping."""
    count = 100_000
    ids = [f"id-{k}" for k in range(count)]
    values: Any = np.arange(count) % 2
    values = np.array(["cat", "dog"])[values] if kind == "names" else dict(zip(ids, values.tolist(), strict=True))
    source = Values(values, classes="sorted" if kind == "names" else None)
    tracemalloc.start()
    reader = source.bind(ids)  # noqa: F841 # it holds the labels
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 9 * count


@pytest.mark.parametrize("kind", ["numbers", "n_classes", "classes", "sorted", "floats"])
def test_labels_in_an_array_keep_their_dtype(kind: str) -> None:
    """Small ints and floats in an array are kept in their dtype, and cast when a batch is filled."""
    count = 1_000_000
    ids = range(count)
    values: Any = (np.arange(count) % 3).astype(np.uint8)
    options: dict[str, Any] = {}
    if kind == "floats":
        values = values.astype(np.float16)
        options["dtype"] = "float64"
    elif kind != "numbers":
        options = {"n_classes": 3} if kind == "n_classes" else {"classes": [2, 1, 0] if kind == "classes" else "sorted"}
    source = Values(values, **options)
    np.unique(values)  # its first call imports a module
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
    elif kind == "n_classes":
        expected = np.eye(3)[expected].tolist()
    assert rows.tolist() == expected
    assert reader.dtype == {"n_classes": np.float32, "floats": np.float64}.get(kind, np.int64)


def test_later_changes_to_a_label_array_have_no_effect() -> None:
    """Later changes to the caller's array have no effect."""
    values = np.arange(4, dtype=np.uint8)
    source = Values(values)
    reader = source.bind(range(4))
    values[:] = 9
    rows = np.zeros(4, np.int64)
    reader.fill(np.arange(4), rows, None)
    assert rows.tolist() == [0, 1, 2, 3]


def frame() -> Any:
    """A frame with paths, labels and ids of four samples, and the default index."""
    pd = pytest.importorskip("pandas")
    return pd.DataFrame({"path": TEXTS, "label": [3, 0, 2, 1], "id": [3, 1, 2, 0], "far": [13, 11, 12, 10], "name": list("ynyn")})


COLUMNS: dict[str, Any] = {
    # a function of a frame, which returns ids, labels, and the expected label of each id
    "columns-of-one-frame": lambda df: (df.path, df.label, [3, 0, 2, 1]),
    "shuffled": lambda df: (df.iloc[[2, 0, 3, 1]].path, df.iloc[[2, 0, 3, 1]].label, [2, 3, 1, 0]),
    "filtered": lambda df: (df[df.label > 0].path, df[df.label > 0].label, [3, 2, 1]),
    "by-id": lambda df: (["a", "b", "c", "d"], df.set_index("path").label, [0, 1, 2, 3]),
    "by-int-id": lambda df: ([10, 11, 12, 13], df.set_index("far").label, [1, 0, 2, 3]),
    "ints-in-order-without-a-name": lambda df: (df.far.tolist(), df.label.set_axis(df.far.to_numpy()), [3, 0, 2, 1]),
    "repeated-index": lambda df: (df.path.set_axis([0, 0, 1, 1]), df.label.set_axis([0, 0, 1, 1]), [3, 0, 2, 1]),
    "repeated-ids-in-order": lambda df: (["a", "a", "b", "b"], df.label.set_axis(["a", "a", "b", "b"]), [3, 0, 2, 1]),
    "bools": lambda df: (df.path, (df.label > 1).astype("boolean"), [1, 0, 1, 0]),
    "categories-as-ids": lambda df: (df.path.astype("category"), df.label, [3, 0, 2, 1]),
    "by-uint64-id": lambda df: (np.array([3, 1], np.uint64), df.set_index("id").label, [3, 0]),
}


def test_pandas_series_go_by_their_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Series goes by its index, unless that only numbers rows, and is never read element by element."""
    import_pandas = pytest.importorskip("pandas")
    cases = {what: make(frame()) for what, make in COLUMNS.items()}

    def refuse(*_: object) -> None:
        raise AssertionError("one by one")

    monkeypatch.setattr(import_pandas.Series, "__getitem__", refuse)
    monkeypatch.setattr(import_pandas.Series, "__iter__", refuse)
    for what, (ids, labels, expected) in cases.items():
        assert labels_of(ids, labels) == expected, what


WRONG_COLUMNS = {
    # ids and labels of a frame, the error's text, ids and labels that follow its advice, and the resulting labels
    "int-ids-beside-numbers-of-rows": (
        lambda df: (df.id, df.label),
        r"ints, but not 0, 1, 2 .*Values\(values, by='id'\) or Values\(values, by='position'\)",
        lambda df: (df.id, Values(df.label, by="position")),
        [3, 0, 2, 1],
    ),
    "int-ids-of-a-filtered-frame": (
        lambda df: (df[df.label > 0].far, df[df.label > 0].label),
        r"none for any among the labels of the index, 0, 2, 3; .*pass Values\(values, by='position'\)",
        lambda df: (df[df.label > 0].far, Values(df[df.label > 0].label, by="position")),
        [3, 2, 1],
    ),
    "labels-in-another-order": (
        lambda df: (df.path, df.label.sort_values()),
        r"field 'y': expected rows in the order of the ids' rows, with index 0, 1, .* found 1, 3, .*values\.loc\[ids\.index\]",
        lambda df: (df.path, df.label.sort_values().loc[df.path.index]),
        [3, 0, 2, 1],
    ),
    "ids-in-another-order": (
        lambda df: (df.id[::-1], Values(df.label[[3, 1, 0, 2]])),
        r"with index 3, 2, .*, or values\.to_numpy\(\) to go by position",
        lambda df: (df.path[::-1], df.label.to_numpy()),
        [3, 0, 2, 1],
    ),
    "a-frame-as-ids": (
        lambda df: (df[["path", "label"]], df.label),
        r"list_IDs: .*found a DataFrame; pass its column of ids, as df\['id'\]",
        lambda df: (df["path"], df.label),
        [3, 0, 2, 1],
    ),
    "a-frame-as-labels": (
        lambda df: (df.path, df[["label", "id"]]),
        r"field 'y': .*found a DataFrame; pass a column of it, as df\['label'\], .*\]\.to_numpy\(\)",
        lambda df: (df.path, df[["label", "id"]].to_numpy()),
        [[3, 3], [0, 1], [2, 2], [1, 0]],
    ),
    "missing-value": (
        lambda df: (df.path, df.label.where(df.label != 2)),
        "id 'c', field 'y': expected an int, found nan: its value is missing; leave such ids out",
        lambda df: (df.path[df.label != 2], df.label[df.label != 2]),
        [3, 0, 1],
    ),
    "texts": (
        lambda df: (df.path, df.name),
        r"id 'd', field 'y': expected an int, found 'y' of type str; .*classes='sorted'",
        lambda df: (df.path, Values(df.name, classes="sorted")),
        [1, 0, 1, 0],
    ),
}


@pytest.mark.parametrize(("make", "text", "follow", "expected"), WRONG_COLUMNS.values(), ids=WRONG_COLUMNS)
def test_tables_are_refused_with_advice_that_works(make: Any, text: str, follow: Any, expected: list[Any]) -> None:
    """Errors about tables advise which columns to pass, and how, and the advice works."""
    df = frame()
    with pytest.raises(InputError, match=text):
        batch_of(*make(df))
    assert labels_of(*follow(df)) == expected


def test_a_duplicated_index_is_refused() -> None:
    """An index that has an id twice is refused with two remedies, which both work."""
    labels = frame().label.set_axis(["a", "b", "a", "c"])
    with pytest.raises(InputError, match=r"each id once, found 'a' several times; drop duplicates, or pass Values\(.*'position'"):
        batch_of(["a", "b", "c", "c"], labels)
    assert labels_of(["a", "b", "c"], labels[~labels.index.duplicated()]) == [3, 0, 1]
    assert labels_of(["a", "b", "c", "c"], Values(labels, by="position")) == [3, 0, 2, 1]


@pytest.mark.parametrize("package", ["polars", "pyarrow"])
def test_polars_and_pyarrow_columns_go_by_position(package: str) -> None:
    """Columns of polars and pyarrow go by position."""
    module = pytest.importorskip(package)
    make = module.Series if package == "polars" else module.array
    assert labels_of(make(["b", "a"]), make([1, 2])) == [1, 2]
    assert labels_of(make(["b", "a"]), make(["x", "y"]), classes=["y", "x"]) == [1, 0]
    table = module.DataFrame({"path": ["a"]}) if package == "polars" else module.table({"path": ["a"]})
    with pytest.raises(InputError, match=r"df\['path'\]"):
        batch_of(table)
