"""`Resume`: an interrupted run goes on where it was."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections import deque
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from shmgen._checks import check_float, check_int
from shmgen._ranks import find_shard
from shmgen.errors import InputError
from shmgen.keras.callback_state import COUNTED, SWAPPED, counted, restore
from shmgen.keras.model_state import RANDOM, Cell, find, match, random_states, set_random_states
from shmgen.keras.running_fit import RunningFit
from shmgen.keras.sequence import Sequence
from shmgen.keras.state_folder import Saved, StateFolder, read

log = logging.getLogger("shmgen")

VERSION = 2
"""The version of the saved state."""

EVERY = 500
"""The default number of batches between two states."""


class Place(NamedTuple):
    """The place at which a run goes on: Keras's epoch, the number of its steps that were made, the state of the `Sequence`."""

    epoch: int
    step: int
    sequence: dict[str, Any]


class Loaded(NamedTuple):
    """A state that was loaded, for the beginning of the first epoch, which restores the rest."""

    saved: Saved
    place: Place
    first: int  # batches of the pass that were trained on before
    values: list[tuple[Cell, np.ndarray]]
    initial_epoch: int | None  # the model's own, to be restored

    def assign(self) -> None:
        """Give everything in the model its saved value."""
        for cell, value in self.values:
            cell.assign(value)


