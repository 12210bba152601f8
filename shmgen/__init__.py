"""Batches of ``ID.npy`` files for Keras, read by processes of its own into shared memory.

The path of the data, and the module for each step::

    ids, seed, epoch, the index of a batch
      │  _plan.passes        which epoch an iteration gets, and which batch an index means (_plan.checkpoint: saved states)
      │  _plan.sampler       which samples that batch holds (_plan.order; weighted, by_length), and a rank's part (_ranks)
      ▼
    _plan.schedule           which slot gets which batch, cut into tickets: a slot and some of its rows
      │  _engine.batch_planner   labels, replacements of damaged samples (_plan.damaged_samples), and the sheet that tells workers
      │  _engine.supervisor      gives out tickets, and does what _plan.faults decides on workers that die, hang, or fail at a row
      │  _engine.pool            the worker processes, and the queue of tickets that they share (_worker.protocol)
      ▼
    _worker.main             a lean process, whose status page (_memory.status_page) shows which tickets it has
      │  _worker.reader_threads  threads that take tickets, as many as there are reads in flight
      │  _worker.ticket_filler   fills a ticket: a reader for each field, then the transform (sample_filler)
      │  _sources            readers: npy, npz, npy_rows, images, hdf5, function; the main process fills values. base is
      │                      their contract, fields what a worker knows of a field, one-hot rows included
      │  _samples            what a sample is (sample_spec, casting), which id is which (ids, lookup, row_ids; packed_ids in
      │                      workers), files by their names (files), and what errors advise (remedies)
      ▼
    _storage.remote          files behind a URL: http_store, s3_store, fsspec_store get them, cache keeps them on a disk
      ▼
    _memory.ring             slots of shared memory (_memory.segments), cut into arrays by _memory.layout
      │                      a slot is free again when the last view of it is gone; where all are held, the ring grows
      ▼
    _engine.prefetcher       waits, and hands out leases (held_slots: while all are held; error_log: errors of requests)
      │  _plan.autoscaler    how many workers and reads there should be (by activity; _engine.defaults: at first, at most)
      │  _plan.stats         counts and times (meter takes them), and the verdict: what limits the rate
      │  _engine.loader_state  slots, workers and requests at this moment
      ▼
    _engine.feed             assembles all of it, and nests and trims the batches of a pass (by _sources.batch_spec)
      ▼
    loader                   Loader, a thin face of the feed, as is keras.Sequence
      ▼
    keras                    sequence: what ``fit`` takes; adapter: what Keras takes its batches from, each of its iterations
                             a pass (iterations); data_checks: errors and warnings before it begins; backends: tensors without a
                             copy; data_wait, resume: callbacks; running_fit: the ``fit`` around them; model_state,
                             callback_state, state_folder: what resume saves
    torch, jax               batches as tensors and arrays, for loops without Keras; all on _engine.front_end

Each folder says in its docstring what belongs there. options has the arguments: each is typed, documented and checked once, and
_signatures gives them to constructors and functions. Before there is a loader, _samples.validation_split holds ids out for
validation, and _samples.image_folder lists images. _tools is the command line: ``scan`` finds every sample that can't be read,
``tune`` recommends a number of workers, ``pack`` makes one file of many.

Examples in docstrings find the files ``data/id-0.npy`` to ``data/id-15.npy`` of shape (4, 3), the same rows in ``all.npy``, with
their ids in ``all.ids``, in the dataset ``images`` of ``all.h5``, and in the datasets ``samples/id-0/image`` and so on of
``each.h5``, pictures ``photos/id-0.png`` and so on, eight more in each of ``pets/cats`` and ``pets/dogs``, the list ``ids`` of
the files' names, and ``labels``, a dict from each id to 0, 1, 2 or 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shmgen import jax as jax, keras as keras, torch as torch
    from shmgen._engine.loader_state import LoaderState as LoaderState, SlotState as SlotState, WorkerState as WorkerState
    from shmgen._plan.damaged_samples import Damaged as Damaged
    from shmgen._plan.stats import Stats as Stats
    from shmgen._samples.image_folder import ImageFolder as ImageFolder, image_folder as image_folder
    from shmgen._samples.validation_split import split as split
    from shmgen._sources.base import Reader as Reader, Source as Source, SourceField as SourceField
    from shmgen._sources.function import Function as Function
    from shmgen._sources.hdf5 import Hdf5 as Hdf5
    from shmgen._sources.images import Images as Images
    from shmgen._sources.npy import Npy as Npy
    from shmgen._sources.npy_rows import NpyRows as NpyRows
    from shmgen._sources.npz import Npz as Npz
    from shmgen._sources.values import Values as Values, class_weights as class_weights
    from shmgen._storage.remote import Remote as Remote
    from shmgen._tools.recommend import Measurement as Measurement
    from shmgen._tools.scan import ScanReport as ScanReport, scan as scan
    from shmgen._tools.tune import Tuning as Tuning, tune as tune
    from shmgen.errors import (
        ClosedError as ClosedError,
        FunctionError as FunctionError,
        InputError as InputError,
        SampleError as SampleError,
        ShmgenError as ShmgenError,
        StartError as StartError,
        TooManyDamaged as TooManyDamaged,
        WorkerDied as WorkerDied,
    )
    from shmgen.keras import Sequence as Sequence
    from shmgen.loader import Loader as Loader

__version__ = "0.2.0"

_NAMES = {
    # module -> its public names, each of which is imported when it is asked for
    "_engine.loader_state": "LoaderState SlotState WorkerState",
    "_plan.damaged_samples": "Damaged",
    "_plan.stats": "Stats",
    "_samples.image_folder": "ImageFolder image_folder",
    "_samples.validation_split": "split",
    "_sources.base": "Reader Source SourceField",
    "_sources.function": "Function",
    "_sources.hdf5": "Hdf5",
    "_sources.images": "Images",
    "_sources.npy": "Npy",
    "_sources.npy_rows": "NpyRows",
    "_sources.npz": "Npz",
    "_sources.values": "Values class_weights",
    "_storage.remote": "Remote",
    "_tools.recommend": "Measurement",
    "_tools.scan": "ScanReport scan",
    "_tools.tune": "Tuning tune",
    "errors": "ClosedError FunctionError InputError SampleError ShmgenError StartError TooManyDamaged WorkerDied",
    "keras": "Sequence",
    "loader": "Loader",
}

_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)  # noqa: PLE0605

_FRONT_ENDS = {
    # front end -> how to get what it needs
    "jax": "pip install 'shmgen[jax]'",
    "keras": "pip install 'shmgen[tensorflow]', or Keras and another backend",
    "torch": "pip install 'shmgen[torch]'",
}


def __getattr__(name: str) -> object:
    # A worker imports this package too, and Loader's users may have no Keras: a name is imported when it is asked for.
    if name not in __all__ and name not in _FRONT_ENDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = name if name in _FRONT_ENDS else _HOMES[name]
    try:
        module = import_module(f"{__name__}.{home}")
    except ModuleNotFoundError as error:
        if home not in _FRONT_ENDS or error.name is None or error.name.startswith(__name__):
            raise
        what = f"{__name__}.{name} needs {error.name}, which is not installed: {_FRONT_ENDS[home]}"
        raise ModuleNotFoundError(f"{what}; {__name__}.Loader does without", name=error.name) from None
    value = module if name == home else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_FRONT_ENDS})
