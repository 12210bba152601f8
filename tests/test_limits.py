"""Limits of the process: an error caused by a limit names it, its value, and a remedy, which works."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
from collections.abc import Callable

import pytest
from test_memory import ROW, SLOT, room
from ways import computed, part_of

from shmgen._engine.in_process import InProcess
from shmgen._memory.layout import PAGE
from shmgen._memory.limit_errors import reached

LIMITS = """
import contextlib, logging, resource
import shmgen._engine.held_slots
shmgen._engine.held_slots.GROW_AFTER = 0.05
logging.basicConfig(format="%(levelname)s %(message)s")

@contextlib.contextmanager
def limited(limit, soft, pid=0):
    before = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (soft, before[1]))
    try: yield
    finally:
        with contextlib.suppress(ProcessLookupError): resource.prlimit(pid, limit, before)

def size(pid):
    with open(f"/proc/{pid}/statm") as file: return int(file.read().split()[0]) * resource.getpagesize()

def taken():
    return sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))

def room_for(more):
    '''The limit with which this number of descriptors is available.'''
    busy = taken()
    return [fd for fd in range(5000) if fd not in busy][more]

def loader(**options):
    folder = {} if "source" in options else {"data_dir": DATA}
    return Loader(IDS, LABELS, 1, **{**folder, "workers": 1, "shuffle": False, **options})

def tried(make):
    try: return make()
    except (OSError, shmgen.ShmgenError) as error: return f"{type(error).__name__}: {error}".replace("\\n", " ")
"""
"""The beginning of scripts that set limits; ``tried`` returns the text of an error."""

FILES = r"this process may have \d+ files open \(ulimit -n\): close what is no longer needed, such as loaders, or raise"


def test_no_descriptor_left_in_the_constructor(folder: Callable, script: Callable) -> None:
    """Wherever descriptors run out in the constructor, the error names the limit, and nothing is left open."""
    code = """
one, two = loader(), loader(workers=0)
list(one), list(two)
before, more = taken(), 0
while isinstance(found := with_room(more, loader), str):
    assert taken() == before, (more, taken(), before)
    say(found)
    more += 3
found.close()
assert more > 8, more
three = loader()
before, others = taken(), []
found = with_room(0, loader)
say(found)
with limited(resource.RLIMIT_NOFILE, room_for(0)):
    one.close()
    three.close()
    list(two)
    loader(workers=1).close()
two.close()
"""
    helper = """
def with_room(more, make):
    with limited(resource.RLIMIT_NOFILE, room_for(more)):
        return tried(make)
"""
    run = script(LIMITS + helper + code, folder(4, (ROW // 4,)))

    assert run.end() == 0, run.err
    *lines, last = run.out.splitlines()
    for line in lines:
        assert re.search("Too many open files.*" + FILES, line), line
        assert line.count("(ulimit -n)") == 1
    assert re.search(FILES, last)
    assert run.err == ""


def test_no_descriptor_left_for_workers_or_slots(folder: Callable, script: Callable) -> None:
    """If descriptors run out later, for a new worker or more slots, the error names the limit; later requests work again."""
    code = """
import signal
one = loader(slots=2)
with limited(resource.RLIMIT_NOFILE, room_for(0)):
    say(tried(lambda: list(one)))
assert len(list(one)) == 8
os.kill(one.state.workers[0].pid, signal.SIGKILL)
with limited(resource.RLIMIT_NOFILE, room_for(0)):
    say(tried(lambda: [list(one) for _ in range(9)]))
"""
    run = script(LIMITS + code, folder(8, (ROW // 4,)))

    assert run.end() == 0, run.err
    grown, replaced = run.out.splitlines()
    advice = rf"\[Errno 24\] Too many open files: {FILES}"
    assert re.match(f"OSError: {advice}", grown)
    assert re.match(f"StartError: a worker can't be started: {advice}", replaced)


def test_no_descriptor_left_in_a_worker(folder: Callable, script: Callable) -> None:
    """If descriptors run out in a worker, in shmgen's or the user's code, the error names the limit and the sample."""
    code = """
def read(id):
    return np.load(f"{DATA}/{id}.npy")

class Own(shmgen.Source):
    shape, dtype = (3,), "f4"
    def fill(self, ids, rows):
        for row, id in zip(rows, ids): row[:] = read(id)

for options in (dict(), dict(source=read), dict(source=Own())):
    with loader(**options) as one:
        one.batch(0)
        with limited(resource.RLIMIT_NOFILE, 3, one.state.workers[0].pid):
            say(tried(lambda: list(one)))
