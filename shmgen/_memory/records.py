"""The layout of what the main process and workers write into shared memory for each other; without NumPy, for lean workers."""

from __future__ import annotations

EPOCH, POSITION, ROWS, WAITED_FOR, SAMPLES = range(5)
"""The words of a slot's sheet, of 8 bytes each: the epoch, the position of the batch's first row in it, the number of rows, and
whether the main process is to be woken when all of them have been read; then the sample of each row that is yet to be read."""

READ = b"\xff" * 8
"""In a sheet, in place of a sample: the row has been read. It is written after the row is."""
