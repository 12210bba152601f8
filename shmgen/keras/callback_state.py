"""The counters of callbacks, which belong to a saved state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from shmgen.keras.state_folder import Saved

COUNTED: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
    keras.callbacks.History: ("epoch", "history"),
}
"""Attributes in which Keras's callbacks count. Most are reset in ``on_train_begin``, so these are restored after it."""

SWAPPED: dict[type, tuple[str, ...]] = {keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",)}
"""Attributes that ``on_epoch_begin`` reads, so these are restored before it."""


def counted(callbacks: Iterable[Any]) -> tuple[dict[str, dict[str, Any]], list[tuple[str, np.ndarray]]]:
    """The counters of callbacks: numbers, by callback and attribute, as JSON; and arrays, each with a name of its own."""
    numbers: dict[str, dict[str, Any]] = {}
    arrays = []
    for key, callback, names in _counting(callbacks, COUNTED | SWAPPED):
        values = {name: getattr(callback, name) for name in names if hasattr(callback, name)}
        weights = values.pop("best_weights", None) or []
        arrays += [(f"callbacks/{key}/best_weights/{number:05}", array) for number, array in enumerate(weights)]
        numbers[key] = _plain(values)
    return numbers, arrays


def restore(callbacks: Iterable[Any], saved: Saved, attributes: dict[type, tuple[str, ...]]) -> None:
    """Give these attributes of callbacks their saved values. A callback is known by its class and its number in the class."""
    for key, callback, names in _counting(callbacks, attributes):
        for name, value in saved.state["callbacks"].get(key, {}).items():
            if name in names:
                setattr(callback, name, value)
        weights = [array for name, array in saved.arrays.items() if name.startswith(f"callbacks/{key}/best_weights/")]
        if weights:
            callback.best_weights = weights


def _counting(callbacks: Iterable[Any], attributes: dict[type, tuple[str, ...]]) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """Each callback of Keras's that counts: a name for it, itself, and the attributes in which it counts."""
    seen: Counter[str] = Counter()
    for callback in callbacks:
        for kind, names in attributes.items():
            if isinstance(callback, kind):
                yield f"{kind.__name__}-{seen[kind.__name__]}", callback, names
                seen[kind.__name__] += 1


def _plain(value: Any) -> Any:
    """A value for JSON: a number or list for an array, a tensor or a variable; for anything unknown, its text."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return array.tolist() if array.dtype.kind in "biufV" else str(value)
    except Exception:
        return str(value)