"""
    run = script(LIMITS + code, folder(64, (3,)))

    assert run.end() == 0, run.err
    for line, kind in zip(run.out.splitlines(), ("SampleError", "FunctionError", "FunctionError"), strict=True):
        assert re.match(
            rf"{kind}: .*Too many open files.*this process may have 3 files open \(ulimit -n\): close what is no", line
        )


def test_a_limit_on_the_size_of_files(folder: Callable, script: Callable) -> None:
    """A limit on file size leaves fewer slots, with a warning; if 2 slots, another slot or the ids don't fit, errors name it."""
    code = f"""
with limited(resource.RLIMIT_FSIZE, {room(2) - 1}):
    say(tried(loader))
with limited(resource.RLIMIT_FSIZE, {room(2)}):
    loader(slots=2).close()
    before = taken()
    ids = [*IDS, *(f"none-{{number:06}}" for number in range(50_000))]
    say(tried(lambda: Loader(ids, None, 1, data_dir=DATA, workers=1, slots=2)))
    assert taken() == before
for limit, slots in (({room(6)}, 6), ({room(6) - PAGE}, 5)):
    with limited(resource.RLIMIT_FSIZE, limit), loader(slots=6, workers=2) as one:
        assert len(one.state.slots) == slots
        assert sorted(int(y[0]) for X, y in one if (X == y[0]).all()) == list(range(12))
        say(tried(lambda: list(one)))
"""
    run = script(LIMITS + code, folder(12, (ROW // 4,)))

    assert run.end() == 0, run.err
    small, ids, *held = run.out.splitlines()
    needed = r"OSError: \[Errno 27\] {:,} bytes of shared memory are needed, for {}: files may have {:,} bytes \(ulimit -f\), "
    counts = "and shared memory counts as one: raise the limit, "
    assert re.match(needed.format(room(2), f"2 slots of {SLOT:,} bytes each", room(2) - 1) + counts, small), small
    assert re.match(rf"OSError: .*[Ff]ile.*may have {room(2):,} bytes \(ulimit -f\)", ids), ids
    for line, limit in zip(held, (room(6), room(6) - PAGE), strict=True):
        assert re.match(needed.format(SLOT, "another slot", limit) + counts + "hold fewer batches, ", line), line
    assert run.err.count(" are wanted") == 1
    assert re.search(
        rf"for 6 slots of {SLOT:,} bytes each, and there are 5 slots, because files may have {room(6) - PAGE:,} bytes", run.err
    )


def test_a_limit_on_address_space(folder: Callable, script: Callable) -> None:
    """Errors name a limit on address space, in the main process and in a worker whose ring has grown."""
    code = """
def large():  # two slots are more than 32 MiB
    return Loader(range(256), None, 64, source=lambda id: np.zeros(1 << 16, "f4"), workers=1)

loader().close()
with limited(resource.RLIMIT_AS, size(os.getpid()) + (32 << 20)):
    say(tried(large))
with loader(slots=2) as one:
    one.batch(0)
    pid = one.state.workers[0].pid
    with limited(resource.RLIMIT_AS, size(pid), pid):
        say(tried(lambda: list(one)))
"""
    run = script(LIMITS + code, folder(8, (ROW // 4,)))

    assert run.end() == 0, run.err
    here, there = run.out.splitlines()
    text = r"\[Errno 12\] Cannot allocate memory: this process may have [\d,]+ bytes of address space \(ulimit -v\), and has "
    assert re.match(rf"OSError: {text}[\d,]+: raise the limit, ", here)
    assert re.match(f"StartError: the ring can't be mapped: {text}", there)
    assert "Traceback" not in run.err


def test_a_limit_on_data_in_a_function(folder: Callable, script: Callable) -> None:
    """The error of a user's function with a MemoryError names the limit on data."""
    code = """
one = loader(source=lambda id: np.ones(1 << (3 if id == "id-0" else 28), "u1")[:8], slots=2)
one.batch(0)
with limited(resource.RLIMIT_DATA, 150 << 20, one.state.workers[0].pid):
    say(tried(lambda: [one.batch(index) for index in range(1, 8)]))
one.close()
"""
    run = script(LIMITS + code, folder(64, (3,)))

    assert run.end() == 0, run.err
    assert re.match(
        r"FunctionError: .*MemoryError.*this process may have 157,286,400 bytes of data \(ulimit -d\), and has", run.out
    )


def test_a_limit_on_processes(folder: Callable, script: Callable) -> None:
    """The error names a limit on processes; without workers, a loader works."""
    code = """
fill = lambda id: np.zeros(3)
loader(source=fill).close()  # imports what it needs
if os.geteuid() == 0:
    os.setuid(65534)  # root has no such limit
with limited(resource.RLIMIT_NPROC, 1):
    say(tried(lambda: loader(source=fill)))
    with loader(source=fill, workers=0) as one: assert len(list(one)) == 4
"""
    run = script(LIMITS + code, folder(4))

    assert run.end() == 0, run.err
    text = r"\[Errno 11\] Resource temporarily unavailable: this user may have 1 processes and threads \(ulimit -u\)"
    assert re.match(rf"BlockingIOError: {text}.*: use fewer workers, ", run.out)


def test_a_loader_beside_more_files_than_select_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without workers, a loader works in a process that has more than 1,024 files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    eventfd = os.eventfd

    def high(*args: int) -> int:
        fd = eventfd(*args)
        try:
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 1024)
        finally:
            os.close(fd)

    monkeypatch.setattr(os, "eventfd", high)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1100), hard))
    try:
        with computed(workers=0) as loader:
            part_of(loader, InProcess).wait(0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("error", [OSError("no number"), OSError(errno.EACCES, "x"), ValueError(), OSError(errno.ENOMEM, "x")])
def test_other_errors_get_no_advice(error: Exception) -> None:
    """Other errors get no advice, nor does a lack of memory without a limit."""
    assert reached(error) == ""
