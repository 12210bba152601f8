"""The order of an epoch: any part of it is computed at the same small cost, for any number of samples.

It is computed with 64-bit integers alone, by the rules below. So it never changes with the version of Python or NumPy.
"""

from __future__ import annotations

import math

import numpy as np

MAX_SORTED = 1 << 16
"""Up to this number of samples are sorted by their hashes, in some milliseconds: the network would not shuffle so few well."""

BLOCK_POSITIONS = 1 << 13
"""Positions computed at once: enough to make NumPy's overhead small, few enough to fit a processor's cache."""

MAX_BLOCKS = 4
"""Blocks that are kept: a batch may lie in two of them, and its replacements in others."""

ROUNDS = 8
"""Rounds of the network; with fewer than 6, statistical tests fail."""

GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of splitmix64 (Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014)."""

WORD = (1 << 64) - 1


class Positions:
    """A sample for each of ``samples`` positions, computed when needed, ``block_size`` of them at once."""

    def __init__(self, samples: int, block_size: int) -> None:
        self.samples = samples
        self._block_size = block_size
        self._blocks: dict[int, np.ndarray] = {}

    def _computed(self, first: int, last: int) -> np.ndarray:
        """The samples at the positions of a block, ``first`` to ``last - 1``, as a new array."""
        raise NotImplementedError

    def part(self, first: int, last: int) -> np.ndarray:
        """The samples at positions ``first`` to ``last - 1``: int64, read-only."""
        if first >= last:
            return np.empty(0, np.int64)
        size = self._block_size
        number, start = divmod(first, size)
        if last <= (number + 1) * size:
            return self._block(number)[start : start + last - first]
        found = np.concatenate([self._block(number) for number in range(number, (last - 1) // size + 1)])
        found = found[start : start + last - first]
        found.flags.writeable = False
        return found

    def _block(self, number: int) -> np.ndarray:
        block = self._blocks.get(number)
        if block is None:
            first = number * self._block_size
            block = self._computed(first, min(first + self._block_size, self.samples))
            block.flags.writeable = False
            while len(self._blocks) >= MAX_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[number] = block
        return block


class Order(Positions):
    """The samples of one epoch, fewer than 2⁶³, in its order: a permutation. ``seed`` is an int from 0, of any size."""

    def __init__(self, samples: int, seed: int, epoch: int) -> None:
        self._key = hash_of(seed, epoch)
        self._network = None if samples <= MAX_SORTED else _Network(samples, seed, epoch)
        super().__init__(samples, samples if self._network is None else BLOCK_POSITIONS)

    def _computed(self, first: int, last: int) -> np.ndarray:
        positions = np.arange(first, last, dtype=np.uint64)
        if self._network is None:
            # No two hashes are equal, so there is one way to sort them.
            return np.argsort(hashes(positions, self._key), kind="stable").astype(np.int64, copy=False)
        return self._network.permuted(positions).view(np.int64)


class _Network:
    """A generalised Feistel network (Black and Rogaway, Ciphers with arbitrary finite domains, 2002).

    A position is written as a pair of numbers, below a = ⌈√samples⌉ and b = ⌈samples / a⌉. A round adds a hash of one number to
    the other, which can be undone, so no two positions give the same pair. Fewer than 1 in 256 of the a·b pairs stand for no
    sample; a position that lands on one goes through the network again.
    """

    def __init__(self, samples: int, seed: int, epoch: int) -> None:
        self._samples = samples
        self._a = math.isqrt(samples - 1) + 1
        self._b = -(-samples // self._a)
        self._keys = [hash_of(seed, epoch, number) for number in range(ROUNDS)]

    def permuted(self, positions: np.ndarray) -> np.ndarray:
        """The samples at these positions, as uint64."""
        samples = self._once(positions)
        while (left := np.flatnonzero(samples >= self._samples)).size:
            samples[left] = self._once(samples[left])
        return samples

    def _once(self, numbers: np.ndarray) -> np.ndarray:
        size, other_size = np.uint64(self._a), np.uint64(self._b)
        right, left = np.divmod(numbers, size)
        for key in self._keys:
            change = _below(size, hashes(right, key))
            change += left
            # Modulo `size`: where `change` is below it, the difference wraps around, and is the larger one.
            left, right = right, np.minimum(change, change - size)
            size, other_size = other_size, size
        right *= size
        right += left
        return right


def hash_of(*numbers: int) -> int:
    """A hash of 64 bits of ints from 0, of any size."""
    state = 0
    for number in numbers:
        words = [number >> shift & WORD for shift in range(0, number.bit_length(), 64)]
        for word in (len(words), *words):
            state = _finalised((state + GAMMA & WORD) ^ word)
    return state


def _finalised(word: int) -> int:
    """splitmix64's finaliser: each bit of the result depends on each bit of ``word``; no two words give the same."""
    word = (word ^ word >> 30) * FIRST & WORD
    word = (word ^ word >> 27) * SECOND & WORD
    return word ^ word >> 31


def hashes(numbers: np.ndarray, key: int) -> np.ndarray:
    """The elements with these numbers of splitmix64's sequence that begins at ``key``: no two are equal."""
    words: np.ndarray = numbers * np.uint64(GAMMA)
    words += np.uint64(key + GAMMA & WORD)
    words ^= words >> np.uint64(30)
    words *= np.uint64(FIRST)
    words ^= words >> np.uint64(27)
    words *= np.uint64(SECOND)
    words ^= words >> np.uint64(31)
    return words


def _below(size: np.uint64, hashes: np.ndarray) -> np.ndarray:
    """Numbers below ``size``, which has 32 bits, made of the upper 32 bits of ``hashes``."""
    hashes >>= np.uint64(32)
    hashes *= size
    hashes >>= np.uint64(32)
    return hashes
