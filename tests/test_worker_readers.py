"""A worker's readers as the main process sees them: they take tickets from a pipe, fill slots, and record their position."""

from __future__ import annotations

import mmap
import os
import pickle
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
from conftest import ROOT, wait_until

from shmgen import Npy, SampleError, Source
from shmgen._memory.records import BUSY, EAGER, LAST_TICKET, READERS, READS, REPORT, ROW, TICKET
from shmgen._memory.segments import Segments
from shmgen._memory.status_page import MAX_READERS, StatusPage
from shmgen._samples.packed_ids import PackedIds
from shmgen._sources.base import IDLE, UNKNOWN
from shmgen._sources.fields import FieldSpec, readings_of
from shmgen._worker.protocol import FAILED, LOGGED, UNABLE
from shmgen._worker.reader_threads import LONG, SELDOM, Descriptors, Readers
from shmgen._worker.rng import own_random_state
from shmgen._worker.ticket_filler import TicketFiller
from shmgen._worker.transform import Transform

ROWS = 128
"""Rows of a batch, each of two float64."""

SLOTS = 4

SHEET = ROWS * 16
"""Offset of the sheet in a slot, in bytes."""

SAMPLES = 1000

TICKETS, MOST_FILES = 20, 6
"""Number of tickets to read, and the most files of the package whose code may run for each."""

WITHIN = 20.0
"""Seconds after which a read that waits for another thread gives up."""


class Called(Source):
    """A source that calls a function with the id, and then fills the row with the id."""

    shape, dtype = (2,), "f8"
    concurrent = True

    def __init__(self, function: Callable[[int], object] = id, opens: Callable[[], object] | None = None) -> None:
        self._function = function
        self._opens = opens

    def open(self) -> None:
        if self._opens is not None:
            self._opens()

    def read(self, id: Any, row: np.ndarray) -> None:
        self._function(id)
        row[:] = id


class Worker:
    """The readers of a worker, in threads of this process, and the other ends of its pipes."""

    def __init__(self, source: Source, reads: int, transform: Callable[..., Any] | None = None) -> None:
        self.queue_out, self.queue = os.pipe()
        self.reports, self._reports_in = os.pipe()
        os.set_blocking(self.reports, False)
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.ring = os.memfd_create("test-ring")
        os.ftruncate(self.ring, SLOTS * mmap.PAGESIZE)
        self.segments = Segments(self.ring, mmap.PAGESIZE)
        fd = StatusPage.create()
        self.page = StatusPage(fd)
        os.close(fd)
        self.page.words[READS], self.page.words[READERS] = reads, 1
        field = FieldSpec("X", (2,), "<f8", 0, 16)
        readings = readings_of([field], {"X": source.bind(range(SAMPLES))})
        filler = TicketFiller([field], readings, SHEET, 0, {} if transform is None else {None: Transform(transform)})
        self.messages: list[bytes] = []
        self.hears = True
        before = set(threading.enumerate())
        fds = Descriptors(self.ring, -1, self.queue_out, self._reports_in, self.bell)
        readers = Readers(7, fds, self.segments, [PackedIds.pack(range(SAMPLES))], self.page, filler, self._send)
        first = readers.opened(0)
        self._main = threading.Thread(target=readers.run, args=(first,), daemon=True)
        self._main.start()
        self._others = before
        self._last_id = 0
        self._done: list[int] = []

    def _send(self, message: bytes) -> bool:
        self.messages.append(message)
        return self.hears

    @property
    def main(self) -> int | None:
        """The `threading.get_ident` of its first reader."""
        return self._main.ident

    @property
    def ended(self) -> bool:
        """Whether the first reader has ended."""
        return not self._main.is_alive()

    @property
    def threads(self) -> int:
        """The number of readers."""
        return len(set(threading.enumerate()) - self._others)

    def sheet(self, slot: int, samples: Sequence[int], *, epoch: int = 0, waits: bool = True) -> None:
        """Write the sheet of a slot: the samples to read into it."""
        words = np.array([epoch, samples[0], len(samples), waits, *samples], np.int64)
        self.segments[slot][SHEET : SHEET + words.nbytes] = words.view(np.uint8).data

    def put(self, slot: int, start: int, stop: int) -> int:
        """Put a ticket into the queue, and return its number."""
        self._last_id += 1
        os.write(self.queue, TICKET.pack(self._last_id, slot, start, stop, 0))
        return self._last_id

    def rows(self, slot: int) -> list[float]:
        """The number that fills each row of a slot."""
        rows = np.frombuffer(self.segments[slot], "<f8", 2 * ROWS).reshape(ROWS, 2)
        assert (rows[:, 0] == rows[:, 1]).all()
        return rows[:, 0].tolist()

    @property
    def rings(self) -> int:
        """How often the bell has rung since the last call."""
        try:
            return os.eventfd_read(self.bell)
        except BlockingIOError:
            return 0

    @property
    def done(self) -> list[int]:
        """The numbers of tickets reported as done, in order."""
        try:
            while data := os.read(self.reports, 1 << 16):
                assert len(data) % REPORT.size == 0
                for id, worker, waits, _ in REPORT.iter_unpack(data):
                    assert worker == 7
                    assert waits in (0, 1)
                    self._done.append(id)
        except BlockingIOError:
            pass
        return self._done

    def until_done(self, ids: Sequence[int]) -> None:
        """Return once these tickets were reported as done."""
        wait_until(lambda: set(ids) <= set(self.done), f"tickets {ids} are done")

    def close(self) -> None:
        os.close(self.queue)
        wait_until(lambda: not self.threads, "all readers have ended")
        self.segments.close()
        for fd in (self.queue_out, self.reports, self._reports_in, self.bell, self.ring):
            os.close(fd)


