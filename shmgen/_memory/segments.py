"""The ring's memory as the main process or a worker maps it: slots of a file, in mappings that stay where they are."""

from __future__ import annotations

import mmap
import os
import threading

from shmgen._memory.limit_errors import named


class Segments:
    """The slots of a file of shared memory, which may grow. The file's owner keeps ``fd`` open until `close`."""

    def __init__(self, fd: int, slot_bytes: int) -> None:
        self._fd = fd
        self._slot_bytes = slot_bytes
        self.mapped: list[memoryview] = []  # the bytes of each slot
        self._mapping = threading.Lock()
        self.map_new()

    def __len__(self) -> int:
        return len(self.mapped)

    def __getitem__(self, slot: int) -> memoryview:
        """The bytes of a slot, to read and write. If the slot lies in what the file has grown by, that is mapped first."""
        if slot >= len(self.mapped):
            self.map_new()
        return self.mapped[slot]

    def map_new(self) -> None:
        """Map what the file has grown by."""
        with self._mapping, named():  # two threads at once would both add the same slots
            begin = len(self.mapped) * self._slot_bytes
            length = os.fstat(self._fd).st_size - begin
            if length > 0:
                segment = memoryview(mmap.mmap(self._fd, length, offset=begin))
                self.mapped += [segment[start : start + self._slot_bytes] for start in range(0, length, self._slot_bytes)]

    def close(self) -> None:
        """Let go of the memory. What views of a slot still show stays mapped until they are gone."""
        self._fd = -1
        self.mapped.clear()
