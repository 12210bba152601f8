"""Batches are dealt: a pass gives each once, whatever indexes are asked for, and in whatever order."""

from __future__ import annotations

from itertools import islice

from shmgen._deal import Dealer
from shmgen._order import Batch


def deal(dealer: Dealer, *indexes: int) -> list[Batch]:
    return [(dealer.open() if dealer.is_due else dealer.current).deal(index) for index in indexes]


def ahead(dealer: Dealer, count: int) -> list[Batch]:
    return list(islice(dealer.upcoming(), count))


def test_indexes_in_any_order_get_the_batches_in_theirs() -> None:
    """What is read ahead in the epoch's order is what is asked for next, whatever index Keras names."""
    dealer = Dealer(4, shuffle=True)
    for index, number in [(2, 0), (0, 1), (3, 2), (1, 3)]:
        assert ahead(dealer, 1) == [Batch(0, number)]
        assert deal(dealer, index) == [Batch(0, number)]


def test_an_index_keeps_its_batch_for_the_pass() -> None:
    """Asked for twice, an index means the same batch, and takes none from the others."""
    dealer = Dealer(3, shuffle=True)
    assert deal(dealer, 1, 1, 0, 1, 2) == [Batch(0, 0), Batch(0, 0), Batch(0, 1), Batch(0, 0), Batch(0, 2)]


def test_a_whole_pass_is_followed_by_the_next_epoch() -> None:
    """Once all are dealt, a new iteration deals the next epoch, whose batches are foreseen before."""
    dealer = Dealer(2, shuffle=True)
    deal(dealer, 1, 0)
    assert ahead(dealer, 3) == [Batch(1, 0), Batch(1, 1)]
    dealer.begin()
    assert ahead(dealer, 1) == [Batch(1, 0)]
    assert deal(dealer, 1) == [Batch(1, 0)]


def test_a_pass_left_early_is_dealt_again_from_its_start() -> None:
    """Keras's probes, and an early stop, cost no sample its turn."""
    dealer = Dealer(3, shuffle=True)
    deal(dealer, 0, 1)
    dealer.begin()
    assert ahead(dealer, 3) == [Batch(0, 0), Batch(0, 1)]
    assert deal(dealer, 2, 1, 0) == [Batch(0, 0), Batch(0, 1), Batch(0, 2)]


def test_epoch_boundaries_count_only_when_all_is_dealt() -> None:
    """``on_epoch_end`` before the first epoch, twice, or amid a pass changes nothing; after a whole pass it begins the next."""
    dealer = Dealer(2, shuffle=True)
    dealer.epoch_boundary()
    deal(dealer, 0)
    dealer.epoch_boundary()
    assert deal(dealer, 1) == [Batch(0, 1)]
    dealer.epoch_boundary()
    dealer.epoch_boundary()
    assert deal(dealer, 0, 1) == [Batch(1, 0), Batch(1, 1)]


def test_without_shuffling_index_is_batch() -> None:
    """Index i is batch i, and i + 1 is foreseen."""
    dealer = Dealer(3, shuffle=False)
    assert deal(dealer, 0) == [Batch(0, 0)]
    assert ahead(dealer, 3) == [Batch(0, 1), Batch(0, 2), Batch(1, 0)]


def test_an_unforeseen_order_is_not_read_ahead() -> None:
    """After an index out of sequence nothing is foreseen until two come in sequence again; misses are counted."""
    dealer = Dealer(5, shuffle=False)
    assert deal(dealer, 3) == [Batch(0, 3)]
    assert ahead(dealer, 1) == []
    assert dealer.current.misses == 1
    deal(dealer, 1, 2)
    assert ahead(dealer, 1) == [Batch(0, 3)]
    assert dealer.current.misses == 2


def test_passes_are_independent() -> None:
    """Two iterations alive at once each get every batch once; the last decides what comes next."""
    dealer = Dealer(2, shuffle=True)
    first, second = dealer.open(), dealer.open()
    assert [first.deal(0), second.deal(1), first.deal(1), second.deal(0)] == [
        Batch(0, 0), Batch(0, 0), Batch(0, 1), Batch(0, 1),
    ]  # fmt: skip
    assert dealer.open().epoch == 1
