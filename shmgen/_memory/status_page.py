"""The status page: shared memory in which each worker records what it is doing.

It is the first page of the ring's segment. Each worker has a record of a few words of 8 bytes of its own there.
"""

from __future__ import annotations

STATUS_PAGE_BYTES = 4096

ROW, BUSY, USED = range(3)
"""The words of a record: the row that the worker is at, as a source says it; nanoseconds in which it has had a task; and those in
which it had or wanted a processor before its first task."""

RECORD_WORDS = 4
"""So many words a record has."""
