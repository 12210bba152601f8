"""Random numbers for the user's functions: the same with any number of workers, and different for every sample and epoch."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISpawnableSeedSequence


class SampleRng:
    """Random numbers that depend on the seed, the epoch and a sample's position in it; not on which worker draws, or when.

    For each sample the global generators of `random`, `numpy.random` and, once it is imported, torch (on the CPU) are seeded too.
    With ``outside``, for functions that several threads call at once, it draws other numbers and seeds no global generators.
    """

    def __init__(self, seed: int, *, outside: bool = False) -> None:
        self._seed = seed
        self._outside = outside
        self._seed_sequence = SampleSeedSequence()
        self._rng = np.random.Generator(np.random.PCG64(self._seed_sequence))  # type: ignore[arg-type]
        self._key: tuple[int, np.ndarray] = (-1, np.zeros(2, np.uint64))

    def for_samples(self, epoch: int, position: int, count: int) -> Iterator[np.random.Generator]:
        """A generator for each of ``count`` samples, from ``position`` in the epoch on; valid until the next is taken."""
        if self._key[0] != epoch:
            self._key = epoch, np.random.SeedSequence([self._seed, epoch, *[1] * self._outside]).generate_state(2, np.uint64)
        # Philox is counter-based: its words for a position do not depend on where it begins. Each sample gets four.
        words = np.random.Philox(key=self._key[1], counter=position).random_raw(4 * count).tolist()
        bits, seed_sequence = self._rng.bit_generator, self._seed_sequence
        seed_python, seed_numpy = random.seed, np.random.seed
        state: dict[str, Any] = {"bit_generator": "PCG64", "state": {}, "has_uint32": 0, "uinteger": 0}
        for first in range(0, len(words), 4):
            high, low, stream, other = words[first : first + 4]
            state["state"] = {"state": high << 64 | low, "inc": stream << 64 | other | 1}
            bits.state = state
            seed_sequence.words, seed_sequence.children = (high, low, stream, other), 0
            if not self._outside:
                seed_numpy(stream & 0xFFFFFFFF)
                seed_python(other)
                _TorchFinder.seed = other
                if (torch := sys.modules.get("torch")) is not None:
                    torch.default_generator.manual_seed(other)
            yield self._rng


class SampleSeedSequence(ISpawnableSeedSequence):
    """Seeds the generators that a sample's generator spawns, so that they, too, depend on the sample alone."""

    words: tuple[int, ...] = (0,)
    children = 0

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.random.SeedSequence(self.words).generate_state(n_words, dtype)

    def spawn(self, n_children: int) -> list[np.random.SeedSequence]:  # type: ignore[override]
        first = self.children
        self.children += n_children
        return [np.random.SeedSequence(self.words, spawn_key=(number,)) for number in range(first, self.children)]


class LateSeeded(random.Random):
    """A generator that is seeded when first drawn from. Most functions draw nothing, and take less time than seeding."""

    _pending_seed: tuple[Any, int] | None = None

    def seed(self, a: Any = None, version: int = 2) -> None:
        self._pending_seed = a, version
        self.gauss_next = None  # `gauss` makes two numbers at a time and keeps the second, which comes from the previous seed

    def random(self) -> float:
        self._seed_now()
        return super().random()

    def getrandbits(self, k: int, /) -> int:
        self._seed_now()
        return super().getrandbits(k)

    def getstate(self) -> tuple[Any, ...]:
        self._seed_now()
        return super().getstate()

    def setstate(self, state: tuple[Any, ...]) -> None:
        self._pending_seed = None
        super().setstate(state)

    def _seed_now(self) -> None:
        if self._pending_seed is not None:
            pending, self._pending_seed = self._pending_seed, None
            super().seed(*pending)


def seed_late() -> None:
    """Replace `random`'s global generator by a `LateSeeded` one; to be called before a function of it is imported by name."""
    late = LateSeeded()
    for name in random.__all__:
        if getattr(getattr(random, name), "__self__", None) is random._inst:
            setattr(random, name, getattr(late, name))
    random._inst = late
    sys.meta_path.insert(0, _TorchFinder())


class _TorchFinder:
    """Seeds torch for the sample during which a function of the user's imports it."""

    seed = 0

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec: Any = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_seed(module: Any) -> None:
                execute(module)
                module.default_generator.manual_seed(self.seed)

            spec.loader.exec_module = execute_and_seed
        return spec


@contextmanager
def own_random_state() -> Iterator[None]:
    """Restore the caller's global random states at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    of_torch = None if torch is None else torch.get_rng_state()
    finder = _TorchFinder()
    if torch is None:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
        random.setstate(python)
        np.random.set_state(numpy)
        if torch is not None:
            torch.set_rng_state(of_torch)
