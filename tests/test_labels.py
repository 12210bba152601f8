"""Labels and targets of any kind become the rows that were meant, and the advice in errors works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ways import batch_of, labels_of, lists

from shmgen import Function, FunctionError, InputError, Loader, Npy, Npz, Source, Values

TEXTS = ["d", "a", "c", "b"]


def one_hot(*numbers: int) -> np.ndarray:
    """One-hot rows of 3 classes, like those of ``keras.utils.to_categorical``."""
    return np.eye(3)[list(numbers)]


ADVICE = {
    # wrong labels and options, the error's text, options that follow its advice, and the resulting labels
    "floats": (
        {"labels": [0.5, 1.0]},
        r"id 'p', field 'y': expected an int, found 0\.5 of type float; .*pass Values\(\.\.\., dtype='float32'\)",
        {"labels": Values([0.5, 1.0], dtype="float32")},
        [0.5, 1.0],
    ),
    "texts": (
        {"labels": ["cat", "dog"]},
        r"id 'p', .*found 'cat' of type str; .*pass classes=\[\.\.\.\], .*or classes='sorted'",
        {"labels": ["cat", "dog"], "classes": "sorted"},
        [0, 1],
    ),
    "missing": (
        {"labels": [1, None]},
        "id 'q', .*expected an int, found None of type NoneType; leave such ids out, or give them a value",
        {"labels": [1, 0]},
        [1, 0],
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
        "expected a mapping from id to value, a function of the id, or a list or array of values, found one of type int",
        {"labels": [3, 3]},
        [3, 3],
    ),
    "a-view-of-a-dict": (
        {"labels": {"x": 1, "y": 2}.values()},
        "found one of type dict_values",
        {"labels": list({"x": 1, "y": 2}.values())},
        [1, 2],
    ),
    "far-too-large": (
        {"labels": [2**63, 1]},
        r"expected an int from .*, found 9223372036854775808; pass Values\(\.\.\., dtype=\.\.\.\) with one that holds it",
        {"labels": Values([2**63, 1], dtype="uint64")},
        [2**63, 1],
    ),
    "complex": (
        {"targets": [1j, 1.0]},
        "found 1j of dtype complex128, .*; pass dtype='complex128'",
        {"targets": Values([1j, 1.0], dtype="complex128")},
        [1j, 1.0],
    ),
    "n_classes-and-targets": (
        {"targets": [0, 1], "n_classes": 2},
        "n_classes and classes are for labels; give them to the Values among targets",
        {"targets": Values([0, 1], n_classes=2)},
        [[1.0, 0.0], [0.0, 1.0]],
    ),
    "classes-and-a-source-as-labels": (
        {"labels": Function(lambda id: 1), "n_classes": 2, "classes": ["a", "b"]},
        "n_classes and classes are for labels of one field; give them to each field",
        {"labels": Function(lambda id: 1), "n_classes": 2},
        [[0.0, 1.0], [0.0, 1.0]],
    ),
    "n_classes-and-several-fields": (
        {"labels": {"a": Function(lambda id: 1)}, "n_classes": 2},
        r"npz\['label'\]\.one_hot\(n_classes\)",
        {"labels": Function(lambda id: 1).one_hot(2)},
        [[0.0, 1.0], [0.0, 1.0]],
    ),
    "weights-alone": (
        {"weights": [1, 2]},
        "weights weigh the loss of targets, and there are none: give labels or targets too",
        {"weights": [1, 2], "labels": [3, 4]},
        [3, 4],
    ),
}


@pytest.mark.parametrize(("wrong", "text", "right", "expected"), ADVICE.values(), ids=ADVICE)
def test_the_remedies_work(wrong: dict, text: str, right: dict, expected: list[Any]) -> None:
    """The remedy in each error gives the labels that were meant."""
    with pytest.raises(InputError, match=text):
        batch_of(["p", "q"], **wrong)
    assert labels_of(["p", "q"], **right) == expected


ACCEPTED: dict[str, tuple[dict[str, Any], list[Any], str]] = {
    # labels and options, the resulting labels, and their dtype
    "to_categorical": ({"labels": one_hot(0, 2)}, [[1, 0, 0], [0, 0, 1]], "float32"),
    "to_categorical-with-n_classes": ({"labels": one_hot(0, 2), "n_classes": 3}, [[1, 0, 0], [0, 0, 1]], "float32"),
    "rows-as-lists-with-n_classes": ({"labels": [[1, 0], [0, 1]], "n_classes": 2}, [[1, 0], [0, 1]], "float32"),
    "column-of-ints-with-n_classes": ({"labels": np.array([[2], [0]]), "n_classes": 3}, [[0, 0, 1], [1, 0, 0]], "float32"),
    "iterator-of-classes": ({"labels": ["x", "y"], "classes": iter(["y", "x"])}, [1, 0], "int64"),
    "Values-of-floats": ({"labels": Values([4.5, 5])}, [4.5, 5], "float32"),
    "Values-with-classes": ({"labels": Values(["x", "y"]), "classes": ["y", "x"]}, [1, 0], "int64"),
    "function": ({"labels": ord}, [112, 113], "int64"),
    "function-of-rows": ({"labels": lambda id: np.full(2, ord(id), "u1")}, [[112, 112], [113, 113]], "uint8"),
    "function-with-n_classes": ({"labels": lambda id: ord(id) - 112, "n_classes": 2}, [[1, 0], [0, 1]], "float32"),
    "function-with-classes": ({"labels": lambda id: id, "classes": ["q", "p"]}, [1, 0], "int64"),
    "function-as-Values": ({"targets": Values(lambda id: ord(id) / 2)}, [56, 56.5], "float32"),
    "classes-as-floats": ({"labels": Values(["x", "y"], dtype="f4", classes=["y", "x"])}, [1, 0], "float32"),
    "numbers-as-classes": ({"labels": [50, 10], "classes": "sorted"}, [1, 0], "int64"),
    "numpy-ints": ({"labels": {"p": np.int16(3), "q": np.array(4), "unused": 5}}, [3, 4], "int64"),
}


def test_labels_in_any_form() -> None:
    """Labels may be rows, lists, functions, Values or sources, with ``n_classes`` or without."""
    for what, (options, expected, dtype) in ACCEPTED.items():
        found, _ = batch_of(["p", "q"], **options)
        assert (found.tolist(), found.dtype) == (expected, dtype), what


def test_values_of_ml_dtypes() -> None:
    """Values cast to a dtype of ml_dtypes lose precision; a number that the dtype can't hold raises an error."""
    pytest.importorskip("ml_dtypes")
    assert labels_of(["p", "q"], Values([0.1, 2], dtype="bfloat16")) == [0.10009765625, 2.0]
    with pytest.raises(InputError, match=r"id 'q', .*numbers that dtype bfloat16 holds, found 1e\+300 in .*dtype='float64'"):
        batch_of(["p", "q"], Values([0.1, 1e300], dtype="bfloat16"))


