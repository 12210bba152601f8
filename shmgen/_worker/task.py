"""A ticket as its reader sees it: rows of the batch in a slot, and the samples that belong there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Task:
    """Rows of the batch in a slot, from row ``start`` on.

    Args:
        position: of the first row in the epoch.
        samples: of the rows: positions in the list of ids; where they lie in a slot's sheet, as long as the rows are not marked.
        tables: for each of `key_tables`, a function that looks samples up in it.
    """

    __slots__ = "_found", "_samples", "_tables", "epoch", "position", "start"

    def __init__(
        self, start: int, epoch: int, position: int, samples: Any, tables: Sequence[Callable[[Any], Sequence[Any]]]
    ) -> None:
        self.start = start
        self.epoch = epoch
        self.position = position
        self._samples = samples
        self._tables = tables
        self._found: dict[int, Sequence[Any]] = {}

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def ids(self) -> Sequence[Any]:
        return self.keys(0)

    def keys(self, table: int) -> Sequence[Any]:
        """The keys of the rows in a table. They are looked up when first asked for, since making texts takes time."""
        if table not in self._found:
            self._found[table] = self._tables[table](self._samples)
        return self._found[table]
