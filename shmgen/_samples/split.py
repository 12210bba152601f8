"""Ids and labels before there is a loader: `split` holds out ids for validation, `class_weights` weighs rare classes."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from shmgen._checks import check_float, check_int
from shmgen._samples.ids import is_missing, kept
from shmgen._samples.lookup import all_of, is_mapping, objects, values_of
from shmgen.errors import InputError


def split(
    ids: Iterable[Any],
    labels: Mapping[Any, Any] | Iterable[Any] | Callable[[Any], Any] | None = None,
    fraction: float = 0.2,
    *,
    stratify: bool = False,
    groups: Mapping[Any, Any] | Iterable[Any] | Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> tuple[list[Any], list[Any]]:
    """Ids to train on, and ids to validate on, each in the order of ``ids``.

    The choice depends on ``seed`` and the ids (or groups) alone: it is the same on any machine, with any version of Python and
    NumPy, and few ids change sides when others are added. An id that is there twice is on one side.

    Args:
        ids: of all samples, as a loader takes them.
        labels: for ``stratify``: a class for each id, as `Values` takes them; a class may be a row, such as a one-hot one.
        fraction: of the ids to hold out, above 0 and below 1; rounded, but at least one id, and not all.
        stratify: whether the fraction is the same for each class; a class of a single id is trained on.
        groups: the group of each id, its patient for instance, in the same kinds as labels. A group is on one side. The fraction,
            of each class with ``stratify``, is then met as well as whole groups allow.
        seed: of the choice, an int from 0.

    Returns:
        The ids of training, and those of validation.

    Raises:
        InputError: there are too few ids or groups, ``stratify`` has no labels, or an id has no label or group.

    Examples:
        >>> training, validation = split(ids, labels, 0.25, stratify=True)
        >>> len(training), sorted(labels[id] for id in validation)
        (12, [0, 1, 2, 3])
        >>> loader = Loader(training, labels, batch_size=4)
    """
    check_float(fraction, "fraction", "a fraction above 0 and below 1", lambda number: 0 < number < 1)
    check_int(seed, "seed", 0)
    if stratify and labels is None:
        raise InputError("stratify=True: expected labels, whose classes are to have the same fraction, found none")
    every = kept(ids)
    classes = _keys(labels, every, "labels") if stratify else [None] * len(every)
    owners = list(every) if groups is None else _keys(groups, every, "groups")
    members: dict[Any, Counter[Any]] = defaultdict(Counter)
    for owner, name in zip(owners, classes, strict=True):
        members[owner][name] += 1
    if len(members) < 2:
        what = "ids" if groups is None else "groups"
        raise InputError(f"{what}: expected at least 2, one for each side, found {len(members)}")
    order = sorted(members, key=lambda owner: _hash(owner, seed))
    if groups is None:
        held_out = _held_out(order, {owner: next(iter(members[owner])) for owner in order}, fraction)
    else:
        held_out = _groups_held_out(order, members, fraction)
    sides: tuple[list[Any], list[Any]] = [], []
    for id, owner in zip(every, owners, strict=True):
        sides[owner in held_out].append(id)
    return sides


def _held_out(order: Sequence[Any], class_of: Mapping[Any, Any], fraction: float) -> set[Any]:
    """The first of each class, in this order."""
    by_class: dict[Any, list[Any]] = defaultdict(list)
    for id in order:
        by_class[class_of[id]].append(id)
    found: set[Any] = set()
    for ids in by_class.values():
        found.update(ids[: number_of(len(ids), fraction)])
    return found


def number_of(count: int, fraction: float) -> int:
    """The number of samples to hold out of ``count``: a fraction, rounded, but at least one, and not all."""
    return min(max(int(count * fraction + 0.5), 1), count - 1) if fraction else 0


def _groups_held_out(order: Sequence[Any], members: Mapping[Any, Counter[Any]], fraction: float) -> set[Any]:
    """Groups that together have about the fraction of each class: a group is taken if it brings them nearer to that."""
    total: Counter[Any] = sum(members.values(), Counter())
    missing = {name: count * fraction for name, count in total.items()}
    found: set[Any] = set()
    # Large ones first: small ones fill up the rest.
    for group in sorted(order, key=lambda group: -members[group].total()):
        own = members[group]
        # |missing - own|^2 < |missing|^2, over the classes that the group has
        if sum(own[name] * (2 * missing[name] - own[name]) for name in own) > 0 and len(found) < len(order) - 1:
            found.add(group)
            for name in own:
                missing[name] -= own[name]
    return found or {min(order, key=lambda group: members[group].total())}


def _hash(id: Any, seed: int) -> bytes:
    """A key that sorts ids in random order, the same on all machines."""
    name = id if isinstance(id, bytes) else os.fsencode(id) if isinstance(id, str) else repr(id).encode()
    return blake2b(b"%d/%s" % (seed, name), digest_size=16).digest()


def _keys(values: Any, ids: Sequence[Any], field: str) -> list[Any]:
    """A class, or a group, for each id; a row becomes a tuple, so that it can be compared."""
    found = [_key(value) for value in objects(values_of(values, ids, field))]
    for id, value in zip(ids, found, strict=True):
        if is_missing(value):
            raise InputError(f"id {id!r}, {field}: expected a value, found {value}; leave such ids out, or give them one")
    return found


def _key(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(map(_key, value)) if isinstance(value, list | tuple) else value


def class_weights(
    ids: Iterable[Any],
    labels: Mapping[Any, Any] | Iterable[Any] | Callable[[Any], Any],
    *,
    classes: Iterable[Any] | Literal["sorted"] | None = None,
) -> dict[int, float]:
    """Weights with which each class counts the same: for ``fit(..., class_weight=class_weights(ids, labels))``.

    A class has the weight ``len(ids) / (classes * its ids)``, as scikit-learn's ``"balanced"``; their mean over all ids is 1.

    Args:
        ids: of the samples to train on.
        labels: an int for each id, or a one-hot row, or a name of ``classes``, as a loader takes them.
        classes: the names of classes, as a loader takes them.

    Returns:
        The weight of each class that has ids, by the class's number.

    Raises:
        InputError: an id has no label, or one that is no int and none of ``classes``.

    Examples:
        >>> class_weights(["a", "b", "c", "d"], ["cat", "cat", "cat", "dog"], classes="sorted")
        {0: 0.6666666666666666, 1: 2.0}
    """
    every = kept(ids)
    found = _keys(labels, every, "labels")
    if classes is not None:
        # From the labels of all ids, as in `Values`, so that training and validation have the same.
        is_whole = not callable(labels) or is_mapping(labels)
        names = sorted(set(map(_key, all_of(labels) if is_whole else found))) if classes == "sorted" else list(classes)
        numbers = {name: number for number, name in enumerate(names)}
    counts: Counter[int] = Counter()
    for id, label in zip(every, found, strict=True):
        if classes is not None and label in numbers:
            counts[numbers[label]] += 1
        elif classes is None and isinstance(label, int):
            counts[int(label)] += 1
        elif classes is None and isinstance(label, tuple) and sorted(label) == [*[0] * (len(label) - 1), 1]:
            counts[label.index(1)] += 1
        else:
            expected = f"one of the classes {', '.join(map(repr, names))}" if classes is not None else "an int, or a one-hot row"
            remedy = "; pass classes=[...], or classes='sorted', where these are names" if isinstance(label, str) else ""
            raise InputError(f"id {id!r}, labels: expected {expected}, found {label!r}{remedy}")
    return {number: len(every) / (len(counts) * count) for number, count in sorted(counts.items())}