def test_a_function_of_labels_that_fails_is_named() -> None:
    """The error of a failing function of labels has the id, the field, and the function's traceback."""

    def half(id: str) -> int:
        return 1 // (113 - ord(id))

    with pytest.raises(FunctionError, match=r"sample 'q'.*field 'y'(.|\n)*ZeroDivisionError(.|\n)*in half"):
        batch_of(["p", "q"], half, n_classes=2)


def test_labels_as_a_source_or_fields(folder: Any) -> None:
    """Labels may be a source or a dict of fields, as targets may."""
    data = folder(4)
    options = {"source": None, "data_dir": data.path}
    assert batch_of(data.ids, Npy(data.path), **options)[0][:, 0, 0].tolist() == [0, 1, 2, 3]
    found, _ = batch_of(data.ids, {"a": [5, 6, 7, 8], "b": data.labels}, **options)
    assert {name: values.tolist() for name, values in found.items()} == {"a": [5, 6, 7, 8], "b": [0, 1, 2, 3]}


N = 8


def own() -> Source:
    """A source of an image, a label and a mask; its class is local, so that workers need not import this file."""

    class Own(Source):
        fields = {"image": ((2,), "f4"), "label": ((), "u1"), "mask": ((4, 1), "i8")}  # noqa: RUF012

        def fill(self, ids: Any, rows: dict[str, np.ndarray]) -> None:
            for number, id in enumerate(ids):
                rows["image"][number] = id
                rows["label"][number] = id % 3
                rows["mask"][number] = np.arange(4)[:, None] % 3

    return Own()


