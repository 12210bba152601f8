"""Workers and readers are added and removed during work, and die or hang meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from fakes import TIMEOUT, engine_of, values
from moments import deaths, hang, reads, whole_epoch

from shmgen.errors import SampleError, StartError


@pytest.mark.parametrize(("counts", "reads"), [((3, 1), 3), ((1, 4), 1), ((2, 3, 1, 2), 3)], ids=str)
def test_resizes_during_work(counts: tuple[int, ...], reads: int) -> None:
    """Workers may be added and removed during an epoch: every row is right, and no worker is replaced."""
    with engine_of(workers=2, reads=reads, samples=80) as engine:
        for number in range(engine.sampler.batches):
            if number < len(counts):
                engine.workers.script.append(partial(engine.resize, counts[number]))
            assert engine.fetch(number) == engine.expected(number)
            engine.check()
        assert len(engine.workers.workers) == engine.prefetcher.stats.workers == counts[-1]
        assert {word.split()[0] for word in engine.workers.log} <= {"add", "retire", "remove"}
        assert engine.prefetcher.stats.restarts == 0
        assert engine.damage.found == {}


@pytest.mark.parametrize("counts", [(3, 1), (1, 4), (5, 2, 3)], ids=str)
def test_changing_reads_during_work(counts: tuple[int, ...]) -> None:
    """The number of readers may change during an epoch, and workers that are added later have the new number, too."""
    with engine_of(workers=2, reads=2, samples=160, batch_size=16, slots=4) as engine:
        for number in range(engine.sampler.batches):
            if number < len(counts):
                engine.workers.script.append(partial(engine.resize, 2, counts[number]))
            assert engine.fetch(number) == engine.expected(number)
        assert engine.prefetcher.stats.reads == counts[-1]
        for worker in engine.workers.workers.values():
            assert sum(not reader.gone for reader in worker.readers) == counts[-1]
        engine.resize(3)
        assert engine.workers.workers[2].reads == counts[-1]
        assert engine.workers.log == ["add 2"]


def test_a_replacement_has_the_wanted_number_of_readers() -> None:
    """A replacement of a dead worker has the number of readers that is wanted by then."""
    with engine_of(workers=1, reads=2) as engine:
        engine.resize(1, 5)
        engine.workers.script.append(lambda: engine.workers.die(0))
        whole_epoch(engine)
        assert engine.workers.log == ["restart 0"]
        assert engine.workers.workers[0].reads == len(engine.workers.workers[0].readers) == 5


@reads
@deaths
def test_a_retiring_worker_dies(moment: Callable[..., None], reads: int, caplog: pytest.LogCaptureFixture) -> None:
    """If a worker that should end dies first, its tickets are read, it is not replaced, and nothing is logged."""
    with engine_of(workers=2, reads=reads) as engine:
        engine.workers.script += [lambda: engine.resize(1), lambda: moment(engine, 1, 0, 0)]
        whole_epoch(engine)
        assert engine.workers.workers.keys() == {0}
        assert engine.workers.log == ["retire 1", "remove 1"]
        assert engine.prefetcher.stats.restarts == 0
    assert caplog.text == ""


def test_a_retiring_worker_ends_with_busy_readers() -> None:
    """If a worker ends while its other readers have tickets, other workers read these, and no sample is blamed."""
    with engine_of(workers=2, reads=3) as engine:

        def end() -> None:
            for reader in range(3):
                engine.workers.reach(1, reader, 0)
            engine.workers.done(1, 0)

        for _ in range(2):
            engine.workers.script += [lambda: engine.resize(1), end, lambda: engine.resize(2)]
        whole_epoch(engine)
        assert engine.workers.log == ["retire 1", "remove 1", "add 1"] * 2


@reads
def test_a_retiring_worker_hangs(reads: int) -> None:
    """If a worker that should end hangs, it is killed after ``timeout``, the sample is blamed, and no worker replaces it."""
    with engine_of(workers=2, reads=reads, on_error="replace") as engine:
        began = engine.clock.now
        [blamed, *_] = engine.workers.ids(engine.workers.ticket(1, reads - 1))
        engine.resize(1)
        hang(engine, 1, reads - 1, 0)
        if reads > 1:
            engine.workers.hang(1, 0)
        for number in range(6):
            engine.fetch(number)
        assert engine.damage.found.keys() == {blamed}
        assert engine.workers.log == ["retire 1", "kill 1", "remove 1"]
        assert TIMEOUT <= engine.clock.now - began <= 1.5 * TIMEOUT


def test_a_retiring_worker_cannot_be_killed() -> None:
    """If a worker that should end can't be killed, it is given up, and its slots are never used again."""
    with engine_of(workers=2, reads=3) as engine:
        engine.resize(1)
        hang(engine, 1, 0, 0, immortal=True)
        [sample, *_] = engine.workers.ids(engine.workers.ticket(1, 0))
        with pytest.raises(SampleError, match=f"sample {sample}, "):
            whole_epoch(engine)
        assert engine.workers.log == ["retire 1", "kill 1", "remove 1"]
        assert "lost" in repr(engine.schedule)
        for number in range(6):
            array = engine.lease(number)
            engine.workers.scribble()
            assert values(array) == engine.expected(number)
            del array


def test_an_additional_worker_cannot_be_started(caplog: pytest.LogCaptureFixture) -> None:
    """If a worker can't be added, the run continues with the others, which is logged."""
    with engine_of(workers=1) as engine:
        engine.workers.cannot_start = StartError("no more processes")
        assert not engine.resize(3)
        whole_epoch(engine)
        assert engine.prefetcher.stats.workers == 1
    assert "there are 1 workers, not 3: no more processes" in caplog.text
