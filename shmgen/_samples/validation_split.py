"""`split` holds some of the ids out for validation."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from shmgen._checks import check_float, check_int
from shmgen._samples.ids import is_missing, kept, objects
from shmgen._samples.lookup import Lookup, is_mapping
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
    pairs = zip(owners, classes, strict=True)
    for owner, name in dict(pairs).items() if groups is None else pairs:
        members[owner][name] += 1
    if len(members) < 2:
        raise InputError(f"{'ids' if groups is None else 'groups'}: expected at least 2, one for each side, found {len(members)}")
    held_out = _held_out(sorted(members, key=lambda owner: _hash(owner, seed)), members, fraction)
    sides: tuple[list[Any], list[Any]] = [], []
    for id, owner in zip(every, owners, strict=True):
        sides[owner in held_out].append(id)
    return sides


def _held_out(order: Sequence[Any], members: Mapping[Any, Counter[Any]], fraction: float) -> set[Any]:
    """Groups that together have about the fraction of each class: a group is taken if it brings them nearer to that.

    ``order`` is by chance; ``members`` counts the ids of each class in a group. At least one group is held out, and not all.
    """
    total: Counter[Any] = Counter()
    for own in members.values():
        total.update(own)
    missing = {name: min(max(int(count * fraction + 0.5), 1), count - 1) for name, count in total.items()}
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
    if hasattr(values, "aligned"):  # as `Values` has
        column = values.aligned(ids, field)
    elif callable(values) and not is_mapping(values):
        column = list(map(values, ids))
    else:
        column = Lookup(ids, field, None).aligned(values)
    found = [_key(value) for value in objects(column)]
    for id, value in zip(ids, found, strict=True):
        if is_missing(value):
            raise InputError(f"id {id!r}, {field}: expected a value, found {value}; leave such ids out, or give them one")
    return found


def _key(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(map(_key, value)) if isinstance(value, list | tuple) else value
