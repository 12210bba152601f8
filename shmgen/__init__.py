"""Batches of ``ID.npy`` files for Keras, read by processes of its own into shared memory.

The way of the data, and the module that holds each step::

    ids, seed, epoch
      │  _order     which samples an epoch's batch k holds          (pure)
      │  _passes    which epoch an iteration gets, and which batch an index means   (pure)
      ▼
    _schedule       which slot gets which batch, which worker which rows   (pure)
      │  _samples   the batch's ids, labels, and stand-ins for what is damaged (_damage)
      │  _watch     gives workers their work, hears of them, replaces those that die or hang
      │  _pool      the worker processes: starts, talks to, and stops them
      │  _travel    the user's functions, pickled; _context: what they find there, _echo: how what they log comes back
      ▼
    _worker         a lean process that fills rows
      │  _filler    what it does with them: a source for each field, then the user's transform
      │  _source    the base of all sources; _files, _hdf5: those that read files; _npy: the file format
      │  _dice      random numbers that do not depend on who draws them
      ▼
    _ring           slots of shared memory, cut into arrays by _layout
      │             a slot is free again when the last view of it is gone; _machine: how much there is to take
      ▼
    _delivery       waits, and hands out leases, or copies where all slots are held
      │  _crew      how many workers there should be                (pure)
      ▼
    _loader         Loader: batches without any framework, nested as _structure says
      │  _values     labels and tables; _lookup: which value is whose; _suggest: what an id was meant as that has none
      │  _stats     what it has done, and who waits for whom
      ▼
    keras           Sequence: what ``fit`` takes

Beside it stands ``python -m shmgen``, in ``__main__``. ``scan`` checks a folder: _scan hands the ids that _scan_ids lists to lean
processes of its own, _scan_worker looks at the files, _scan_report judges what was found, _scan_view shows it.
``tune`` says how many workers to use: _tune measures loaders, _tune_view shows what was seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shmgen._damage import Damaged
    from shmgen._files import Npy, NpyRows
    from shmgen._hdf5 import Hdf5
    from shmgen._loader import Loader
    from shmgen._source import Function, Source
    from shmgen._stats import Stats
    from shmgen._tune import Measurement, Tuning, tune
    from shmgen._values import Values
    from shmgen.errors import (
        ClosedError,
        FunctionError,
        InputError,
        SampleError,
        ShmgenError,
        StartError,
        TooManyDamaged,
        WorkerDied,
    )
    from shmgen.keras import Sequence

__version__ = "0.1.0"

__all__ = [
    "ClosedError",
    "Damaged",
    "Function",
    "FunctionError",
    "Hdf5",
    "InputError",
    "Loader",
    "Measurement",
    "Npy",
    "NpyRows",
    "SampleError",
    "Sequence",
    "ShmgenError",
    "Source",
    "StartError",
    "Stats",
    "TooManyDamaged",
    "Tuning",
    "Values",
    "WorkerDied",
    "tune",
]

_HOMES = {
    "Damaged": "_damage",
    "Function": "_source",
    "Hdf5": "_hdf5",
    "Loader": "_loader",
    "Measurement": "_tune",
    "Npy": "_files",
    "NpyRows": "_files",
    "Sequence": "keras",
    "Source": "_source",
    "Stats": "_stats",
    "Tuning": "_tune",
    "Values": "_values",
    "tune": "_tune",
}


def __getattr__(name: str) -> object:
    # A worker imports this package too, and Loader's users may have no Keras: a name is imported when it is asked for.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
