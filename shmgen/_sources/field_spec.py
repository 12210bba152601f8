"""The fields of a batch, as a worker knows them: where their rows are, and which reader fills them.

A worker imports this module, so it does without NumPy.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from shmgen._sources.base import Measure, Reader


class FieldSpec(NamedTuple):
    """Where the rows of one field are, what they are, and how they come from their reader.

    Attributes:
        name: of the field.
        shape: of a row.
        dtype: of a row, as text, since most workers need no NumPy.
        offset: where the field begins in a slot, in bytes.
        row_bytes: bytes of a row.
        key: of the field in its reader; None if that has only one.
        measure: what is measured of the rows of another field; None for a field that is no such measure.
        varies: whether samples may have other shapes than a row.
        pad_value: what fills the rest of a row where a sample is smaller; None if that is an error.
        of: the name of the field that this one measures, or has a copy of; None for a field that is read.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    row_bytes: int
    key: Hashable | None = None
    measure: Measure | None = None
    varies: bool = False
    pad_value: float | None = None
    of: str | None = None


class Reading(NamedTuple):
    """A reader, and what it fills when it reads.

    Attributes:
        reader: which reads.
        fields: that it fills.
        named: what errors call it.
        table: the number of the table in which its keys are; 0, that of the ids, if it has no keys of its own.
    """

    reader: Reader
    fields: tuple[FieldSpec, ...]
    named: str
    table: int = 0

    @property
    def varies(self) -> bool:
        """Whether samples may have other shapes than their rows."""
        return any(field.varies for field in self.fields)


def readings_of(fields: Sequence[FieldSpec], readers: Mapping[str, Reader]) -> list[Reading]:
    """What is read to fill ``fields``, each reader once; without what the main process fills.

    Args:
        fields: of a batch.
        readers: by name of the field.
    """
    read: dict[int, list[FieldSpec]] = {}
    for field in fields:
        if field.of is None and not readers[field.name].in_main_process:
            read.setdefault(id(readers[field.name]), []).append(field)
    readings: list[Reading] = []
    table = 0
    for own in read.values():
        reader = readers[own[0].name]
        named = f"source of field{'s' if len(own) > 1 else ''} {', '.join(repr(field.name) for field in own)}"
        table += reader.keys is not None
        readings.append(Reading(reader, tuple(own), named, table if reader.keys is not None else 0))
    return readings


def key_tables(ids: Sequence[Any], readings: Sequence[Reading]) -> list[Sequence[Any]]:
    """What samples are called where rows are filled: their ids first, then the keys of readers that have keys of their own."""
    from shmgen._samples.ids import kept

    return [ids, *(kept(keys) for reading in readings if (keys := reading.reader.keys) is not None)]
