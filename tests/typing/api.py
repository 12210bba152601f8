"""The public names in typical uses; checked by `make lint`, and never run.

A line that must be a type error has ``# type: ignore[...]``. If it is no longer an error, the checkers report that comment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pandas as pd

import shmgen
from shmgen import (
    Damaged,
    Function,
    Hdf5,
    Images,
    Loader,
    Npy,
    NpyRows,
    Npz,
    Sequence,
    Source,
    SourceField,
    Stats,
    Tuning,
    Values,
    class_weights,
    image_folder,
    split,
    tune,
)

ids = ["id-0", "id-1"]
by_id = {"id-0": 0, "id-1": 1}


# The blog's call
params: dict[str, Any] = {"dim": (32, 32, 32), "batch_size": 64, "n_classes": 6, "n_channels": 1, "shuffle": True}
training = Sequence(ids, by_id, **params)
validation = Sequence(ids, by_id, 64, (32, 32, 32), 1, 6, False)
keyed = Sequence(list_IDs=ids, labels=by_id, batch_size=64, dim=32, n_channels=None, n_classes=None, shuffle=False)


# Ids.
Sequence(np.array(ids))
Sequence(pd.Series(ids))
Loader(range(1000))
Loader((1, 2, 3))
Loader(Path(name) for name in ids)
Sequence(5)  # type: ignore[arg-type]
Sequence()  # type: ignore[call-arg]


# Labels of all kinds.
def label_of(id: str) -> int:
    return len(id)


class Table:
    """Has the methods of a mapping, but is no Mapping."""

    def keys(self) -> Iterator[str]:
        return iter(ids)

    def __getitem__(self, id: str) -> int:
        return 0


rows: Mapping[str, np.ndarray] = {"id-0": np.zeros(3), "id-1": np.ones(3)}
Sequence(ids, [0, 1])
Sequence(ids, (0, 1))
Sequence(ids, ["cat", "dog"], classes=["cat", "dog"])
Sequence(ids, ["cat", "dog"], classes="sorted")
Sequence(ids, np.array([0, 1]))
Sequence(ids, pd.Series([0, 1]))
Sequence(ids, pd.Series([0, 1], index=ids))
Sequence(ids, rows)
Sequence(ids, Table())
Sequence(ids, label_of)
Sequence(ids, lambda id: 0)
Sequence(ids, Values(by_id, n_classes=2))
Sequence(ids, Npy("masks"))
Sequence(ids, {"class": by_id, "mask": Npy("masks")})
Sequence(ids, None)
Loader(ids, np.array([0, 1]))
Sequence(ids, 5)  # type: ignore[arg-type]


# Images, windows, and which samples are drawn.
partition, numbers, names = image_folder("pets", validation_split=0.2)
assert_type(partition, dict[str, list[str]])
assert_type(numbers, dict[str, int])
assert_type(names, list[str])
Sequence(partition["train"], numbers, source=Images("pets", (224, 224), "L", "pad"))
Loader(ids, source=Images("photos", mode="RGBX"))  # type: ignore[arg-type]
Loader(ids, source=Images("photos", resize="fit"))  # type: ignore[arg-type]
Loader(range(len(NpyRows("series.npy", window=8))), source=NpyRows("series.npy", window=8, stride=2, offset=1))
Loader(ids, sampling_weights={"id-0": 1.0, "id-1": 2})
Loader(ids, sampling_weights=np.ones(2))
Loader(ids, sampling_weights=lambda id: 1.0)
Loader(ids, sampling_weights=5)  # type: ignore[arg-type]
Loader(ids, source=Hdf5("all.h5", "{id}/image"))


# Wrong names and types.
Sequence(ids, by_id, bach_size=2)  # type: ignore[call-arg]
Loader(ids, by_id, bach_size=2)  # type: ignore[call-arg]
tune(ids, by_id, bach_size=2)  # type: ignore[call-arg]
Sequence(ids, by_id, "2")  # type: ignore[arg-type]
Sequence(ids, by_id, batch_size="2")  # type: ignore[arg-type]
Loader(ids, by_id, batch_size="2")  # type: ignore[arg-type]
tune(ids, by_id, batch_size="2")  # type: ignore[arg-type]
Sequence(ids, by_id, batch_size=None)  # type: ignore[arg-type]
Sequence(ids, by_id, dim="32")  # type: ignore[arg-type]
Sequence(ids, by_id, workers="many")  # type: ignore[arg-type]
Sequence(ids, by_id, on_error="ignore")  # type: ignore[arg-type]
Sequence(ids, by_id, timeout="5")  # type: ignore[arg-type]
Sequence(ids, by_id, data_dir=3)  # type: ignore[arg-type]
Sequence(ids, by_id, 2, 32, 1, 6, True, None)  # type: ignore[call-arg]
Loader(ids, by_id, use_multiprocessing=True)  # type: ignore[call-arg]


# Sources, transforms, and the other options.
class Volumes(Source):
    shape = (4, 4)
    dtype = "float32"

    def read(self, id: Any, row: np.ndarray) -> None:
        row[...] = 1


class Pairs(Source):
    fields = {"image": ((4, 4), "float32"), "label": ((), "int64")}  # noqa: RUF012

    def read(self, id: Any, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        return {"image": np.zeros((4, 4)), "label": 0}

    def fill(self, ids: Any, rows: dict[str, np.ndarray]) -> None:
        rows["label"][:] = 0


def load(id: str) -> np.ndarray:
    return np.zeros((4, 4))


def both(id: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    return rng.random(3), 0


npz = Npz("archives")
tokens = Npy("tokens", dim=100, pad_value=0)
assert_type(npz["image"], SourceField)
assert_type(npz["image"].shaped(32, 3, "float32", pad_value=0.5), SourceField)
assert_type(tokens.length, SourceField)
assert_type(npz["image"].mask, SourceField)
Sequence(ids, npz["label"], source=npz["image"])
Sequence(ids, inputs=tokens, targets=Pairs()["label"], weights=tokens.mask, pad_value=None)
Sequence(ids, source=both)
Sequence(ids, source=Function(both, pad_value=1)["image"])
Sequence(ids, inputs=npz)
Npy("tokens", dim=100, pad_value="0")  # type: ignore[arg-type]


def flip(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x[::-1]


def brighten(sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    sample["image"] += rng.random()


def normalise(x: np.ndarray, rng: np.random.Generator) -> None:
    x /= 255


by_field: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {"image": flip}
Sequence(ids, by_id, source=Volumes())
Sequence(ids, by_id, source=load, dim=(4, 4), n_channels=1, dtype=np.float32)
Sequence(ids, by_id, source=Function(load), transform=flip)
Sequence(ids, inputs=Npy("images"), targets=Npy("masks"), weights={"id-0": 0.5, "id-1": 1.0})
Sequence(ids, inputs={"image": Npy("images", dtype="uint8"), "age": by_id}, targets=(Values(by_id), label_of))
Sequence(ids, inputs=(Npy("images"), NpyRows("rows.npy")), transform=brighten)
Sequence(ids, inputs={"image": Npy("images"), "age": by_id}, transform=by_field)
Sequence(ids, inputs={"image": Npy("images"), "age": by_id}, transform={"image": normalise})
Sequence(ids, by_id, data_dir=Path("data"), dtype="float32", workers="auto", slots=None, seed=1, epoch=2, tail="keep")
Sequence(ids, by_id, data_dir=None, workers=0, on_error="replace", max_damaged=0.5, timeout=None)
Sequence(ids, by_id, use_multiprocessing=True, max_queue_size=10)
Sequence(ids, by_id, source=5)  # type: ignore[arg-type]
Sequence(ids, by_id, transform=5)  # type: ignore[arg-type]


# Results
with Loader(ids, by_id) as loader:
    for X, y in loader:
        print(X.mean(), y.mean())
    assert_type(len(loader), int)
    assert_type(loader.batch_size, int)
    assert_type(loader.dim, tuple[int, ...] | None)
    assert_type(loader.stats, Stats)
    assert_type(loader.stats.epoch, Stats | None)
    assert_type(shmgen.keras.DataWait(), shmgen.keras.DataWait)
    assert_type(loader.damaged, tuple[Damaged, ...])
    assert_type(loader.error, Exception | None)
    assert_type(loader.batch(0), tuple[Any, ...])
    loader.batch("0")  # type: ignore[arg-type]
    loader.batch_size = 3  # type: ignore[assignment]

    tensors, arrays = shmgen.torch.Tensors(loader), shmgen.jax.Arrays(loader, to_device=None)
    assert_type((len(tensors), len(arrays)), tuple[int, int])
    assert_type((tensors.state_dict(), arrays.state_dict()), tuple[dict[str, Any], dict[str, Any]])
    shmgen.torch.Tensors(by_id)  # type: ignore[arg-type]
    shmgen.jax.Arrays(by_id)  # type: ignore[arg-type]

with Sequence(ids, by_id) as sequence:
    assert_type(sequence, Sequence)
    assert_type(sequence[0], tuple[Any, ...])
    assert_type(sequence.stats, Stats)
    shmgen.keras.Resume("states", sequence)
    shmgen.keras.Resume(Path("states"), sequence, 100, keep=3)
    shmgen.keras.Resume("states", sequence, every_minutes=2.5)
    shmgen.keras.Resume("states")  # type: ignore[call-arg]
    shmgen.keras.Resume("states", sequence, "500")  # type: ignore[arg-type]


# Measuring.
assert_type(tune(ids, by_id, 64, step_ms=25, workers=range(5), seconds=1, cold=True, progress=print), Tuning)
tune(ids, by_id, workers=2)  # type: ignore[arg-type]
tune(ids, by_id, step_ms="25")  # type: ignore[arg-type]


# A subclass of the user's own.
class Shorter(Sequence):
    def __init__(self, ids: list[str], steps: int) -> None:
        super().__init__(ids, by_id, batch_size=32)
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return super().__getitem__(index)


class Same(Sequence):
    pass


Shorter(ids, steps=3)
Shorter(ids, batch_size=3)  # type: ignore[call-arg]
Same(ids, by_id, batch_size=2)
Same(ids, by_id, batch_size="2")  # type: ignore[arg-type]


# Before there is a loader.
training_ids, validation_ids = split(ids, by_id, 0.2, stratify=True, groups=lambda id: id[0])
assert_type(training_ids, list[Any])
split(ids, fraction=0.5, seed=1)
split(ids, stratify="yes")  # type: ignore[arg-type]
assert_type(class_weights(ids, ["cat", "dog"], classes="sorted"), dict[int, float])
assert_type(image_folder("new", labels=False).ids, list[str])
