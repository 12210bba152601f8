"""Checks a folder of ``.npy`` files before days of training: all headers and sizes, or all bytes, in worker processes.

The main process lists ids and sends them to workers, which look at the files and answer each message with a `Tally`. All ids are
kept, compressed, since only at the end it is known which of several shapes is the wrong one.
"""

from __future__ import annotations

import os
import pickle
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from shmgen._memory.limits import processors
from shmgen._samples.sample_spec import SampleSpec
from shmgen._storage.remote import Remote
from shmgen._storage.urls import is_url
from shmgen._tools.scan_ids import Folder, explain_folder, ids_behind
from shmgen._tools.scan_report import Damage, Kind, Report, judge
from shmgen._tools.scan_worker import FLAGS, SEPARATOR, Format, Setup, Tally, dtype_of, read_format, unpack
from shmgen._worker.context import environment
from shmgen._worker.launch import KILL_GRACE, Child, Launcher, end
from shmgen._worker.signals import deferred_signals
from shmgen.errors import FormatError, InputError, WorkerDied

MAX_WORKERS = 8
"""The most workers by default: one checks the headers of tens of thousands of files a second."""

MAX_IDS = 1024
"""Ids in a message."""

MAX_BYTES = 32 << 10
"""Bytes of a message of several ids. A socket has room for two such messages."""

SHORT, LONG = 0.02, 0.1
"""Seconds. Messages to a worker grow while each takes it less than SHORT, and shrink after one that took more than LONG."""

SIZE_OF_REMOTE = 64
"""Ids in a message if files are behind a URL: some for each request in flight."""

AHEAD = 32 << 20
"""Bytes of ids that are listed before workers need them, so that it is soon known how many there are."""

SAMPLES = 8
"""The main process looks for a good header among so many files. A worker that meets no other header need not import NumPy."""


class Progress(NamedTuple):
    """How far a scan has come.

    Attributes:
        files: number of files that were looked at.
        listed: number of files that have been listed.
        all_listed: whether there are no more.
        read: bytes of data that were read; 0 if only headers are.
        damaged: number of files that are no whole ``.npy`` files. Shapes are compared at the end.
    """

    files: int
    listed: int
    all_listed: bool
    read: int
    damaged: int


