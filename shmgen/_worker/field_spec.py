"""What a worker knows of the fields of a batch: where their rows are, and which source fills them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from shmgen._sources.base import Source


class FieldSpec(NamedTuple):
    """Where the rows of one field are, what they are, and how they come from their source.

    Attributes:
        name: of the field.
        shape: of a row.
        dtype: of a row, as text, since most workers need no NumPy.
        offset: where the field begins in a slot, in bytes.
        row_bytes: bytes of a row.
        key: see `RowField`, also for the others.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    row_bytes: int
    key: Hashable | None = None
    measure: str | None = None
    varies: bool = False
    pad_value: float | None = None

    def is_copy_of(self, other: FieldSpec) -> bool:
        """Whether both have the same rows, if their source is the same."""
        return (self.key, self.shape, self.dtype, self.pad_value) == (other.key, other.shape, other.dtype, other.pad_value)


class Reading(NamedTuple):
    """A source, and what it fills when it reads.

    Attributes:
        source: which reads.
        fields: that it fills.
        named: what errors call it.
        is_users: whether code of the user's does the reading.
    """

    source: Source
    fields: tuple[FieldSpec, ...]
    named: str
    is_users: bool


class Step(NamedTuple):
    """What is read one by one.

    Attributes:
        reading: the source, and what it fills.
        keys: what it calls the samples.
        numbers: the rows that it reads; None for all.
    """

    reading: Reading
    keys: Sequence[Any]
    numbers: frozenset[int] | None


class Derived(NamedTuple):
    """Fields that are filled from others, when a sample has been read.

    Attributes:
        copies: fields that have the rows of another.
        measures: fields that say how much of another's row is the sample's.
    """

    copies: tuple[tuple[FieldSpec, FieldSpec], ...]
    measures: tuple[tuple[FieldSpec, FieldSpec], ...]


def readings_of(fields: Sequence[FieldSpec], sources: Mapping[str, Source]) -> tuple[list[Reading], Derived]:
    """What is read to fill ``fields``, each source once, and what is derived from that; without what the main process fills."""
    read: dict[int, list[FieldSpec]] = {}
    copies = []
    for field in fields:
        source = sources[field.name]
        if not source.in_main_process and field.measure is None:
            others = read.setdefault(id(source), [])
            if first := next((other for other in others if field.is_copy_of(other)), None):
                copies.append((field, first))
            else:
                others.append(field)

    def measures() -> Iterator[tuple[FieldSpec, FieldSpec]]:
        for field in fields:
            if field.measure is not None:
                of = read[id(sources[field.name])]
                yield field, next(other for other in of if (other.key, other.pad_value) == (field.key, field.pad_value))

    readings = [
        Reading(
            sources[own[0].name],
            tuple(own),
            f"source of field{'s' if len(own) > 1 else ''} {', '.join(repr(field.name) for field in own)}",
            sources[own[0].name].is_users,
        )
        for own in read.values()
    ]
    return readings, Derived(tuple(copies), tuple(measures()))