@pytest.fixture
def worker() -> Iterator[Callable[..., Worker]]:
    """A function that makes a `Worker`, which is closed after the test."""
    made: list[Worker] = []

    def make(*args: Any, **options: Any) -> Worker:
        made.append(Worker(*args, **options))
        return made[-1]

    with own_random_state():
        yield make
        while made:
            made.pop().close()


def met(count: int) -> Callable[[object], object]:
    """A function that returns once ``count`` threads have called it."""
    barrier = threading.Barrier(count)
    return lambda _: barrier.wait(WITHIN)


@pytest.mark.parametrize("reads", [1, 2, 8, MAX_READERS])
def test_all_readers_read_at_once(worker: Callable[..., Worker], reads: int) -> None:
    """All readers read at once (each waits for all the others), and rows are the samples of the sheet."""
    one = worker(Called(met(reads)), reads)
    for _ in range(3):
        one.sheet(2, range(100, 100 + ROWS))
        one.until_done([one.put(2, n, n + 1) for n in range(reads)])
    assert one.rows(2)[:reads] == [100 + n for n in range(reads)]
    assert one.threads == one.page.words[READERS] == reads
    assert len(one.done) == 3 * reads
    assert one.messages == []


def test_a_ticket_runs_code_of_few_files(worker: Callable[..., Worker], tmp_path: Path) -> None:
    """In steady state, a ticket of `.npy` files runs code of at most `MOST_FILES` files of the package."""
    for number in range(8):
        np.save(tmp_path / f"{number}.npy", np.full(2, number, np.float64))
    calls: Counter[str] = Counter()
    threading.setprofile(lambda frame, event, _: calls.update([frame.f_code.co_filename] if event == "call" else []))
    try:
        one = worker(Npy(tmp_path), 1)
    finally:
        threading.setprofile(None)
    for _ in range(TICKETS):
        one.sheet(0, range(8))
        one.until_done([one.put(0, 0, 8)])
    assert one.rows(0)[:8] == list(range(8))
    often = [file for file, times in calls.items() if file.startswith(str(ROOT / "shmgen")) and times >= TICKETS]
    assert 3 <= len(often) <= MOST_FILES, often