class Scan:
    """A scan of a folder.

    Args:
        folder: of the files, or its URL.
        blocks: ids, in blocks; None for all files under the folder.
        given: the shape and dtype that the user expects.
        full: read all data, and check that numbers are finite.
        workers: number of processes; by default one for each available processor, at most 8.

    Raises:
        InputError: the folder can't be listed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        blocks: Iterator[list[bytes]] | None = None,
        given: SampleSpec | None = None,
        *,
        full: bool = False,
        workers: int | None = None,
    ) -> None:
        self._folder = os.fspath(folder)
        self._given = given or SampleSpec()
        self._full = full
        self._workers = workers or max(1, min(MAX_WORKERS, round(processors())))
        self._store: Remote | None = None
        self._listing: Folder | None = None
        if is_url(self._folder):
            self._store = Remote(self._folder)
            self._store.prepare()
            blocks = ids_behind(self._store) if blocks is None else blocks
        else:
            try:
                if blocks is None:
                    os.scandir(self._folder).close()
                else:
                    os.stat(f"{self._folder}/.")
            except (OSError, ValueError) as error:
                raise InputError(f"{self._folder}: {explain_folder(error)}; give the folder of the ID.npy files") from None
            if blocks is None:
                self._listing = Folder(os.fsencode(self._folder))
                blocks = self._listing.ids()
        self._queue = _Queue(blocks)
        self._files = self._read = 0
        self._seconds = 0.0
        self._complete = False
        self._sound: dict[tuple[tuple[int, ...], str], _Sound] = {}
        self._damaged: list[tuple[bytes, str]] = []

    def run(self, progress: Callable[[Progress], None] = lambda _: None) -> None:
        """Look at all files. May be called once.

        Args:
            progress: called whenever there is progress.

        Raises:
            InputError: there are no files, or no ids.
            WorkerDied: a worker process has died.
        """
        begun = time.monotonic()
        workers: list[_Worker] = []
        try:
            if not self._queue.list_more():
                raise InputError(self._no_files())
            # A header is parsed as Python text, and a damaged one may cause warnings.
            launcher = Launcher("shmgen._tools.scan_worker", environment(), options=("-W", "ignore"), silent=True)
            with deferred_signals():
                for number in range(self._workers):
                    workers.append(_Worker(number, launcher.start(), SIZE_OF_REMOTE if self._store else None))
            store = pickle.dumps(self._store) if self._store else b""
            setup = pickle.dumps(Setup(sys.path, os.fsencode(self._folder), self._full, self._first_format(), store))
            for worker in workers:
                worker.child.send(setup)
            self._serve(workers, progress)
            self._complete = True
        finally:
            end([worker.child for worker in workers], 0.0)  # they have nothing to finish
            self._seconds = time.monotonic() - begun

    def _serve(self, workers: list[_Worker], progress: Callable[[Progress], None]) -> None:
        poll = select.poll()
        by_fd = {fd: worker for worker in workers for fd in worker.child.events}
        while True:
            for worker in workers:
                while worker.wants and (message := self._queue.take(worker.size)) is not None:
                    worker.child.send(message)
                    worker.holds += 1
                for fd, events in worker.child.events.items():
                    poll.register(fd, events)
            if not any(worker.holds for worker in workers):
                return
            ready = poll.poll(0 if self._queue.has_room else None)
            for fd, _ in ready:
                for answer in by_fd[fd].receive(fd):
                    self._add(answer)
            if ready:
                progress(self._progress())
            else:
                self._queue.list_more()

    def _add(self, answer: Tally | int) -> None:
        if isinstance(answer, int):
            self._read += answer
            return
        self._files += answer.files
        self._read += answer.read
        self._damaged += answer.damaged
        for shape, descr, files, size, ids in answer.sound:
            sound = self._sound.setdefault((shape, descr), _Sound())
            sound.files += files
            sound.bytes += size
            sound.ids.append(ids)

    def _progress(self) -> Progress:
        return Progress(self._files, self._queue.listed, self._queue.all_listed, self._read, len(self._damaged))

    def _first_format(self) -> list[Format]:
        if self._store:
            return []
        for id in self._queue.first(SAMPLES):
            with suppress(OSError, ValueError, FormatError):
                fd = os.open(self._path(id), FLAGS)
                try:
                    return [read_format(fd)]
                finally:
                    os.close(fd)
        return []

    def _path(self, id: bytes) -> bytes:
        return b"%b/%b.npy" % (os.fsencode(self._folder), id)

    def _no_files(self) -> str:
        if self._listing is None:
            return "expected ids, an id a line, found none"
        return self._listing.no_files()

    def report(self) -> Report:
        """What has been found so far."""
        kinds = {Kind(shape, dtype_of(descr), sound.files, sound.bytes): sound for (shape, descr), sound in self._sound.items()}
        expected, judged = judge(list(kinds), self._given)
        damaged = [self._damage(id, reason) for id, reason in self._damaged]
        for kind in judged:
            if kind.reason is not None:
                packed = kinds[kind._replace(reason=None)].ids
                damaged += [self._damage(id, kind.reason) for part in packed for id in unpack(part)]
        if self._listing:
            root = os.fsencode(self._folder)
            damaged += [
                Damage(os.fsdecode(path), os.fsdecode(root + b"/" + path), reason) for path, reason in self._listing.unreadable
            ]
        damaged.sort(key=lambda damage: damage.path)
        return Report(
            self._folder, self._full, self._complete, self._files, self._seconds, self._given, expected, judged, damaged
        )

    def whole(self) -> Iterator[bytes]:
        """The ids of the whole files that have been found, of any shape and dtype, in no particular order."""
        for sound in self._sound.values():
            for part in sound.ids:
                yield from unpack(part)

    def _damage(self, id: bytes, reason: str) -> Damage:
        path = self._store.place(f"{os.fsdecode(id)}.npy") if self._store else os.fsdecode(self._path(id))
        return Damage(os.fsdecode(id), path, reason)


class _Sound:
    """The whole files of one shape and dtype."""

    def __init__(self) -> None:
        self.files = self.bytes = 0
        self.ids: list[bytes] = []


class _Queue:
    """Ids that no worker has got yet.

    Args:
        blocks: of ids, as they are listed.

    Attributes:
        listed: number of ids that have been listed.
        all_listed: whether there are no more.
    """

    def __init__(self, blocks: Iterator[list[bytes]]) -> None:
        self._blocks = blocks
        self._packed: deque[bytes] = deque()
        self._bytes = 0
        self._open: list[bytes] = []
        self.listed = 0
        self.all_listed = False

    @property
    def has_room(self) -> bool:
        """Whether to list more before it is needed."""
        return not self.all_listed and self._bytes < AHEAD

    def list_more(self) -> bool:
        """List a block; False if there are no more."""
        block = next(self._blocks, None)
        if block is None:
            self.all_listed = True
            return False
        self.listed += len(block)
        packed = SEPARATOR.join(block)
        self._bytes += len(packed)
        self._packed.append(packed)
        return True

    def take(self, most: int) -> bytes | None:
        """A message of at most ``most`` ids; None if there are no more."""
        if not self._open:
            if not self._packed and not self.list_more():
                return None
            packed = self._packed.popleft()
            self._bytes -= len(packed)
            self._open = packed.split(SEPARATOR)
        message = SEPARATOR.join(self._open[:most])
        while len(message) > MAX_BYTES and most > 1:
            most //= 2
            message = SEPARATOR.join(self._open[:most])
        del self._open[:most]
        return message

    def first(self, count: int) -> list[bytes]:
        """The first ids, at most ``count``; to be called before `take`."""
        return self._packed[0].split(SEPARATOR)[:count] if self._packed else []


class _Worker:
    """A worker process, and how many messages it has.

    Args:
        number: of the worker, from 0.
        child: the process.
        size: number of ids in each message; None if it is to adapt to the time that they take.

    Attributes:
        size: number of ids in its next message.
        holds: number of messages that it has not answered yet.
    """

    def __init__(self, number: int, child: Child, size: int | None = None) -> None:
        self._number = number
        self.child = child
        self._adapts = size is None
        self.size = size or 1
        self.holds = 0

    @property
    def wants(self) -> bool:
        """Whether to send it another message: it should have one in reserve, unless messages take long."""
        return self.holds < (1 if self.size == 1 else 2)

    def receive(self, fd: int) -> Iterator[Tally | int]:
        """What it has sent, once ``fd``, one of its descriptors, is ready.

        Raises:
            WorkerDied: it has ended.
        """
        self.child.flush()
        messages, ended = self.child.receive(fd)
        for message in messages:
            answer: Tally | int = pickle.loads(message)
            if isinstance(answer, Tally):
                self.holds -= 1
                self._adapt(answer)
            yield answer
        if ended:
            raise WorkerDied(self._number, self.child.pid, self.child.join(KILL_GRACE))

    def _adapt(self, answer: Tally) -> None:
        if not self._adapts:
            return
        if answer.seconds < SHORT and answer.files >= self.size:
            self.size = min(MAX_IDS, 2 * self.size)
        elif answer.seconds > LONG:
            self.size = max(1, self.size // 2)
