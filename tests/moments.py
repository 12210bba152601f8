"""What tests of the engine have befall its fake workers, and see of it in the end."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Engine

reads = pytest.mark.parametrize("reads", [1, 3])
"""With one reader a worker, and with several."""


def whole_epoch(engine: Engine) -> None:
    """Every batch of the first epoch is delivered, right in every row."""
    for number in range(engine.sampler.batches):
        assert engine.fetch(number) == engine.expected(number)
        engine.check()


def before(engine: Engine, worker: int, reader: int, row: int) -> None:
    """It has not begun its ticket."""
    engine.workers.die(worker)


def amid(engine: Engine, worker: int, reader: int, row: int) -> None:
    """At a row that it names."""
    engine.workers.reach(worker, reader, row)
    engine.workers.die(worker)


def amid_unknown(engine: Engine, worker: int, reader: int, row: int) -> None:
    """At a row that it does not name."""
    engine.workers.reach(worker, reader, None)
    engine.workers.die(worker)


def after(engine: Engine, worker: int, reader: int, row: int) -> None:
    """It has said that the ticket is done, and died before anybody heard of it."""
    engine.workers.done(worker, reader)
    engine.workers.die(worker)


def all_amid(engine: Engine, worker: int, reader: int, row: int) -> None:
    """It dies at a row that it names, while all its other readers are at one as well."""
    for other, one in enumerate(engine.workers.workers[worker].readers):
        if one.ticket is not None:
            engine.workers.reach(worker, other, 0)
    amid(engine, worker, reader, row)


def hang(engine: Engine, worker: int, reader: int, row: int | None, **how: Any) -> None:
    """A reader hangs at a row."""
    engine.workers.reach(worker, reader, row)
    engine.workers.hang(worker, reader, **how)
