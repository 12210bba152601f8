"""`shmgen.jax`, and plain JAX loops over a `Loader`: no copies, no batch overwritten in use, and no needless waits for slots."""

from __future__ import annotations

import gc
import os
from typing import Any

import numpy as np
import pytest
from conftest import wait_until
from ways import in_a_ring

if os.environ.get("KERAS_BACKEND") != "jax":
    pytest.skip("JAX has a process of its own: KERAS_BACKEND=jax", allow_module_level=True)

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from shmgen import InputError, Loader, Values
from shmgen._engine.held_slots import HeldSlots
from shmgen.jax import Arrays
from shmgen.keras.backends import FRONT_END

pytestmark = pytest.mark.usefixtures("poison")

N = 40

DEVICE = jax.devices()[0]
SHARDING = NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec("batch"))

PLACES = pytest.mark.parametrize("place", [None, DEVICE, SHARDING], ids=["default", "device", "sharding"])


def made(samples: int = N, **options: Any) -> Loader:
    """A loader of rows of 16 x 16 float32, full of the id, which is also the label; half a batch is a multiple of 64 bytes."""
    arguments = {"source": lambda id: np.full((16, 16), id, np.float32), "workers": 1}
    return Loader(range(samples), targets=Values(np.arange(samples, dtype=np.int32)), batch_size=4, **{**arguments, **options})


def shares_a_ring(array: Any) -> bool:
    """Whether all parts of ``array`` are in a ring's memory."""
    return all(in_a_ring(part.data.unsafe_buffer_pointer()) for part in array.addressable_shards)


@PLACES
def test_batches_are_the_rings_memory(place: Any) -> None:
    """Arrays are the ring's memory, on the given devices, in the loader's order, and the ring does not grow."""
    with made(slots=2) as loader, made(workers=0) as same:
        for _ in range(2):
            expected = [y.tolist() for _, y in same]
            found = []
            for X, y in Arrays(loader, place):
                assert isinstance(X, jax.Array)
                assert X.sharding.device_set == (SHARDING.device_set if place is SHARDING else {DEVICE})
                assert shares_a_ring(X)
                assert (y[:, None, None] == X).all()
                found.append(y.tolist())
            assert found == expected
        assert loader.stats.grown == 0


def test_one_batch_is_sent_ahead() -> None:
    """While one batch is in use, the next is already on its way; the state counts only batches that were returned."""
    with made() as loader:
        arrays = Arrays(loader, DEVICE)
        batches = iter(arrays)
        for count in range(1, 10):
            next(batches)
            assert loader.stats.batches == count + 1
            assert arrays.state_dict()["consumed"] == 4 * count
        next(batches)
        assert next(batches, None) is None
        assert (arrays.state_dict()["epoch"], arrays.state_dict()["consumed"]) == (1, 0)


@pytest.mark.parametrize("taken", [1, 7, 10])
def test_state_and_resume(taken: int) -> None:
    """Another loader resumes after the batches that were returned, however far the first one was ahead."""
    with made() as loader, made(workers=0) as other, made(workers=0) as same:
        epochs = [[y.tolist() for _, y in same] for _ in range(2)]
        arrays, resumed = Arrays(loader, SHARDING), Arrays(other)
        batches = iter(arrays)
        for _ in range(taken):
            next(batches)
        resumed.load_state_dict(arrays.state_dict())
        assert [y.tolist() for _, y in resumed] == (epochs[0][taken:] or epochs[1])


@PLACES
def test_held_arrays_keep_their_values(place: Any) -> None:
    """Arrays, their slices in JAX, and their NumPy views keep their values while they are held, also after `close`."""
    with made(slots=3) as loader:
        held = [(X, X[1:], np.asarray(X), y.tolist()) for X, y in Arrays(loader, place)]
        for _ in loader:
            pass
    for X, part, array, labels in held:
        assert X[:, 0, 0].tolist() == array[:, 3, 3].tolist() == labels
        assert part[:, 2, 2].tolist() == labels[1:]