class Replacing(Source):
    """A source that replaces the row views in ``rows`` instead of writing into them."""

    fields = {"image": ((2,), "f4"), "label": ((), "u1")}  # noqa: RUF012

    def read(self, id: int, rows: dict[str, Any]) -> None:
        rows["image"], rows["label"] = np.full(2, id), id % 3


def pair(id: int) -> tuple[np.ndarray, int]:
    """An input and its label."""
    return np.full(2, id, np.float32), id % 3


def labelled(folder: Path) -> dict[str, dict[str, Any]]:
    """Options of loaders that read labels of three classes and make one-hot rows of them."""
    for number in range(N):
        np.save(folder / f"{number}.npy", np.array([number % 3]))
        arrays = {"image": np.full(2, number), "label": np.uint8(number % 3)}
        np.savez(folder / f"{number}.npz", **arrays)  # type: ignore[arg-type]
    npz, read, replacing, x = Npz(folder), own(), Replacing(), {"inputs": Values(np.zeros(N))}
    return {
        "npy": {"labels": Npy(folder), "n_classes": 3, **x},
        "npz": {"source": npz["image"], "labels": npz["label"], "n_classes": 3},
        "own-fill": {"source": read["image"], "labels": read["label"], "n_classes": 3},
        "own-read": {"source": replacing["image"], "labels": replacing["label"], "n_classes": 3},
        "whole-sample": {"source": pair, "n_classes": 3},
        "with-a-transform": {"source": read["image"], "labels": read["label"], "n_classes": 3, "transform": lambda x, rng: x + 1},
    }


def test_one_hot_rows_of_labels_from_sources(tmp_path: Path) -> None:
    """Labels from files, archives, functions and users' sources become one-hot rows, like labels in memory."""
    for way, options in labelled(tmp_path).items():
        with Loader(range(N), batch_size=N, shuffle=False, workers=0, **options) as loader:
            _, y = loader.batch(0)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, np.eye(3)[np.arange(N) % 3], way)


def test_one_hot_rows_beside_the_ints_in_workers(tmp_path: Path) -> None:
    """Workers read ints, their one-hot rows, and one-hot rows of a mask from one source."""
    read = own()
    targets = {"label": read["label"], "hot": read["label"].one_hot(3), "mask": read["mask"].one_hot(4)}
    with Loader(range(N), batch_size=4, inputs=read["image"], targets=targets, shuffle=False, workers=2) as loader:
        for X, y in loader:
            assert (y["label"] == X[:, 0] % 3).all()
            np.testing.assert_array_equal(y["hot"], np.eye(3)[y["label"]])
            np.testing.assert_array_equal(y["mask"], np.broadcast_to(np.eye(4)[np.arange(4) % 3], (4, 4, 4)))


def test_an_unknown_class_is_damage(tmp_path: Path) -> None:
    """A sample with a class number beyond ``n_classes`` counts as damaged; the others are read."""
    for way, workers in (("npy", 1), ("npz", 0)):
        options = labelled(tmp_path)[way] | {"n_classes": 2, "workers": workers}
        with Loader(range(N), batch_size=4, shuffle=False, on_error="replace", max_damaged=1, **options) as loader:
            list(loader)
            assert {found.id for found in loader.damaged} == {2, 5}
            assert "expected ints from 0 to 1, found 2; with n_classes=2 they are counted from 0" in loader.damaged[0].reason


IDS = ["p", "q", "r", "s"]
A, B = [1, 2, 3, 4], [5, 6, 7, 8]

