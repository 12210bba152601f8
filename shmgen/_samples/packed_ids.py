"""The ids of all samples in shared memory: the main process packs them once, and workers look up those of their rows."""

from __future__ import annotations

import errno
import marshal
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Self, TypeAlias

from shmgen._memory import anonymous
from shmgen._memory.limit_errors import named
from shmgen._memory.limits import available

WORD_BYTES = 8

TEXTS, MIXED = "texts", "mixed"
"""Formats of ids; that of ints is the letter that `memoryview.cast` has for their type. A range is kept as it is."""


class PackedIds:
    """The ids of all samples, to be looked up by the number of the sample.

    A range takes no memory. An int takes 8 bytes, or those of its array's dtype; a text takes its own in UTF-8, and 8 more.
    Others, such as bytes, ids of several types, and ints beyond int64, are marshalled, and take up to 13 more than their own.
    """

    def __init__(self, kind: str | range, count: int) -> None:
        self.fd = -1  # descriptor of the memory; -1 if there is none
        self._kind = kind
        self._count = count
        # The ids if all are ints; else the position of the first byte of each, and of the byte behind the last.
        self._words: memoryview | range = kind if isinstance(kind, range) else range(0)
        self._memory: mmap.mmap | bytes = b""

    def __len__(self) -> int:
        return self._count

    def __reduce__(self) -> Any:
        return type(self), (self._kind, self._count)

    @classmethod
    def pack(cls, ids: Sequence[Any]) -> Self:
        """Pack ``ids``, as `shmgen._samples.ids.kept` makes them; raises OSError if there is not enough memory."""
        import numpy as np

        from shmgen._samples.ids import as_ints

        if isinstance(ids, range) or not len(ids):
            return cls(ids if isinstance(ids, range) else range(0), len(ids))
        numbers = as_ints(ids)
        if isinstance(numbers, np.ndarray) and numbers.dtype.kind != "O":
            native = np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("="))
            return cls._written(native.dtype.char, len(ids), [(b"", native.data.cast("B"))])
        if set(map(type, ids)) == {str}:
            with suppress(UnicodeEncodeError):  # of surrogates, such as `os.fsdecode` makes
                return cls._written(TEXTS, len(ids), _joined(ids, str.encode))
        return cls._written(MIXED, len(ids), _joined(ids, marshal.dumps))

    @classmethod
    def _written(cls, kind: str, count: int, blocks: Iterable[_Block]) -> Self:
        packed = cls(kind, count)
        try:
            with named():
                packed.fd = anonymous.create("shmgen-ids")
                place, behind = 0, (count + 1) * WORD_BYTES
                for data, words in blocks:
                    behind += _write(packed.fd, data, behind)
                    place += _write(packed.fd, words, place)
                packed.attach(packed.fd)
        except BaseException:
            packed.close()
            raise
        return packed

    def attach(self, fd: int) -> None:
        """Map the memory behind the descriptor ``fd``, which may be closed afterwards."""
        if isinstance(self._kind, range):
            return
        with named():
            self._memory = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        if self._kind in (TEXTS, MIXED):
            self._words = memoryview(self._memory)[: (self._count + 1) * WORD_BYTES].cast("q")
        else:
            self._words = memoryview(self._memory).cast(self._kind)  # type: ignore[call-overload]

    def take(self, numbers: Sequence[int]) -> Sequence[Any]:
        """The ids of the samples of these numbers; where ids are 0, 1, 2, and so on, these are ``numbers`` as they are."""
        words, memory = self._words, self._memory
        if isinstance(words, range):
            return numbers if (words.start, words.step) == (0, 1) else [words[number] for number in numbers]
        if self._kind not in (TEXTS, MIXED):
            return list(map(words.__getitem__, numbers))
        found = [memory[words[number] : words[number + 1]] for number in numbers]
        if self._kind == MIXED:
            return list(map(marshal.loads, found))
        return list(map(bytes.decode, found))

    def close(self) -> None:
        """Release the descriptor and the memory; may be called again."""
        self._words, self._memory = range(0), b""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


_Block: TypeAlias = "tuple[bytes, bytes | memoryview]"
"""The bytes of some ids, and their words; ints have words only."""


def _write(fd: int, data: bytes | memoryview, place: int) -> int:
    """Write all of ``data``, and return its length."""
    if not data:
        return 0
    if len(data) > available():  # the kernel would not refuse, but kill a process later
        found = f"{available():,} bytes of memory are available: pass shorter ids, or a range or an array of ints"
        raise OSError(errno.ENOMEM, f"{place + len(data):,} bytes of shared memory are needed for the ids, or more, and {found}")
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, place)
        left, place = left[written:], place + written
    return len(data)


def _joined(ids: Sequence[Any], encoded: Callable[[Any], bytes]) -> Iterator[_Block]:
    import numpy as np

    from shmgen._samples.ids import blocks

    place = (len(ids) + 1) * WORD_BYTES
    yield b"", place.to_bytes(WORD_BYTES, "little")
    for block in blocks(ids):
        parts = list(map(encoded, block))
        ends = place + np.cumsum(list(map(len, parts)))
        yield b"".join(parts), ends.tobytes()
        place = int(ends[-1])
