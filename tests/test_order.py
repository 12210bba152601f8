"""The order of an epoch is a permutation of any size, computed in parts, the same in every version, and looks shuffled."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest

from shmgen._plan import order
from shmgen._plan.order import BLOCK_POSITIONS, MAX_SORTED, Order, hash_of

Made = Callable[[int, int, int], np.ndarray]
"""Makes a whole order, from the number of samples, a seed and an epoch."""


def whole(samples: int, seed: int, epoch: int) -> np.ndarray:
    return Order(samples, seed, epoch).part(0, samples)


def test_an_order_is_a_permutation() -> None:
    """An order has every sample once, also where the Feistel network has more pairs than samples."""
    around_powers = [(1 << power) + more for power in (9, 12, 15, 16, 17) for more in (-1, 0, 1)]
    for count in (*range(301), *around_powers, 256**2 + 255, 256**2 + 257, 300**2 - 1, 300**2, 300**2 + 1):
        assert np.array_equal(np.sort(whole(count, 5, 3)), np.arange(count))


GOLDEN = {
    # samples: (seed, epoch), the first samples, and the last
    1: ((0, 1), [0], [0]),
    2: ((7, 3), [1, 0], [1, 0]),
    3: ((7, 3), [1, 0, 2], [1, 0, 2]),
    5: ((7, 3), [1, 4, 0, 2, 3], [4, 0, 2, 3]),
    64: ((7, 3), [43, 27, 22, 11, 26, 14, 29, 20], [16, 21, 12, 30]),
    65: ((0, 0), [16, 40, 19, 38, 41, 32, 54, 48], [34, 37, 1, 30]),
    65_536: ((7, 3), [43018, 19839, 49280, 29221, 26878, 45949, 46598, 55413], [55547, 45181, 6774, 57601]),
    65_537: ((7, 3), [21583, 47392, 37481, 37597, 14512, 50390, 19647, 17743], [19833, 21777, 49387, 40187]),
    10**9: (
        (2**100 + 1, 12),
        [777438248, 548612709, 599965370, 214129437, 43770815, 769306183, 506738468, 91893570],
        [416198893, 660497692, 928326591, 959223837],
    ),
    2**40 + 7: (
        (0, 0),
        [1071358492316, 710783563576, 787125032634, 726286839907, 619600343691, 992771270487, 191918526726, 1044941684514],
        [269184986405, 617372097065, 647667520801, 908864776953],
    ),
}


def test_orders_are_remembered_across_versions() -> None:
    """A run that is repeated years later, with other versions on another machine, has the same order of samples."""
    for samples, ((seed, epoch), first, last) in GOLDEN.items():
        found = Order(samples, seed, epoch)
        assert found.part(0, len(first)).tolist() == first
        assert found.part(samples - len(last), samples).tolist() == last


def test_hashes_are_those_of_splitmix64() -> None:
    """Hashes are the published sequence of SplitMix64, and different tuples of numbers have different hashes."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert order.hashes(np.arange(4, dtype=np.uint64), 0).tolist() == published
    hashed = [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (1 << 64,), (1 << 64, 0), (0, 1 << 64), (1, 1), (2,), (1 << 128,)]
    assert len({hash_of(*numbers) for numbers in hashed}) == len(hashed)


