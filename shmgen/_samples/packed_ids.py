"""The ids of all samples in shared memory: the main process packs them once, and workers look up those that they need.

Workers import this module, attach to what was packed, and take ids of it; for none of this they need NumPy.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from types import FunctionType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from shmgen._memory import nameless
from shmgen._memory.limit_errors import FILES, MAPPING, named
from shmgen._memory.limits import available
from shmgen._sources.base import error_text
from shmgen.errors import InputError, printable

if TYPE_CHECKING:
    import numpy as np

BLOCK = 1 << 16
"""How many ids are packed at once: more would take more memory meanwhile, and be no faster."""

WORD_BYTES = 8

RANGE, TEXTS, BYTES, PICKLED = "range", "texts", "bytes", "pickles"
"""How ids are kept; ints that are no range are kept as words of a type that `memoryview.cast` knows by a letter."""

JOINED = TEXTS, BYTES, PICKLED
"""Those that differ in length."""


class PackedIds:
    """The ids of all samples, to be looked up by the number of the sample.

    A range takes no memory; ints take 8 bytes each, or what they take in the array that they came in; texts and bytes their own
    bytes and 8 each; others the bytes of their pickles and 8 each.

    Made by `pack` in the main process. Pickled, it holds all that another process needs but the memory, to which that process
    attaches by an inherited descriptor.

    Attributes:
        fd: descriptor of the memory, which no one can write to any more, to be inherited by workers; -1 where none is needed.
    """

    def __init__(self, kind: str, count: int, numbers: range = range(0), classes: bytes = b"") -> None:
        self.fd = -1
        self._kind = kind
        self._count = count
        self._range = numbers
        self._classes = classes
        self._own: list[Any] | None = None
        # For texts and the like: the position of each one's first byte in the memory, and of the byte behind the last.
        self._words: memoryview | range = numbers
        self._memory: mmap.mmap | bytes = b""

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"{self._count:,} ids, kept as {self._kind}"

    def __reduce__(self) -> Any:
        return type(self), (self._kind, self._count, self._range, self._classes)

    @classmethod
    def pack(cls, ids: Sequence[Any]) -> Self:
        """Pack ``ids``, as `shmgen._samples.ids.kept` makes them.

        Raises:
            InputError: one can't be pickled.
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
        kind = TEXTS if kinds == {str} else BYTES if kinds == {bytes} else PICKLED
        if kind in _PACKERS:
            return cls._written(kind, len(ids), _joined(ids, _PACKERS[kind]))
        pickler = _Pickler()
        packed = cls._written(kind, len(ids), _joined(ids, pickler.pickles))
        try:
            packed._classes = pickler.classes()
        except BaseException:
            packed.close()
            raise
        return packed

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
        """The ids of the samples of these numbers, as they were before they were packed.

        Raises:
            InputError: one can't be unpickled in this process.
        """
        words, memory = self._words, self._memory
        if self._kind not in JOINED:
            return list(map(words.__getitem__, numbers))
        found = [memory[words[number] : words[number + 1]] for number in numbers]
        if self._kind == BYTES:
            return found
        if self._kind == PICKLED:
            return list(map(self._unpickled, found))
        try:
            return list(map(bytes.decode, found))
        except UnicodeDecodeError:  # surrogates, as `os.fsdecode` makes them; to allow for them always would take twice the time
            return [data.decode("utf-8", "surrogatepass") for data in found]

    def _unpickled(self, data: bytes) -> Any:
        try:
            if not self._classes:
                return pickle.loads(data)
            if self._own is None:
                self._own = pickle.loads(self._classes)
            unpickler = _OwnUnpickler(io.BytesIO(data))
            unpickler.own = self._own
            return unpickler.load()
        except Exception as error:
            raise InputError(
                f"an id can't be unpickled in a worker process: {error_text(error)}; pass texts or ints, define the class of the "
                "ids in a module that can be imported, or use workers=0"
            ) from error

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


_PACKERS: dict[str, _Packer] = {TEXTS: _texts, BYTES: _bytes}


class _Pickler:
    """Pickles ids one by one.

    No worker can import what the user's script defines. The classes of it that ids need are pickled apart from them, once.
    """

    def __init__(self) -> None:
        self._own: dict[Any, int] = {}

    def pickles(self, ids: list[Any]) -> tuple[bytes, np.ndarray]:
        return _bytes(list(map(self._pickle, ids)))

    def classes(self) -> bytes:
        """The classes and functions of the script that ids need, in the order of their numbers; empty if there are none."""
        if not self._own:
            return b""
        import cloudpickle

        try:
            return cloudpickle.dumps(list(self._own))  # type: ignore[no-any-return]
        except Exception as error:
            raise _refused("what ids need of the script", error) from error

    def _pickle(self, id: Any) -> bytes:
        try:
            data = pickle.dumps(id, pickle.HIGHEST_PROTOCOL)
            if b"__main__" not in data:
                return data
            buffer = io.BytesIO()
            pickler = _OwnPickler(buffer, pickle.HIGHEST_PROTOCOL)
            pickler.own = self._own
            pickler.dump(id)
            return buffer.getvalue()
        except Exception as error:
            raise _refused(f"id {id!r}", error) from error


class _OwnPickler(pickle.Pickler):
    own: dict[Any, int]

    def persistent_id(self, obj: Any) -> int | None:
        if isinstance(obj, type | FunctionType) and obj.__module__ == "__main__":
            return self.own.setdefault(obj, len(self.own))
        return None


class _OwnUnpickler(pickle.Unpickler):
    own: list[Any]

    def persistent_load(self, pid: Any) -> Any:
        return self.own[pid]


def _refused(what: str, error: Exception) -> InputError:
    return InputError(
        printable(
            f"{what} can't be sent to a worker process: {error_text(error)}; pass ids that can be pickled, such as texts or "
            "ints, or use workers=0"
        )
    )
