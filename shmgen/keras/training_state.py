"""What of a run in ``fit`` can be saved, beside its place in the data: variables, and what callbacks count."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from shmgen.errors import InputError
from shmgen.keras.state_folder import Kind, Saved

log = logging.getLogger("shmgen")

COUNTED: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
    keras.callbacks.History: ("epoch", "history"),
}
"""What Keras's callbacks count in the course of a run; in ``on_train_begin`` most begin anew."""


GROUPS = ("model", "optimizer", "metrics")
"""Whose a variable is; its name begins with it."""


RANDOM = "random"
"""Begins the names of states of random numbers."""


def variables_of(model: Any) -> dict[str, Any]:
    """All variables that training changes, those of random numbers among them, by a name that says whose they are."""
    optimizer = getattr(model, "optimizer", None)
    groups = (model.variables, [] if optimizer is None else optimizer.variables, model.metrics_variables)
    return {
        f"{group}/{number:05}": variable
        for group, variables in zip(GROUPS, groups, strict=True)
        for number, variable in enumerate(variables)
    }


def arrays_of(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The values of `variables_of`, one after the other."""
    for name, variable in variables_of(model).items():
        yield name, keras.ops.convert_to_numpy(variable)


def random_states() -> list[tuple[str, np.ndarray]]:
    """The states of the random numbers that Keras's layers draw from the backend, where those aren't variables: on torch."""
    if keras.backend.backend() != "torch":
        return []
    import torch

    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    return [(f"{RANDOM}/{device:05}", state.numpy()) for device, state in enumerate(states)]


def set_random_states(states: list[np.ndarray]) -> None:
    """Put back what `random_states` gave. Devices that there were not then are left as they are."""
    if states and keras.backend.backend() == "torch":
        import torch

        cpu, *devices = map(torch.from_numpy, states)
        torch.set_rng_state(cpu)
        for device, state in enumerate(devices[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)


def build(model: Any, data: Any) -> Exception | None:
    """Make the variables of a model, its optimizer and its metrics; on TensorFlow, ``fit`` itself does that in the first step.

    Args:
        model: that was compiled.
        data: its first batch tells shapes and dtypes.

    Returns:
        Why not all could be made, if so.
    """
    failure = None
    try:
        # As `fit` does on JAX and torch before it trains.
        model._symbolic_build(data_batch=data[0])
    except Exception as error:
        failure = error
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    return failure


def load(model: Any, data: Any, saved: Saved) -> list[tuple[Any, np.ndarray]]:
    """Give the variables of ``model`` the values that were saved.

    Args:
        model: that was compiled.
        data: what it trains on.
        saved: the state.

    Returns:
        Variables that the beginning of an epoch may change, and their values: metrics, and the learning rate.

    Raises:
        InputError: the variables are others.
    """
    failure = build(model, data)
    variables = variables_of(model)
    expected = {name: kind for name, kind in saved.arrays.kinds.items() if name.partition("/")[0] in GROUPS}
    found: dict[str, Kind] = {
        name: [keras.backend.standardize_dtype(variable.dtype), list(variable.shape)] for name, variable in variables.items()
    }
    for name in sorted({*expected, *found}):
        if found.get(name) != expected.get(name) and not name.startswith("metrics/"):
            kinds = ["none" if kind is None else f"{kind[0]}{kind[1]}" for kind in (expected.get(name), found.get(name))]
            path = f" ({variables[name].path})" if name in variables else ""
            raise InputError(
                f"{saved.path}: variable {name}{path}: expected {kinds[0]}, as it was saved, found {kinds[1]}; give the model, "
                "optimizer and dtype policy of then, with the model built before fit(), or give Resume another folder"
            ) from failure
    if any(name not in found for name in expected):
        log.info("%s: metrics of the interrupted epoch begin anew, since they could not be built: %s", saved.path, failure)
    changed = []
    for name, variable in variables.items():
        if found[name] == expected.get(name):
            value = saved.arrays[name]
            variable.assign(value)
            if name.startswith("metrics/") or not value.shape:
                changed.append((variable, value))
    return changed


class Counters(NamedTuple):
    """What callbacks have counted.

    Attributes:
        numbers: by callback and attribute, as JSON.
        arrays: likewise, of lists of arrays, each array with a number of its own.
    """

    numbers: dict[str, dict[str, Any]]
    arrays: list[tuple[str, np.ndarray]]

    @classmethod
    def of(cls, callbacks: Iterable[Any]) -> Counters:
        """What these callbacks have counted."""
        numbers: dict[str, dict[str, Any]] = {}
        arrays = []
        for key, callback, names in _counting(callbacks):
            values = {name: getattr(callback, name) for name in names if hasattr(callback, name)}
            weights = values.pop("best_weights", None) or []
            arrays += [(f"callbacks/{key}/best_weights/{number:05}", array) for number, array in enumerate(weights)]
            numbers[key] = values
        return cls(numbers, arrays)

    @classmethod
    def saved(cls, saved: Saved) -> Counters:
        """What callbacks had counted when a state was saved."""
        names = [name for name in saved.arrays if name.startswith("callbacks/")]
        return cls(saved.state["callbacks"], [(name, saved.arrays[name]) for name in names])

    def restore(self, callbacks: Iterable[Any]) -> None:
        """Have callbacks go on counting: those that were there before, known by their class and order."""
        for key, callback, names in _counting(callbacks):
            for name, value in self.numbers.get(key, {}).items():
                if name in names:
                    setattr(callback, name, value)
            weights = [array for name, array in self.arrays if name.startswith(f"callbacks/{key}/best_weights/")]
            if weights:
                callback.best_weights = weights


def _counting(callbacks: Iterable[Any]) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """A name for each callback of Keras's that counts, itself, and the attributes in which it does."""
    seen: Counter[str] = Counter()
    for callback in callbacks:
        for kind, names in COUNTED.items():
            if isinstance(callback, kind):
                yield f"{kind.__name__}-{seen[kind.__name__]}", callback, names
                seen[kind.__name__] += 1