NESTS = {
    # labels given for the ids p, q, r, s, and the resulting batch
    "dict-of-lists": ({"a": A, "b": B}, {"a": A, "b": B}),
    "dict-of-mappings": ({"a": dict(zip(IDS, A, strict=True)), "b": B}, {"a": A, "b": B}),
    "dict-of-rows": ({"a": np.eye(4), "b": B}, {"a": np.eye(4).tolist(), "b": B}),
    "list-of-arrays": ([np.array(A), np.array(B)], (A, B)),
    "as-many-lists-as-ids": ({"a": A, "b": B, "c": A, "d": B}, {"a": A, "b": B, "c": A, "d": B}),
    "as-many-mappings-as-ids": ([dict(zip(IDS, A, strict=True))] * 4, (A, A, A, A)),
    "as-many-Values-as-ids": ([Values(A), Values(B), Values(A), Values(B)], (A, B, A, B)),
    "stacked": (np.stack([A, B, A, B]), [A, B, A, B]),
    "nested": ({"a": A, "b": {"c": B, "d": A}}, {"a": A, "b": {"c": B, "d": A}}),
    "a-row-for-each-id": ([A, B, A, B], [A, B, A, B]),
    "a-mapping-to-rows": (dict(zip(IDS, [A, B, A, B], strict=True)), [A, B, A, B]),
    "a-mapping-to-rows-and-more": ({**dict(zip(IDS, [A, B, A, B], strict=True)), "x": A}, [A, B, A, B]),
}


def test_fields_are_distinguished_from_values() -> None:
    """``{"a": array}`` and ``[array, array]`` are fields; a mapping from id to rows, or a list of rows, is one field's values."""
    for what, (given, expected) in NESTS.items():
        for role in ("targets", "labels", "inputs"):
            options: dict[str, Any] = {"inputs": given, "targets": A} if role == "inputs" else {role: given, "inputs": Values(A)}
            with Loader(IDS, batch_size=4, shuffle=False, workers=0, **options) as loader:
                assert lists(loader.batch(0)[role != "inputs"]) == expected, (what, role)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        pytest.param({"a": A, "b": A[:3]}, "field 'b': expected a value for each of the 4 ids, found 3", id="dict"),
        pytest.param(
            {"a": [1, 2]}, "id 'p', field 'y': expected a value .*found none for any among the keys, 'a'", id="too-few-values"
        ),
        pytest.param([np.array(A)] * 4, r"pass np.stack\(rows\), or, of fields, \[Values\(column\)", id="rows-or-fields"),
        pytest.param({"a": A, "q": B}, "id 'p', field 'y': expected a value", id="an-id-among-the-keys"),
    ],
)
def test_wrong_fields_and_values_are_named(given: Any, text: str) -> None:
    """The error names the field with too few values, or the id without a value."""
    with pytest.raises(InputError, match=text):
        batch_of(IDS, targets=given)


@pytest.mark.parametrize("kind", ["mapping", "array", "objects", "categories"])
def test_class_names(kind: str) -> None:
    """Names become their positions in ``classes``, or one-hot rows; the loader's ``classes`` gives the order."""
    names: Any = ["dog", "cat", "dog", "bird"]
    if kind == "mapping":
        names = {**dict(zip(TEXTS, names, strict=True)), "elsewhere": "bird"}
    elif kind in ("array", "objects"):
        names = np.array(names, object if kind == "objects" else None)
    else:
        names = pytest.importorskip("pandas").Series(names, dtype="category")
    for classes, expected in ((["cat", "dog", "bird"], [1, 0, 1, 2]), ("sorted", [2, 1, 2, 0])):
        assert batch_of(TEXTS, names, classes=classes, n_classes=3)[0].tolist() == np.eye(3)[expected].tolist()
        found, loader = batch_of(TEXTS, names, classes=classes)
        assert found.tolist() == expected
        assert loader.classes == (("cat", "dog", "bird") if classes != "sorted" else ("bird", "cat", "dog"))


def test_sorted_classes_are_those_of_all_labels() -> None:
    """With ``classes="sorted"``, the classes are those of the whole mapping, so that training and validation share them."""
    labels = {"a": "cat", "b": "dog", "c": "dog", "unused": None}
    assert batch_of(["b", "c"], labels, classes="sorted")[1].classes == ("cat", "dog")
    assert labels_of(["b", "c"], labels, classes="sorted") == [1, 1]
    assert batch_of([1, 2], Values(["cat", "dog", "dog"], by="id"), classes="sorted")[1].classes == ("cat", "dog")


