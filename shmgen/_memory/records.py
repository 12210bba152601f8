"""The binary layout of all that the main process and the workers write for each other in shared memory and pipes."""

from __future__ import annotations

import struct

EPOCH, POSITION, ROWS, WAITED_FOR, SAMPLES = range(5)
"""The words of a slot's sheet, of 8 bytes each: the epoch, the position of the batch's first row in it, the number of rows, and
whether the main process is to be woken when all rows have been read; then, for each row that has yet to be read, its sample."""

READ_MARK = b"\xff" * 8
"""In a sheet, in place of a sample: the row has been read. It is written after the row."""

TICKET = struct.Struct("<QIIII")
"""A ticket: its number, the slot, the first row, one past the last row, and padding."""

REPORT = struct.Struct("<QIHH")
"""A done ticket: its number, that of the worker, 1 if reads have lately had to wait for a disk or a network, else 0, and the
microseconds it took, at most 0xFFFF."""

READS, EAGER, READERS, USED = range(4)
"""The first words of a worker's status page, of 8 bytes each. The main process sets how many readers there should be, and whether
each ticket that is done wakes it. The worker sets how many records have been used, and for how many nanoseconds it ran, or was
ready to run, before its first ticket."""

LAST_TICKET, _, _, ROW, BUSY, FUNCTION, TURN = range(7)
"""The words of a reader's record on the page: first the `TICKET` that it took last, so its number; then the row that it is at,
as a source marks it; and nanoseconds in which it has had a ticket, in which the user's own functions and sources ran, and in
which it waited for its turn to call them."""