def test_readers_are_added_and_removed(worker: Callable[..., Worker]) -> None:
    """If more readers are wanted, they begin after the next ticket; if fewer, surplus ones end after one more ticket each."""
    flight = threading.Semaphore(0)
    inside: set[int] = set()
    lock = threading.Lock()

    def function(_: int) -> None:
        with lock:
            inside.add(threading.get_ident())
        assert flight.acquire(timeout=WITHIN)
        with lock:
            inside.discard(threading.get_ident())

    one = worker(Called(function), 1)
    chance = random.Random(0)
    for reads in (3, 1, 8, 2, 5, 1, chance.randint(1, 9), chance.randint(1, 9)):
        one.page.words[READS] = reads
        one.sheet(0, range(ROWS))
        # One ticket after another, so that each surplus reader gets one more.
        for row in range(20):
            id = one.put(0, row, row + 1)
            wait_until(lambda: inside, "a reader reads")
            flight.release()
            one.until_done([id])
        wait_until(lambda reads=reads: one.threads == reads, f"there are {reads} readers")
        ids = [one.put(0, 20 + n, 21 + n) for n in range(2 * reads)]
        wait_until(lambda reads=reads: len(inside) == reads, f"{reads} reads are in flight")
        for _ in ids:
            flight.release()
        one.until_done(ids)
    assert one.messages == []


def test_the_first_reader_ends_after_its_ticket(worker: Callable[..., Worker]) -> None:
    """If no reader is wanted, the first one, the main thread, ends after its ticket is done."""
    one = worker(Called(), 1)
    one.sheet(0, range(8))
    one.page.words[READS] = 0
    id = one.put(0, 0, 1)
    one.until_done([id])
    wait_until(lambda: one.ended, "the reader has ended")
    one.put(0, 0, 1)
    assert one.done == [id]


