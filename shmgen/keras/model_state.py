"""Everything that training changes in a model, for a saved state: variables, buffers, optimizers, random numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator
from keras.src.saving.keras_saveable import KerasSaveable

from shmgen.errors import InputError
from shmgen.keras.state_folder import Saved, kind_of

log = logging.getLogger("shmgen")

RANDOM = "random"
"""The first part of the names of random states that belong to no model."""

METRICS = "metrics"
"""The first part of the names of metrics' variables."""

GLOBAL_SEED = "other/keras.random"
"""The name of the state of `keras.random` without a seed."""

BACKEND = keras.backend.backend()

PARTS: tuple[type, ...] = (KerasSaveable, keras.random.SeedGenerator, keras.optimizers.schedules.LearningRateSchedule)
"""Objects whose attributes are searched: layers, losses, metrics, optimizers and the like."""

NATIVE: tuple[type, ...] = ()
"""Classes of the backend's own variables, which Keras does not list."""

UNKNOWN: tuple[type, ...] = ()
"""Classes of objects whose state can't be saved."""

if BACKEND == "tensorflow":
    import tensorflow as tf

    PARTS += (tf.Module, tf.random.Generator)
    NATIVE += (tf.Variable,)
elif BACKEND == "torch":
    import torch

    PARTS += (torch.nn.Module,)
    UNKNOWN += (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.Generator)


class Cell(NamedTuple):
    """A variable or tensor of a model, of Keras's or the backend's; where it is, for errors; and how to give it another value."""

    path: str
    value: Any
    assign: Callable[[np.ndarray], object]

    @property
    def kind(self) -> list[Any]:
        """Its dtype and shape."""
        return [keras.backend.standardize_dtype(self.value.dtype), list(self.value.shape)]

    def read(self) -> Any:
        """A copy of its value, an array."""
        return keras.ops.convert_to_numpy(self.value)


class Found(NamedTuple):
    """The cells of a model, by names that begin with the kind of the owner; and its optimizers, by their paths as attributes."""

    cells: dict[str, Cell]
    optimizers: dict[str, Any]

    def trained(self, model: Any) -> dict[str, list[int] | None]:
        """For each optimizer that is built, the variables of the model that it trains; None if some are not the model's."""
        numbers = {id(variable): number for number, variable in enumerate(model.variables)}
        trains: dict[str, list[int] | None] = {}
        for path, optimizer in self.optimizers.items():
            if optimizer.built:
                own = [numbers.get(id(variable)) for variable in getattr(optimizer, "_trainable_variables", [None])]
                trains[path] = None if None in own else own  # type: ignore[assignment]
        return trains


def find(model: Any) -> Found:
    """Search a model, its layers, losses and optimizers; an InputError if the state of something in it can't be saved."""
    leaves = list(_search(model, "", set()))
    optimizers = {path: leaf for path, leaf in leaves if isinstance(leaf, keras.optimizers.Optimizer)}
    groups = {"model": model.variables}
    groups |= {f"optimizers/{path}": optimizer.variables for path, optimizer in optimizers.items()}
    groups |= {METRICS: model.metrics_variables}
    cells: dict[str, Cell] = {}
    known: set[int] = set()
    for group, variables in groups.items():
        for number, variable in enumerate(variables):
            # An optimizer that wraps another has the other's variables.
            if id(variable) not in known or group == METRICS:
                cells[f"{group}/{number:05}"] = Cell(variable.path, variable, variable.assign)
                known.add(id(variable))
    for path, leaf in leaves:
        if isinstance(leaf, UNKNOWN):
            raise InputError(
                f"Resume: the model has a {type(leaf).__name__}, as attribute {path}, whose state can't be saved: "
                "train with an optimizer of Keras's, or save the state of the run in a loop of your own"
            )
        if id(leaf) not in known and path not in optimizers:
            known.add(id(leaf))
            assign = leaf.assign if hasattr(leaf, "assign") else partial(_copy_into, leaf)
            cells[f"other/{path}"] = Cell(path, leaf, assign)
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    if generator is not None:
        cells[GLOBAL_SEED] = Cell("keras.random", generator.state, generator.state.assign)
    return Found(cells, optimizers)


