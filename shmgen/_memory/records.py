"""The binary layout of sheets in slots, by which the main process tells workers what to read; without NumPy, for lean workers."""

from __future__ import annotations

EPOCH, POSITION, ROWS, WAITED_FOR, SAMPLES = range(5)
"""The words of a slot's sheet, of 8 bytes each: the epoch, the position of the batch's first row in it, the number of rows, and
whether the main process is to be woken when all rows have been read; then, for each row that has yet to be read, its sample."""

READ = b"\xff" * 8
"""In a sheet, in place of a sample: the row has been read. It is written after the row."""