def reference(samples: int, seed: int, epoch: int, position: int) -> int:
    """The sample at one position, computed as the paper describes it, with Python's ints."""

    def splitmix(start: int, number: int) -> int:
        word = (start + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ word // 2**30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word // 2**27) * 0x94D049BB133111EB % 2**64
        return word ^ word // 2**31

    if samples <= 65_536:
        return sorted(range(samples), key=lambda sample: splitmix(hash_of(seed, epoch), sample))[position]
    a = next(a for a in range(math.isqrt(samples), samples) if a * a >= samples)
    b = -(-samples // a)
    found = position
    while True:
        left, right = found % a, found // a
        for number in range(8):
            size = b if number % 2 else a
            change = splitmix(hash_of(seed, epoch, number), right) // 2**32 * size // 2**32
            left, right = right, (left + change) % size
        found = a * right + left
        if found < samples:
            return found


def test_blocks_match_the_reference() -> None:
    """Blocks match the reference, also at their borders, where pairs are no samples, and for numbers near 2**63."""
    for samples in (1, 2, 7, 1000, 65_537, 65_791, 65_793, 10**6 + 1, 10**9, 10**12 + 39, 2**62 + 1):
        chance = random.Random(samples)
        around = [place + step for place in (0, BLOCK_POSITIONS, samples // 2, samples) for step in (-1, 0, 1)]
        for position in around + [chance.randrange(samples) for _ in range(20)]:
            if 0 <= position < samples:
                seed, epoch = chance.randrange(2**70), chance.randrange(1000)
                found = Order(samples, seed, epoch).part(position, position + 1)
                assert found.tolist() == [reference(samples, seed, epoch, position)]


@pytest.mark.parametrize("samples", [1000, MAX_SORTED + 1, 5 * BLOCK_POSITIONS * BLOCK_POSITIONS])
def test_parts_do_not_depend_on_earlier_requests(samples: int) -> None:
    """A part does not depend on earlier requests, and may lie in one block or several, or be empty."""
    chance = random.Random(1)
    last = min(samples, 6 * BLOCK_POSITIONS)
    expected = Order(samples, 1, 2).part(0, last)
    asked = Order(samples, 1, 2)
    for _ in range(200):
        first = chance.randrange(last)
        stop = min(last, first + chance.choice([0, 1, 64, 5000, last]))
        assert np.array_equal(asked.part(first, stop), expected[first:stop])
        if samples > last and chance.random() < 0.5:
            asked.part(samples - 70, samples)
    assert asked.part(5, 3).shape == (0,)


@pytest.mark.parametrize("samples", [1000, MAX_SORTED + 1])
def test_parts_are_read_only(samples: int) -> None:
    """Parts are read-only, so one caller can't change the order for the next."""
    made = Order(samples, 0, 0)
    for part in (made.part(0, 10), made.part(0, samples)):
        assert part.dtype == np.int64
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 1


# Statistical tests of orders. For random permutations, each figure has a mean of 0 and a standard deviation of 1.


def excess(counts: np.ndarray, weights: np.ndarray | None = None, freedom: int = 0) -> float:
    """How much more counts differ from their expectation than by chance: their chi-square, normalised.

    ``weights`` are the relative expectations of the counts, equal by default; ``freedom`` is by default one less than the counts.
    """
    weights = np.ones(counts.size) if weights is None else weights
    expected = counts.sum() * weights / weights.sum()
    freedom = freedom or counts.size - 1
    # Wilson and Hilferty, 1931: the cube root of chi-square is nearly normal.
    ratio = float(((counts - expected) ** 2 / expected).sum()) / freedom
    return (ratio ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


def surplus(count: float, mean: float, variance: float) -> float:
    return (count - mean) / math.sqrt(variance)


ACROSS = 16


def of_cells(pairs: Iterable[tuple[np.ndarray, np.ndarray]], samples: int, *, differ: bool = False) -> float:
    """How evenly pairs of numbers below ``samples`` are spread over the cells of a square.

    Firsts, as seconds, are all the numbers, or almost all, once each. With ``differ`` the two numbers of a pair are never equal.
    """
    counts = np.zeros(ACROSS * ACROSS, int)
    for first, second in pairs:
        counts += np.bincount(first * ACROSS // samples * ACROSS + second * ACROSS // samples, minlength=counts.size)
    sizes = np.bincount(np.arange(samples) * ACROSS // samples)
    weights = np.outer(sizes, sizes) - (np.diag(sizes) if differ else 0)
    return excess(counts, weights.ravel(), (ACROSS - 1) ** 2)


def of_places(make: Made, samples: int, epochs: int) -> Iterator[tuple[str, float]]:
    """Figures of the positions of samples."""
    orders = [make(samples, 11, epoch) for epoch in range(epochs)]
    places = np.arange(samples)
    yield "places", of_cells(((places, one) for one in orders), samples)
    low = sum(int((places[(one & 1) == 0] & 1).sum()) for one in orders)
    odd, even = samples // 2, samples - samples // 2
    yield "parity", surplus(low, epochs * even * odd / samples, epochs * (even * odd) ** 2 / samples**2 / (samples - 1))
    kept = sum(int((one == places).sum()) for one in orders)
    yield "samples in their own place", surplus(kept, epochs, epochs)


def of_neighbours(make: Made, samples: int, epochs: int) -> Iterator[tuple[str, float]]:
    """Figures of samples at neighbouring positions."""
    orders = [make(samples, 12, epoch) for epoch in range(epochs)]
    steps = [np.diff(one) % samples for one in orders]
    sizes = np.bincount(np.arange(samples - 1) * 63 // (samples - 1))
    yield "steps", excess(np.bincount((np.concatenate(steps) - 1) * 63 // (samples - 1)), sizes)
    for step in (1, samples - 1, math.isqrt(samples - 1) + 1):
        yield f"steps of {step}", surplus(sum(int((one == step).sum()) for one in steps), epochs, epochs)
    yield "pairs", of_cells(((one[:-1], one[1:]) for one in orders), samples, differ=True)
    side = math.isqrt(samples - 1) + 1
    yield "pairs a side apart", of_cells(((one[:-side], one[side:]) for one in orders), samples, differ=True)
    rises = sum(int((np.diff(one) > 0).sum()) for one in orders)
    yield "rises", surplus(rises, epochs * (samples - 1) / 2, epochs * (samples + 1) / 12)


def of_epochs(make: Made, samples: int, epochs: int) -> Iterator[tuple[str, float]]:
    """Figures of the correlation between the orders of successive epochs, and of successive seeds."""
    for name, pairs in {
        "the next epoch": [(make(samples, 13, epoch), make(samples, 13, epoch + 1)) for epoch in range(epochs)],
        "the next seed": [(make(samples, seed, 4), make(samples, seed + 1, 4)) for seed in range(epochs)],
    }.items():
        yield f"samples in the same place in {name}", surplus(sum(int((a == b).sum()) for a, b in pairs), epochs, epochs)
        yield f"cells of {name}", of_cells(pairs, samples)
        middle = (samples - 1) / 2
        together = sum(float(((a - middle) * (b - middle)).sum()) for a, b in pairs)
        yield f"correlation with {name}", surplus(together, 0, epochs * (samples - 1) * ((samples**2 + samples) / 12) ** 2)


QUALITY = [of_places, of_neighbours, of_epochs]

FAR = 4.0
"""Standard deviations from the mean. By chance one in 16,000 figures is beyond; there are about 100, the same in every run."""


@pytest.mark.parametrize(("samples", "epochs"), [(64, 600), (1000, 60), (MAX_SORTED + 1, 10)])
def test_orders_look_shuffled(samples: int, epochs: int) -> None:
    """No figure of positions, neighbours or epochs is farther from its mean than chance explains."""
    found = dict(figure for figures in QUALITY for figure in figures(whole, samples, epochs))
    assert {name: figure for name, figure in found.items() if abs(figure) > FAR} == {}


def test_all_orders_of_few_samples_are_equally_likely() -> None:
    """Over many epochs, and over many seeds, each of the n! orders comes about as often as any other."""
    for orders in (
        Counter(tuple(whole(5, 21, epoch).tolist()) for epoch in range(3_000)),
        Counter(tuple(whole(5, seed, 0).tolist()) for seed in range(3_000)),
    ):
        assert len(orders) == math.factorial(5)
        assert abs(excess(np.array(list(orders.values())))) < FAR
