"""A worker's status page: shared memory in which it records what it is doing, for the main process to see, also after its death.

Each of the worker's readers has a record on it. A reader takes a ticket by reading it from the queue straight into its record, in
one system call. So a ticket is always in the queue or in the record of a reader, and no death can lose it.
"""

from __future__ import annotations

import mmap
import os

from shmgen._memory import anonymous
from shmgen._memory.records import READERS, TICKET

MAX_READERS = 128
"""The most readers a worker may have. There is one record more: beside other readers, the main thread takes no tickets."""

_HEADER_BYTES = _RECORD_BYTES = 64
RECORDS = 1 + MAX_READERS
PAGE_BYTES = _HEADER_BYTES + RECORDS * _RECORD_BYTES


class StatusPage:
    """A worker's page, in the worker or in the main process; ``fd`` is the descriptor of its memory."""

    def __init__(self, fd: int) -> None:
        self._bytes = memoryview(mmap.mmap(fd, PAGE_BYTES))
        self.words = self._bytes[:_HEADER_BYTES].cast("Q")
        records = [self._bytes[_HEADER_BYTES + n * _RECORD_BYTES :][:_RECORD_BYTES] for n in range(RECORDS)]
        self.tickets = [record[: TICKET.size] for record in records]
        self.records = [record.cast("Q") for record in records]

    @staticmethod
    def create() -> int:
        fd = anonymous.create("shmgen-status")
        try:
            os.posix_fallocate(fd, 0, PAGE_BYTES)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def total(self, word: int) -> int:
        """A word of the records, such as `BUSY`, summed over the readers."""
        return sum(record[word] for record in self.records[: self.words[READERS]])
