"""`split` holds out the same ids everywhere, the same fraction of each class, and whole groups; and `class_weights`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from shmgen import InputError, Values, class_weights, split

IDS = [f"id-{number}" for number in range(100)]

NAMES = {id: "rare" if number % 10 == 0 else "often" for number, id in enumerate(IDS)}


def test_a_part_is_held_out_in_order() -> None:
    """Each id is on one side, even if it is there twice; both sides keep the order, and the list is not changed."""
    ids = [*IDS, *IDS[:50]]
    training, validation = split(ids, fraction=0.3)
    assert len(set(validation)) == 30
    assert [id for id in ids if id not in set(validation)] == training
    assert [id for id in ids if id in set(validation)] == validation
    assert ids == [*IDS, *IDS[:50]]


def test_the_choice_is_remembered_across_versions() -> None:
    """The choice depends only on seed and ids, and few ids change sides when ids are added."""
    assert split(list("abcdefgh"), None, 0.25)[1] == ["e", "h"]
    assert split(range(8), None, 0.25)[1] == split(np.arange(8), None, 0.25)[1] == [0, 1]
    assert split(range(8), None, 0.25, seed=1)[1] == [0, 3]
    before, after = set(split(IDS)[1]), set(split([*IDS, *map(str, range(10))])[1])
    assert len(before - after) <= 4


def test_every_id_is_held_out_by_chance() -> None:
    """Over many seeds, each id is held out about as often as any other."""
    counts = Counter(id for seed in range(200) for id in split(IDS[:20], None, 0.25, seed=seed)[1])
    assert all(20 <= counts[id] <= 85 for id in IDS[:20])  # 50 expected; 5 deviations are 31


LABELS: dict[str, Any] = {
    "mapping": NAMES,
    "function": NAMES.__getitem__,
    "Values": Values(list(NAMES.values()), by="position"),
    "one-hot": np.eye(2)[[int(name == "rare") for name in NAMES.values()]],
}


@pytest.mark.parametrize("kind", LABELS)
def test_each_class_is_split_alike(kind: str) -> None:
    """With ``stratify`` the rounded fraction of each class, but at least one id, is held out, with labels in any form."""
    for fraction, often, rare in ((0.2, 18, 2), (0.01, 1, 1), (0.999, 89, 9)):
        _, validation = split(IDS, LABELS[kind], fraction, stratify=True)
        assert Counter(map(NAMES.__getitem__, validation)) == {"often": often, "rare": rare}


@pytest.mark.parametrize("stratify", [False, True])
def test_groups_are_kept_together(stratify: bool) -> None:
    """No group is on both sides, and the fraction is nearly met, with ``stratify`` also in each class."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        groups = dict(zip(IDS, rng.integers(30, size=100).tolist(), strict=True))
        training, validation = split(IDS, NAMES, 0.3, stratify=stratify, groups=groups, seed=seed)
        assert not {groups[id] for id in training} & {groups[id] for id in validation}
        assert abs(len(validation) - 30) <= 3
        if stratify:
            assert abs(sum(NAMES[id] == "rare" for id in validation) - 3) <= 1


MISTAKES = [
    # arguments, options, and a part of the error
    pytest.param((IDS, None, 0.2), {"stratify": True}, "stratify=True: expected labels", id="no-labels"),
    pytest.param((IDS, None, 1.0), {}, "fraction: expected a fraction above 0 and below 1, found 1.0", id="all"),
    pytest.param((IDS,), {"groups": lambda id: 7}, "groups: expected at least 2, one for each side, found 1", id="one-group"),
    pytest.param((["a", "b"], {"a": 1}), {"stratify": True}, "id 'b', field 'labels': expected a value", id="no-label"),
    pytest.param((["a", "b"], [1, None]), {"stratify": True}, "id 'b', labels: expected a value, found None", id="missing"),
    pytest.param(([5, 6], [1, 2]), {"stratify": True}, r"Values\(values, by='position'\)", id="int-ids"),
]


@pytest.mark.parametrize(("args", "options", "text"), MISTAKES)
def test_wrong_arguments_are_refused(args: Any, options: Any, text: str) -> None:
    """Each mistake is an error with what was expected and found."""
    with pytest.raises(InputError, match=text):
        split(*args, **options)


WEIGHED: dict[str, tuple[Any, Any]] = {
    "ints": ([0, 0, 0, 1], None),
    "one-hot": (np.eye(2)[[0, 0, 0, 1]], None),
    "column-of-ints": (np.array([[0], [0], [0], [1]]), None),
    "sorted-names": ({"a": "x", "b": "x", "c": "x", "d": "y", "unused": "z"}, "sorted"),
}


@pytest.mark.parametrize("kind", WEIGHED)
def test_class_weights(kind: str) -> None:
    """Weights make all classes count the same, and their mean over all samples is 1, as in scikit-learn."""
    labels, classes = WEIGHED[kind]
    assert class_weights(list("abcd"), labels, classes=classes) == pytest.approx({0: 4 / 6, 1: 4 / 2})
    with pytest.raises(InputError, match="ids: expected at least one, found none"):
        class_weights([], labels, classes=classes)


@pytest.mark.parametrize(
    ("labels", "options", "text"),
    [
        (["x", "y"], {}, "id 'a', field 'labels': expected an int, found 'x' of type str; .*pass classes"),
        (["x", "y"], {"classes": ["x"]}, "id 'b', field 'labels': expected one of the classes 'x', found 'y'"),
        ([0.5, 1], {}, "id 'a', field 'labels': expected an int, found 0.5"),
    ],
)
def test_labels_without_a_class(labels: Any, options: Any, text: str) -> None:
    """The error for a label that is not a class names the id and the remedy."""
    with pytest.raises(InputError, match=text):
        class_weights(["a", "b"], labels, **options)