class Resume(keras.callbacks.Callback):  # type: ignore[misc]
    """Saves the state of a run while it trains. After an interruption, the same script, run again, goes on from there.

    It goes on in the middle of an epoch, with the batches that were left: every sample is trained on exactly as often as without
    the interruption, with the same weights. A process may be killed at any moment, also while a state is written.

    The state holds all variables of the model and of its layers, losses, metrics and optimizers, also of an optimizer that is an
    attribute of the model; states of stateful layers, buffers of torch's modules, and random states of Keras and of torch; the
    place in the data, and in ``validation_data`` if that is a `Sequence`; ``History``; and the counters of ``EarlyStopping``,
    ``ReduceLROnPlateau``, ``ModelCheckpoint`` and ``SwapEMAWeights``. Batches and epochs keep their numbers, in the progress
    bar and for every callback. Attributes of other callbacks are not saved, nor are `random` and `numpy.random`.

    A state is read and checked as a whole before anything is assigned: if it is refused, nothing has changed. For a moment it
    needs its size in memory.

    When ``fit`` ends, also by ``EarlyStopping``, it saves its state too: run again, it trains nothing, or with larger ``epochs``
    only those that are missing. So each ``fit`` of a script needs a folder of its own; to begin anew, delete the folder. If
    another callback sets ``stop_training``, for instance before a machine is taken away, that is an interruption like others,
    and the state is saved at that batch.

    If a state can't be written, as on a full disk, the log says so once, the last state stays, and training goes on.

    Args:
        folder: has the states, files ``state-000001.npz``, ..., which `numpy.load` can read. If several ranks train together,
            all of them must see the folder; rank 0 writes.
        sequence: the `Sequence` that ``fit`` trains on.
        every: batches between two states; 500, unless ``every_minutes`` is given.
        every_minutes: minutes between two states, in place of ``every``; not for several ranks, since their clocks differ.
        keep: the number of states that stay in the folder. To go back to an older one, delete those after it.

    Raises:
        InputError: an argument can't be used. From ``fit``, before it trains: the state is of another run, or damaged;
            ``BackupAndRestore`` is there as well; the model has an optimizer of torch's own, whose state can't be saved.
        OSError: from ``fit``, before it trains: the folder can't be made.

    Examples:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
        >>> model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> with Sequence(ids, labels, batch_size=4) as training:
        ...     history = model.fit(training, epochs=2, callbacks=[Resume("states", training)], verbose=0)
        ...     more = model.fit(training, epochs=3, callbacks=[Resume("states", training)], verbose=0)
        >>> more.epoch
        [0, 1, 2]
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        sequence: Sequence,
        every: int | None = None,
        *,
        every_minutes: float | None = None,
        keep: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(sequence, Sequence):
            raise InputError(f"sequence: expected the shmgen.Sequence that fit() trains on, found {type(sequence).__name__}")
        if every is None:
            every = EVERY if every_minutes is None else sys.maxsize
        elif every_minutes is not None:
            raise InputError(f"every={every!r} and every_minutes={every_minutes!r}: expected one of them; leave the other out")
        self._every = check_int(every, "every", 1)
        self._every_seconds = math.inf
        if every_minutes is not None:
            self._every_seconds = 60 * check_float(every_minutes, "every_minutes", "a number above 0", lambda value: value > 0)
        self._sequence = sequence
        self._folder = StateFolder(Path(folder).absolute(), check_int(keep, "keep", 1))

    def set_model(self, model: Any) -> None:
        """Remember the model that is trained."""
        super().set_model(model)
        # On JAX the getter of `model` copies all variables.
        self._trained = model

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Load the state, if there is one."""
        self._fit = RunningFit(sys._getframe())
        rank, world = self._sequence.shard if self._sequence.shard[1] > 1 else find_shard()
        self._check(world)
        # Changes that other callbacks make in the same call, for instance of the learning rate, belong to the state.
        self._fit.put_last(self)
        find(self._trained)  # raises if something can't be saved
        self._writes = rank == 0
        if self._writes:
            self._folder.path.mkdir(parents=True, exist_ok=True)
        self._position = self._first = self._unsaved = 0
        self._failed = self._finished = False
        self._last_saved = time.monotonic()
        self._place: Place | None = None
        self._loaded: Loaded | None = None
        self._random: list[np.ndarray] = []
        newest = self._folder.newest()
        if newest is not None:
            self._load(read(newest))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Restore what the beginning of the epoch has changed."""
        self._epoch, self._step = epoch, 0
        if self._fit.steps_per_epoch is None:
            self._first = self._position = 0
        loaded = self._take_loaded()
        if loaded is not None:
            self._step, self._first = loaded.place.step, loaded.first
            self._position = self._first
            if self._step:
                # The epoch's beginning has reset the metrics, and callbacks may have changed more, such as the learning rate.
                loaded.assign()
            random = [array for name, array in loaded.saved.arrays.items() if name.startswith(RANDOM)]
            if self._step or self._fit.steps_per_epoch is not None:
                # Keras is about to make an iterator, which may draw random numbers. When they were saved, it had been made.
                self._random = random
            else:
                set_random_states(random)
        self._place = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Restore the random states that the beginning of an iteration has changed."""
        set_random_states(self._random)
        self._random = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the batches that were trained on, and save the state if it is due."""
        fit = self._fit
        self._unsaved += fit.position - self._position
        self._position = fit.position
        self._step += fit.steps_per_execution
        if self._step >= fit.steps or self._position >= fit.batches:
            # Only validation and callbacks are left in this epoch, and Keras may begin the next pass before they run.
            self._place = Place(self._epoch + 1, 0, self._sequence.state_dict(self._position - self._first))
            if self._position >= fit.batches:
                self._first = self._position = 0
        elif self._is_time() or self._trained.stop_training:
            self._save(Place(self._epoch, self._step, self._sequence.state_dict(self._position - self._first)))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save the state if it is due, and the epoch was not stopped in its middle."""
        if self._place is not None and self._is_time():
            self._save(self._place)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Save the last state."""
        loaded = self._take_loaded()
        place = self._place if loaded is None else loaded.place
        if place is not None and not self._finished:
            stopped = [getattr(callback, "stopped_epoch", 0) for callback in self._fit.callbacks.callbacks]
            self._save(place, finished=place.epoch >= self.params["epochs"] or any(stopped))

    def _check(self, world: int) -> None:
        """Raise an InputError if this callback can't keep its promises in this ``fit``."""
        fit, others = self._fit, self._fit.callbacks.callbacks
        if fit.data is not self._sequence:
            raise InputError(
                f"Resume: expected fit() to train on {self._sequence!r}, as it was told, found {fit.data!r}; give both the same"
            )
        if fit.validation is self._sequence:
            raise InputError("Resume: expected another Sequence as validation_data, found the one that fit() trains on; make two")
        if any(isinstance(other, keras.callbacks.BackupAndRestore) for other in others):
            raise InputError("Resume: found BackupAndRestore beside it, which would load another state; leave that out")
        if getattr(fit.callbacks, "_async_train", False):
            raise InputError("Resume: found it given as callbacks=Resume(...), for which Keras does not wait; give it in a list")
        if world > 1 and self._every_seconds < math.inf:
            raise InputError(f"every_minutes: expected every=BATCHES with {world} ranks, which must save at the same batch")

    def _is_time(self) -> bool:
        return self._unsaved >= self._every or time.monotonic() - self._last_saved >= self._every_seconds

    def _save(self, place: Place, *, finished: bool = False) -> None:
        """Save the state of a run that is at ``place``."""
        fit, (numbers, counts) = self._fit, counted(self._fit.callbacks.callbacks)
        # On JAX the getter of `model` updates its variables. All ranks must take part in that, and in reading them.
        model = self.model
        found = find(model)
        state = {
            "version": VERSION,
            **place._asdict(),
            "validation": fit.validation.state_dict() if isinstance(fit.validation, Sequence) else None,
            "epochs": self.params["epochs"],
            "steps_per_epoch": fit.steps_per_epoch,
            "finished": finished,
            "optimizers": found.trained(model),
            "callbacks": numbers,
        }
        cells = ((name, cell.read()) for name, cell in found.cells.items())
        arrays = chain(cells, random_states(), counts)
        try:
            if self._writes:
                self._folder.write(state, arrays)
            else:
                deque(arrays, maxlen=0)
            self._failed = False
        except OSError as error:
            if not self._failed:
                # Keras shows epochs counted from 1.
                log.error(
                    "%s: the state of epoch %d, step %d could not be saved: %s; training goes on, and any earlier state stays; "
                    "make room, and it is saved next time",
                    *(self._folder.path, place.epoch + 1, place.step, error),
                )
            self._failed = True
        self._unsaved = 0
        self._last_saved = time.monotonic()

    def _load(self, saved: Saved) -> None:
        """Bring the model, the data and ``fit`` to the place at which ``saved`` was saved."""
        state, fit, model = saved.state, self._fit, self.model
        if state["version"] != VERSION:
            raise InputError(
                f"{saved.path}: expected version {VERSION}, found {state['version']}; go on with the shmgen that saved it, or "
                "give Resume another folder, to begin anew"
            )
        values = match(model, self._sequence, saved)
        first = self._load_sequences(saved)
        # Nothing is refused from here on.
        epoch, step = state["epoch"], state["step"]
        if step or first:
            if fit.steps_per_epoch is None:
                # With another batch size, there may be no batch left.
                epoch, step = (epoch, first) if first else (epoch + 1, 0)
            fit.begin_at(step, first)
        log.info("%s: going on in epoch %d, after step %d", saved.path, epoch + 1, step)
        if state["finished"] and self.params["epochs"] <= state["epochs"]:
            self._finished = True
            log.warning(
                "%s: this fit() had come to its end, after %d epochs, so nothing is trained; give a larger number of epochs, or "
                "delete the folder to begin anew",
                *(self._folder.path, state["epochs"]),
            )
        restore(fit.callbacks.callbacks, saved, SWAPPED)
        self._loaded = Loaded(saved, Place(epoch, step, state["sequence"]), first, values, model._initial_epoch)
        self._loaded.assign()
        model._initial_epoch = self.params["epochs"] if self._finished else epoch

    def _load_sequences(self, saved: Saved) -> int:
        """Load the states of the data, or change nothing; returns the batches of the pass that were trained on."""
        state, validation, before = saved.state, self._fit.validation, self._sequence.state_dict()
        try:
            self._sequence.load_state_dict(state["sequence"])
            first = int(self._sequence.state_dict()["consumed"]) // self._sequence.batch_size
            # In its middle, an epoch of Keras's must have the samples that it would have had.
            steps, expected = self._fit.steps_per_epoch, state["steps_per_epoch"]
            if (state["step"] or first) and steps != expected:
                raise InputError(
                    f"expected steps_per_epoch={expected}, with which it was saved, found {steps}; give fit() the same"
                )
            batch_size = state["sequence"]["batch_size"]
            if (state["step"] or first) and steps is not None and batch_size != self._sequence.batch_size:
                raise InputError(
                    f"expected batch_size={batch_size}, with which it was saved, found {self._sequence.batch_size}; "
                    "with steps_per_epoch, it must be the same"
                )
            if isinstance(validation, Sequence) and state["validation"] is not None:
                validation.load_state_dict(state["validation"])
        except InputError as error:
            self._sequence.load_state_dict(before)
            raise InputError(f"{saved.path}: {error}; or give Resume another folder, to begin anew") from None
        return first

    def _take_loaded(self) -> Loaded | None:
        """The loaded state, once. All callbacks have reset their counters in ``on_train_begin`` by now: restore them."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self.model._initial_epoch = loaded.initial_epoch
            restore(self._fit.callbacks.callbacks, loaded.saved, COUNTED)
        return loaded
