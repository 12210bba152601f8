"""The labels of all samples, checked before the first batch."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from shmgen._layout import Field
from shmgen.errors import InputError


class Labels:
    """Int labels, or their one-hot rows.

    Args:
        ids: the samples' ids.
        labels: an int for each id.
        n_classes: labels are from 0 to ``n_classes - 1`` and become one-hot float32 rows; None leaves them int64.

    Raises:
        InputError: an id has no label, or one that is no int or outside the classes.
    """

    def __init__(self, ids: Sequence[object], labels: Mapping[object, int], n_classes: int | None) -> None:
        self._values = np.fromiter(_checked(ids, labels, n_classes), np.int64, len(ids))
        self._n_classes = n_classes
        self.field = Field("y", (), np.dtype(np.int64)) if n_classes is None else Field("y", (n_classes,), np.dtype(np.float32))

    def fill(self, samples: np.ndarray, rows: np.ndarray) -> None:
        """Write the labels of ``samples``, numbers of samples, into ``rows``."""
        if self._n_classes is None:
            np.take(self._values, samples, out=rows)
        else:
            rows[:] = 0
            rows[np.arange(len(samples)), self._values[samples]] = 1


def _checked(ids: Sequence[object], labels: Mapping[object, int], n_classes: int | None) -> Iterator[int]:
    lowest, highest = (-(2**63), 2**63 - 1) if n_classes is None else (0, n_classes - 1)
    for id in ids:
        try:
            label = labels[id]
        except (LookupError, TypeError):
            raise InputError(f"id {id!r} has no label; labels must have one for each of the {len(ids):,} ids") from None
        try:
            value = operator.index(label)
        except TypeError:
            raise InputError(
                f"id {id!r} has the label {label!r} of type {type(label).__name__}, expected an int; convert it if it is one"
            ) from None
        if not lowest <= value <= highest:
            raise InputError(f"id {id!r} has the label {value}, expected one from {lowest} to {highest}")
        yield value