def test_a_donated_batch_is_not_written_to() -> None:
    """A step that may reuse its argument's memory for the result does not write into the ring's memory."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    with made() as loader:
        for (X, y), (same, _) in zip(Arrays(loader), [(X, y) for X, y in made(workers=0)], strict=True):
            view = np.asarray(X)
            result = step(X)
            assert (view == same).all()
            assert (result == y[:, None, None] + 1).all()


def test_structure_and_dtypes() -> None:
    """Arrays come in the loader's dicts and tuples; dtypes that JAX does not have are converted."""
    one, two = Values(np.arange(N), dtype="uint8"), Values(np.arange(N), dtype="float64")
    with Loader(range(N), inputs={"one": one, "two": [two, two]}, targets=one, weights=two, batch_size=4, workers=0) as loader:
        for place in (None, SHARDING):
            inputs, target, weights = next(iter(Arrays(loader, place)))
            assert inputs["one"].dtype == target.dtype == jnp.uint8
            assert [array.dtype for array in inputs["two"]] == [jnp.float32] * 2
            assert (inputs["two"][0] == target).all()
            assert (weights == target).all()
    with pytest.raises(InputError, match=r"expected a shmgen.Loader, found \[1\]"):
        Arrays([1])  # type: ignore[arg-type]


def count_late(wrong: Any, x: Any, y: Any) -> Any:
    """Count wrong batches, after a computation that takes longer than requesting the next batch."""
    busy = jax.lax.fori_loop(0, 20, lambda _, v: jnp.sin(v @ v) / 2, jnp.ones((64, 64)) + wrong)
    right = (x.reshape(len(x), -1) == y[:, None]).all() & jnp.isfinite(busy.sum())
    return wrong + jnp.where(right, 0.0, 1.0)


late = jax.jit(count_late)


@pytest.mark.parametrize("as_arrays", [False, True])
def test_late_reads_by_jax_get_the_right_bytes(as_arrays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of 500 batches are right, and while the loader waits for a slot, it makes JAX release the batches that it has used.

    For that, it collects only the youngest garbage, which takes microseconds; other garbage collection is off here.
    """
    wrong = late(jnp.float32(0), np.zeros((4, 16, 16), np.float32), np.zeros(4, np.int32))
    pushes: list[int] = []
    push = HeldSlots.push

    def after_all_is_done(self: HeldSlots, generation: int) -> None:
        """Once JAX has executed all steps, pushes free every slot except that of the loop's current batch."""
        jax.block_until_ready(wrong)
        pushes.append(generation)

        def are_free() -> bool:
            push(self, generation)
            return self._ring.held <= 2  # the current batch, and one that is being delivered

        wait_until(are_free, "JAX has released the batches that it has used")

    gc.collect()
    gc.disable()
    try:
        with made(2000, slots=2, workers=2, source=lambda id: np.full((16, 16), id, np.float32)) as loader:
            monkeypatch.setattr(HeldSlots, "push", after_all_is_done)
            for count, (x, y) in enumerate(Arrays(loader) if as_arrays else loader):
                if count == 300:
                    monkeypatch.setattr(HeldSlots, "push", push)
                wrong = late(wrong, x, y)
            del x, y
            stats = loader.stats
    finally:
        gc.enable()
    assert float(wrong) == 0
    assert stats.batches == 500
    assert stats.grown == 0
    assert set(pushes) == {0}


@pytest.mark.parametrize("numbers", [np.array([0, 2**31]), np.array([-(2**31) - 1, 0]), np.array([0, 2**32], np.uint64)])
def test_ints_that_jax_would_wrap_are_refused(numbers: np.ndarray) -> None:
    """Ints that do not fit in JAX's 32 bits are an error, in loops and in ``fit``, unless JAX has 64 bits."""
    with Loader(range(2), Values(numbers), 2, source=Values(np.zeros((2, 1))), workers=0) as loader:
        with pytest.raises(InputError, match=r"expected numbers that JAX's u?int32 holds, found .* in dtype u?int64: call jax"):
            next(iter(Arrays(loader)))
        with pytest.raises(InputError, match="expected numbers that JAX's"):
            FRONT_END.hand_over(loader.batch(0))
        with jax.enable_x64(True):
            assert sorted(next(iter(Arrays(loader)))[1].tolist()) == sorted(numbers.tolist())
    with Loader(range(2), Values(np.array([-(2**31), 2**31 - 1])), 2, source=Values(np.zeros((2, 1))), workers=0) as loader:
        assert sorted(next(iter(Arrays(loader)))[1].tolist()) == [-(2**31), 2**31 - 1]
