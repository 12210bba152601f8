"""The ids of all samples in shared memory: the main process packs them once, and workers look up those that they need.

Workers import this module, attach to what was packed, and take ids of it; for none of this they need NumPy.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from shmgen._memory import nameless
from shmgen._memory.limit_errors import FILES, MAPPING, named
from shmgen._memory.limits import available

if TYPE_CHECKING:
    import numpy as np

BLOCK = 1 << 16
"""How many ids are packed at once: more would take more memory meanwhile, and be no faster."""

WORD_BYTES = 8

RANGE, TEXTS, BYTES, MIXED = "range", "texts", "bytes", "mixed"
"""How ids are kept; ints that are no range are kept as words of a type that `memoryview.cast` knows by a letter."""

JOINED = TEXTS, BYTES, MIXED
"""Those that differ in length."""


class PackedIds:
    """The ids of all samples, to be looked up by the number of the sample.

    A range takes no memory; ints take 8 bytes each, or what they take in the array that they came in; texts and bytes their own
    bytes and 8 each. Where ids are of several types, or ints of more than 64 bits, each has a byte more that says its type.

    Made by `pack` in the main process. Pickled, it holds all that another process needs but the memory, to which that process
    attaches by an inherited descriptor.

    Attributes:
        fd: descriptor of the memory, which is sealed against writing, to be inherited by workers; -1 where none is needed.
    """

    def __init__(self, kind: str, count: int, numbers: range = range(0)) -> None:
        self.fd = -1
        self._kind = kind
        self._count = count
        self._range = numbers
        # For texts and the like: the position of each one's first byte in the memory, and of the byte behind the last.
        self._words: memoryview | range = numbers
        self._memory: mmap.mmap | bytes = b""

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"{self._count:,} ids, kept as {self._kind}"

    def __reduce__(self) -> Any:
        return type(self), (self._kind, self._count, self._range)

    @classmethod
    def pack(cls, ids: Sequence[Any]) -> Self:
        """Pack ``ids``, as `shmgen._samples.ids.kept` makes them.

        Raises:
            OSError: there is not enough memory.
        """
        import numpy as np

        from shmgen._samples.ids import int_array

        if isinstance(ids, range) or not len(ids):
            return cls(RANGE, len(ids), ids if isinstance(ids, range) else range(0))
        array = int_array(ids)
        if array is not None:
            native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
            return cls._written(native.dtype.char, len(ids), [(b"", native.data.cast("B"))])
        kinds = set(map(type, chain.from_iterable(_blocks(ids))))
        if kinds == {int}:
            for letter in "qQ":
                with suppress(OverflowError):
                    return cls._written(letter, len(ids), _words(ids, letter))
        kind = TEXTS if kinds == {str} else BYTES if kinds == {bytes} else MIXED
        return cls._written(kind, len(ids), _joined(ids, _PACKERS[kind]))

    @classmethod
    def _written(cls, kind: str, count: int, blocks: Iterable[_Block]) -> Self:
        packed = cls(kind, count)
        with named((*FILES, errno.EFBIG)):
            packed.fd = nameless.create("shmgen-ids", sealable=True)
        try:
            place, behind = 0, (count + 1) * WORD_BYTES
            for data, words in blocks:
                behind += _write(packed.fd, data, behind)
                place += _write(packed.fd, words, place)
            nameless.seal(packed.fd)
            packed.attach(packed.fd)
        except BaseException:
            packed.close()
            raise
        return packed

    def attach(self, fd: int) -> None:
        """Map the memory of the one that was pickled; ``fd``, its descriptor, is needed no longer afterwards.

        Args:
            fd: ignored where there is no memory.
        """
        if self._kind == RANGE:
            return
        with named(MAPPING):
            # Shared all the same, as long as nobody writes. Before Linux 6.7, what is sealed could not be mapped as MAP_SHARED.
            self._memory = mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
        if self._kind in JOINED:
            self._words = memoryview(self._memory)[: (self._count + 1) * WORD_BYTES].cast("q")
        else:
            self._words = memoryview(self._memory).cast(self._kind)  # type: ignore[call-overload]

    def take(self, numbers: Iterable[int]) -> list[Any]:
        """The ids of the samples of these numbers, as they were before they were packed."""
        words, memory = self._words, self._memory
        if self._kind not in JOINED:
            return list(map(words.__getitem__, numbers))
        found = [memory[words[number] : words[number + 1]] for number in numbers]
        if self._kind == BYTES:
            return found
        if self._kind == MIXED:
            return list(map(_untagged, found))
        try:
            return list(map(bytes.decode, found))
        except UnicodeDecodeError:  # surrogates, as `os.fsdecode` makes them; to allow for them always would take twice the time
            return [data.decode("utf-8", "surrogatepass") for data in found]

    def close(self) -> None:
        """Release the descriptor and the memory; may be called again."""
        self._words, self._memory = range(0), b""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


_Block: TypeAlias = "tuple[bytes, bytes | memoryview]"
"""The bytes of some ids, and their words; of ints, all is in the words."""

_Packer: TypeAlias = Callable[[list[Any]], "tuple[bytes, np.ndarray]"]
"""Joins ids into one run of bytes, and says how many each has."""


def _write(fd: int, data: bytes | memoryview, place: int) -> int:
    """Write all of ``data``, and return how much it is."""
    if not data:
        return 0
    if len(data) > available():  # the kernel would kill a process rather than refuse
        raise OSError(
            errno.ENOMEM,
            f"{place + len(data):,} bytes of shared memory are needed for the ids, or more, and {available():,} bytes of memory "
            "are available: pass shorter ids, or a range or an array of ints",
        )
    left = memoryview(data)
    with named((errno.EFBIG,)):
        while left:
            written = os.pwrite(fd, left, place)
            left, place = left[written:], place + written
    return len(data)


def _words(ids: Sequence[int], letter: str) -> Iterator[_Block]:
    from array import array

    for block in _blocks(ids):
        yield b"", array(letter, block).tobytes()


def _joined(ids: Sequence[Any], pack: _Packer) -> Iterator[_Block]:
    import numpy as np

    place = (len(ids) + 1) * WORD_BYTES
    yield b"", place.to_bytes(WORD_BYTES, "little")
    for block in _blocks(ids):
        data, sizes = pack(block)
        yield data, (place + np.cumsum(sizes)).tobytes()
        place += len(data)


def _blocks(ids: Sequence[Any]) -> Iterator[list[Any]]:
    """All ids, a block at a time."""
    import numpy as np

    from shmgen._samples.ids import take

    for first in range(0, len(ids), BLOCK):
        last = min(first + BLOCK, len(ids))
        yield ids[first:last] if isinstance(ids, list) else take(ids, np.arange(first, last))


def _sizes(things: list[Any]) -> np.ndarray:
    import numpy as np

    return np.fromiter(map(len, things), np.int64, len(things))


def _texts(ids: list[str]) -> tuple[bytes, np.ndarray]:
    together = "".join(ids)
    if together.isascii():
        return together.encode(), _sizes(ids)
    return _bytes([id.encode("utf-8", "surrogatepass") for id in ids])


def _bytes(ids: list[bytes]) -> tuple[bytes, np.ndarray]:
    return b"".join(ids), _sizes(ids)


def _mixed(ids: list[str | bytes | int]) -> tuple[bytes, np.ndarray]:
    return _bytes(list(map(_tagged, ids)))


_PACKERS: dict[str, _Packer] = {TEXTS: _texts, BYTES: _bytes, MIXED: _mixed}


def _tagged(id: str | bytes | int) -> bytes:
    """An id as bytes, the first of which says its type."""
    if isinstance(id, str):
        return b"s" + id.encode("utf-8", "surrogatepass")
    return b"b" + id if isinstance(id, bytes) else b"i%x" % id


def _untagged(data: bytes) -> str | bytes | int:
    if data[:1] == b"s":
        return data[1:].decode("utf-8", "surrogatepass")
    return data[1:] if data[:1] == b"b" else int(data[1:], 16)