@pytest.mark.parametrize("reason", ["open", "thread"])
def test_a_reader_that_fails_to_start(worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """If a further reader can't be opened or its thread not started, that is logged once; the other readers do the work."""
    opened = []

    def opens() -> None:
        opened.append(True)
        if len(opened) in (3, 4):
            raise OSError("too many connections")

    one = worker(Called(opens=opens if reason == "open" else None), 1)
    one.sheet(0, range(ROWS))
    one.until_done([one.put(0, 0, 8)])
    start = threading.Thread.start
    began = []

    def begins(thread: threading.Thread) -> None:
        began.append(thread)
        if len(began) in (2, 3):
            raise RuntimeError("can't start new thread")
        start(thread)

    if reason == "thread":
        monkeypatch.setattr(threading.Thread, "start", begins)
    one.page.words[READS] = 5
    ids = [one.put(0, row, row + 1) for row in range(8, 108)]
    one.until_done(ids)
    wait_until(lambda: len(one.messages) == 2, "both failures are logged")
    assert one.threads == 3
    for message in one.messages:
        assert message[:1] == LOGGED
        record = pickle.loads(message[1:])
        assert record["levelname"] == "WARNING"
        text = "too many connections" if reason == "open" else "can't start new thread"
        assert record["msg"].startswith("worker 7 has fewer reads in flight than are wanted: ")
        assert text in record["msg"]
    assert len(opened) == (5 if reason == "open" else 0)


def test_a_readers_record_has_its_ticket_and_row(worker: Callable[..., Worker]) -> None:
    """Each reader records its ticket and row while it reads, then that it is idle; its busy time grows."""
    go = [threading.Event() for _ in range(8)]
    one = worker(Called(lambda id: go[id].wait(WITHIN)), 2)
    one.sheet(0, range(8))
    first, second = one.put(0, 0, 3), one.put(0, 3, 8)

    def at() -> dict[int, int]:
        return {record[LAST_TICKET]: record[ROW] for record in one.page.records[: one.page.words[READERS]]}

    rows = {first: 1, second: 1}
    wait_until(lambda: at() == rows, "both readers are at their first row")
    for sample in (0, 3, 4, 1, 5, 2, 6, 7):
        go[sample].set()
        ticket, last = (first, 3) if sample < 3 else (second, 5)
        rows[ticket] = IDLE if rows[ticket] == last else rows[ticket] + 1
        wait_until(lambda: at() == rows, f"they are at {rows}")
    one.until_done([first, second])
    assert all(record[BUSY] > 0 for record in one.page.records[:2])
    assert one.page.total(BUSY) == sum(record[BUSY] for record in one.page.records)


def test_a_fill_of_many_rows_records_an_unknown_row(worker: Callable[..., Worker]) -> None:
    """A source that fills many rows in one call records its ticket, so a hang is noticed, but an unknown row."""
    go, there = threading.Semaphore(0), threading.Semaphore(0)

    class Filling(Called):
        def fill(self, ids: Any, rows: np.ndarray) -> None:
            there.release()
            assert go.acquire(timeout=WITHIN)
            rows[:] = np.array(ids)[:, None]

    one = worker(Filling(), 1)
    one.sheet(0, range(8))
    id = one.put(0, 0, 8)
    assert there.acquire(timeout=WITHIN)
    assert one.page.records[0][LAST_TICKET] == id
    assert one.page.records[0][ROW] == UNKNOWN
    go.release()
    one.until_done([id])
    assert one.rows(0)[:8] == list(range(8))
    wait_until(lambda: one.page.records[0][ROW] == IDLE, "the reader is idle")


def test_functions_are_called_one_at_a_time(worker: Callable[..., Worker]) -> None:
    """One reader at a time calls functions; those that wait for their turn count as idle, so no hang is blamed on them."""
    inside, most = [], []
    go, there = threading.Semaphore(0), threading.Semaphore(0)

    def transform(sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        inside.append(True)
        most.append(len(inside))
        there.release()
        assert go.acquire(timeout=WITHIN)
        inside.pop()

    one = worker(Called(met(4)), 4, transform)
    one.sheet(0, range(8))
    ids = [one.put(0, n, n + 1) for n in range(4)]
    for waiting in (3, 2, 1, 0):
        assert there.acquire(timeout=WITHIN)
        undone = [record for record in one.page.records[1:5] if record[LAST_TICKET] not in one.done]
        wait_until(
            lambda waiting=waiting, undone=undone: [record[ROW] for record in undone].count(IDLE) >= waiting, "the others wait"
        )
        assert sum(record[ROW] == 1 for record in one.page.records[1:5]) == 1
        go.release()
    one.until_done(ids)
    assert most == [1] * 4


def test_functions_are_called_in_the_main_thread(worker: Callable[..., Worker]) -> None:
    """Functions run in the main thread, also while the number of readers changes; an error names ticket and row."""
    callers: set[int | None] = set()

    def transform(sample: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        callers.add(threading.get_ident())
        if sample["X"][0] == 63:
            raise ValueError("the last")
        return sample

    one = worker(Called(lambda id: callers.discard(None)), 1, transform)
    for reads in (1, 4, 1, 3, 1):
        one.sheet(0, range(64))
        one.page.words[READS] = reads
        one.until_done([one.put(0, n, n + 1) for n in range(60)])
    one.put(0, 60, 64)
    wait_until(lambda: one.messages, "the failure is reported")
    assert one.messages[0][:1] == FAILED
    assert pickle.loads(one.messages[0][1:])[1:] == (3, ANY)
    assert callers == {one.main}


def test_random_numbers_do_not_depend_on_readers(worker: Callable[..., Worker]) -> None:
    """A source gets the same numbers from global generators with any number of readers: each sample has its seed."""

    class Drawing(Called):
        concurrent = False

        def read(self, id: Any, row: np.ndarray) -> None:
            row[:] = random.random() + np.random.random()

    found = []
    for reads in (1, 6):
        one = worker(Drawing(), reads)
        for slot in range(SLOTS):
            one.sheet(slot, range(8 * slot, 8 * slot + 8), epoch=3)
        spans = [(0, 1), (1, 3), (3, 4), (4, 5), (5, 7), (7, 8)]
        one.until_done([one.put(slot, *span) for slot in range(SLOTS) for span in spans])
        found.append([one.rows(slot) for slot in range(SLOTS)])
    assert found[0] == found[1]
    assert len({row for rows in found[0] for row in rows[:8]}) == 8 * SLOTS


def test_a_failure_is_reported_and_the_reader_goes_on(worker: Callable[..., Worker]) -> None:
    """A failure is reported with ticket, row and error, in place of the ticket's report; the reader goes on."""

    def function(id: int) -> None:
        if id == 5:
            raise ValueError("no such sample")

    one = worker(Called(function), 1)
    one.sheet(0, range(20))
    bad = one.put(0, 3, 8)
    wait_until(lambda: one.messages, "the failure is reported")
    [message] = one.messages
    assert message[:1] == FAILED
    id, row, error = pickle.loads(message[1:])
    assert (id, row) == (bad, 2)
    assert isinstance(error, SampleError)
    assert error.id == 5
    assert one.page.records[0][ROW] == IDLE
    one.until_done([one.put(0, 0, 3), one.put(0, 8, 9)])
    assert bad not in one.done


def test_a_slot_that_cannot_be_mapped_is_reported(worker: Callable[..., Worker]) -> None:
    """If a slot can't be mapped, the worker says so, and its reader ends."""
    one = worker(Called(), 1)
    one.segments.close()
    one.put(0, 0, 1)
    wait_until(lambda: one.ended, "the reader has ended")
    [message] = one.messages
    assert message[:1] == UNABLE
    assert str(pickle.loads(message[1:])).startswith("the ring can't be mapped: ")
    assert one.done == []


def test_readers_end_when_the_main_process_has_gone(worker: Callable[..., Worker]) -> None:
    """If the main process has gone, readers end when a report or a failure can't be sent."""

    def function(id: int) -> None:
        if id == 0:
            raise ValueError

    one = worker(Called(function), 1)
    one.sheet(0, range(8))
    one.hears = False
    one.put(0, 0, 1)
    wait_until(lambda: one.ended, "the reader has ended")
    other = worker(Called(function), 3)
    other.sheet(0, range(8))
    os.close(other.reports)
    for row in (1, 2, 3):
        other.put(0, row, row + 1)
    wait_until(lambda: not other.threads, "the readers have ended")
    other.reports = os.open(os.devnull, os.O_RDONLY)


@pytest.mark.parametrize("waits", [False, True])
def test_the_bell_rings_once_a_batch_is_read(worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    """The last ticket of a batch that a request waits for rings the bell; the tickets before do not.

    With several readers there may be more than one ring: a reader may check the batch after another reported its last ticket.
    """
    monkeypatch.setattr("shmgen._worker.reader_threads.LONG", 1 << 60)  # a ticket may take long on a busy machine
    for reads in (1, 4):
        one = worker(Called(lambda id: None), reads)
        for slot in range(SLOTS if reads == 1 else 1):
            one.sheet(slot, range(20), waits=waits)
            one.until_done([one.put(slot, row, row + 1) for row in range(18)])
            assert one.rings == 0
            one.until_done([one.put(slot, 18, 20)])
            if waits:
                wait_until(lambda one=one: one.rings, "the bell rings")
        if not waits:
            one.sheet(0, range(20), waits=True)
            one.until_done([one.put(0, 0, 20)])
            wait_until(lambda one=one: one.rings, "the bell rings for this batch")


def test_the_bell_rings_for_each_ticket_if_eager(worker: Callable[..., Worker]) -> None:
    """If the main process asks for it (`EAGER`), each ticket rings the bell."""
    one = worker(Called(lambda _: None), 1)
    one.sheet(0, range(20))
    one.page.words[EAGER] = True
    for row in range(5):
        one.until_done([one.put(0, row, row + 1)])
        wait_until(lambda: one.rings == 1, "the bell rings")


def test_the_bell_rings_seldom_for_long_tickets(worker: Callable[..., Worker]) -> None:
    """Tickets that take long ring the bell at the first, and then at most once in `SELDOM` nanoseconds."""
    one = worker(Called(lambda _: threading.Event().wait(1.1 * LONG / 1e9)), 1)
    one.sheet(0, range(40))
    began = time.monotonic_ns()
    one.until_done([one.put(0, row, row + 1) for row in range(20)])
    assert 1 <= one.rings <= 1 + (time.monotonic_ns() - began) / SELDOM