def test_classes_of_several_targets() -> None:
    """A loader's ``classes`` is a dict by field if there are several targets, and None if labels are numbers."""
    targets = {"animal": Values(["dog", "cat"], classes="sorted"), "number": [1, 2]}
    assert batch_of(["a", "b"], targets=targets)[1].classes == {"animal": ("cat", "dog")}
    assert batch_of(["a", "b"], targets=Values(["x", "y"], classes=["y", "x"]))[1].classes == ("y", "x")
    assert batch_of(["a", "b"], [1, 2])[1].classes is None


WRONG_CLASSES = [
    # labels, options, and the error's text
    pytest.param(
        ["cat", "fox"],
        {"classes": ["cat", "dog"]},
        "id 'q', field 'y': expected one of the classes 'cat', 'dog', found 'fox'; leave",
        id="unknown",
    ),
    pytest.param(
        ["cat", float("nan")], {"classes": "sorted"}, "id 'q', .*classes 'cat', found nan; .*give them such a name", id="nan"
    ),
    pytest.param(np.array([1, np.nan]), {"classes": "sorted"}, "'q', .*found nan: its value is missing; leave", id="nan-int"),
    pytest.param([b"cat", b"dog"], {"classes": "sorted"}, r"'p', .*found b'cat'; decode .*name\.decode\(\)", id="bytes"),
    pytest.param([b"cat", "dog"], {"classes": [b"cat"]}, r"classes: .*found b'cat'; decode .*name\.decode\(\)", id="byte-class"),
    pytest.param(["cat", ["dog"]], {"classes": "sorted"}, r"id 'q', .*classes 'cat', found \['dog'\]; leave", id="list"),
    pytest.param([0, 1], {"classes": ["cat", "dog"]}, "id 'p', .*found 0; leave", id="ints"),
    pytest.param(["a", "b"], {"classes": list("abcdefghijklmnopqrstuvwxyz")[::-1][:-1]}, "and 5 more, found 'a'", id="many"),
    pytest.param(["a", "b"], {"classes": ["a", "b"], "n_classes": 3}, "n_classes: expected 2, .*found 3", id="n_classes"),
    pytest.param(["a", "b"], {"classes": ["a", "b", "a"]}, "classes: expected each name once, found 'a' twice", id="twice"),
    pytest.param([0.5, 1.5], {"classes": "sorted"}, "'p', .*expected the name of a class, .*found 0.5; leave", id="floats"),
    pytest.param(["a", "b"], {"classes": [1.5]}, r"classes: expected names, texts or ints, found 1\.5", id="float-as-a-name"),
    pytest.param(["a", "b"], {"classes": {"a", "b"}}, "classes: expected a list of names in order", id="set"),
    pytest.param(["a", "b"], {"classes": {"a": 1, "b": 0}}, "classes: expected a list of names in order", id="dict"),
    pytest.param(
        Values(["a", "b"], classes="sorted"), {"classes": ["a", "b"]}, "the Values .* have classes of their own", id="both"
    ),
    pytest.param(
        Values([0, 1], n_classes=2), {"n_classes": 3}, "expected 2, as the Values given as labels say, found 3", id="other"
    ),
    pytest.param(
        Function(lambda id: 1.0), {"n_classes": 2}, "n_classes=2: expected ints, .* found dtype float64", id="read-floats"
    ),
    pytest.param(None, {"targets": Values([0, 1]).one_hot(2)}, "n_classes is an argument of Values", id="one_hot-of-values"),
    pytest.param(["a", "b"], {"classes": 3}, "classes: expected a list of names in order, or 'sorted', found 3", id="number"),
]


@pytest.mark.parametrize(("labels", "options", "text"), WRONG_CLASSES)
def test_wrong_classes_are_refused(labels: Any, options: dict[str, Any], text: str) -> None:
    """The error names the id, its label and the classes, or what is wrong with their list."""
    with pytest.raises(InputError, match=text):
        batch_of(["p", "q"], labels, **options)