def _search(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """All variables, buffers, optimizers and unknown objects that attributes lead to, each once, with its path."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (keras.Variable, *NATIVE, *UNKNOWN)):
        yield path, value
        return
    if isinstance(value, keras.optimizers.Optimizer):
        yield path, value
    if isinstance(value, dict):
        parts: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    elif isinstance(value, PARTS):
        parts = vars(value).items()
        if BACKEND == "torch" and isinstance(value, torch.nn.Module):
            yield from ((_join(path, name), buffer) for name, buffer in value._buffers.items() if buffer is not None)
    else:
        return
    for name, part in list(parts):
        # TensorFlow's attributes of these names repeat others.
        if isinstance(name, str | int) and not str(name).startswith("_self_"):
            yield from _search(part, _join(path, name), seen)


def _join(path: str, name: object) -> str:
    return f"{path}.{name}".lstrip(".").replace("/", "|")


def _copy_into(tensor: Any, value: np.ndarray) -> None:
    """Give a buffer of torch's another value."""
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.array(value)))


def random_states() -> list[tuple[str, np.ndarray]]:
    """The states of the backend's random generators that Keras's layers draw from, if they are not variables: torch's."""
    if BACKEND != "torch":
        return []
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    return [(f"{RANDOM}/{device:05}", state.numpy()) for device, state in enumerate(states)]


def set_random_states(states: list[np.ndarray]) -> None:
    """Restore what `random_states` returned. Additional devices are left as they are."""
    if states and BACKEND == "torch":
        cpu, *devices = map(torch.from_numpy, states)
        torch.set_rng_state(cpu)
        for device, state in enumerate(devices[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)


def match(model: Any, data: Any, saved: Saved) -> list[tuple[Cell, np.ndarray]]:
    """The cells of a compiled model, each with its value in ``saved``. Nothing is assigned yet."""
    failure = _build(model, data, saved)
    cells, optimizers = find(model)
    kinds = {name: kind_of(one) for name, one in saved.arrays.items() if not name.startswith(("callbacks/", f"{RANDOM}/"))}
    # An optimizer that was not yet built when the state was saved still had its initial values.
    later = tuple(f"optimizers/{path}/" for path in optimizers if path not in saved.state["optimizers"])
    for name in sorted({*kinds, *cells}):
        expected, found = kinds.get(name), cells[name].kind if name in cells else None
        may_differ = name.startswith((f"{METRICS}/", *later)) or (name == GLOBAL_SEED and expected is None)
        if found != expected and not may_differ:
            shown = ["none" if kind is None else f"{kind[0]}{kind[1]}" for kind in (expected, found)]
            path = f" ({cells[name].path})" if name in cells else ""
            raise InputError(
                f"{saved.path}: variable {name}{path}: expected {shown[0]}, as it was saved, found {shown[1]}; give the model, "
                "optimizers and dtype policy of then, with the model and its optimizers built before fit(), or give Resume "
                "another folder"
            ) from failure
    if any(name not in cells for name in kinds):
        log.info("%s: metrics of the interrupted epoch begin anew, since they could not be built: %s", saved.path, failure)
    return [(cell, saved.arrays[name]) for name, cell in cells.items() if cell.kind == kinds.get(name)]


def _build(model: Any, data: Any, saved: Saved) -> Exception | None:
    """Make what the first step of ``fit`` would make: variables, optimizers, metrics, a generator; the error if it can't."""
    failure = None
    try:
        # As `fit` does on JAX and torch before it trains.
        model._symbolic_build(data_batch=data[0])
    except Exception as error:
        failure = error
    optimizers = find(model).optimizers
    for path, numbers in saved.state["optimizers"].items():
        optimizer = optimizers.get(path)
        if optimizer is None or optimizer.built:
            continue
        variables = model.variables
        if numbers is not None and max(numbers, default=0) < len(variables):
            optimizer.build([variables[number] for number in numbers])
        elif path == "optimizer":
            optimizer.build(model.trainable_variables)
    if GLOBAL_SEED in saved.arrays:
        global_seed_generator()
    return failure
