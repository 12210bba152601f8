"""Faults of the fake workers, at different moments, and checks that the engine's tests share."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Engine

reads = pytest.mark.parametrize("reads", [1, 3])
"""With one reader a worker, and with several."""


def whole_epoch(engine: Engine) -> None:
    """Check that every batch of the first epoch is delivered, right in every row."""
    for number in range(engine.sampler.batches):
        assert engine.fetch(number) == engine.expected(number)
        engine.check()


def die_before_reading(engine: Engine, worker: int, reader: int, row: int) -> None:
    """The worker dies when its reader has taken a ticket, but begun no row."""
    engine.workers.die(worker)


def die_at_row(engine: Engine, worker: int, reader: int, row: int) -> None:
    """The worker dies at a row that its status names."""
    engine.workers.reach(worker, reader, row)
    engine.workers.die(worker)


def die_at_unknown_row(engine: Engine, worker: int, reader: int, row: int) -> None:
    """The worker dies while its status says that it reads, but not which row."""
    engine.workers.reach(worker, reader, None)
    engine.workers.die(worker)


def die_after_report(engine: Engine, worker: int, reader: int, row: int) -> None:
    """The worker dies after it has reported its ticket as done, but before the report is read."""
    engine.workers.done(worker, reader)
    engine.workers.die(worker)


def die_with_all_readers_at_rows(engine: Engine, worker: int, reader: int, row: int) -> None:
    """The worker dies at a row that its status names, while each of its other readers is at its ticket's first row."""
    for other, one in enumerate(engine.workers.workers[worker].readers):
        if one.ticket is not None:
            engine.workers.reach(worker, other, 0)
    die_at_row(engine, worker, reader, row)


deaths = pytest.mark.parametrize("moment", [die_before_reading, die_at_row, die_at_unknown_row, die_after_report])
"""A worker's death at each of these moments."""


def hang(engine: Engine, worker: int, reader: int, row: int | None, **how: Any) -> None:
    """A reader hangs at a row; with None, its status does not name the row."""
    engine.workers.reach(worker, reader, row)
    engine.workers.hang(worker, reader, **how)
