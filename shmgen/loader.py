"""`Loader`: batches of samples without any framework."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

from shmgen._checks import Fixed
from shmgen._engine.feed import Feed
from shmgen._engine.loader_state import LoaderState
from shmgen._plan.damaged_samples import Damaged
from shmgen._plan.stats import Stats
from shmgen._signatures import init_from
from shmgen.options import Options

if TYPE_CHECKING:
    from typing import Self


class BaseLoader:
    """What `Loader` and `shmgen.Sequence` have in common: users' view of a feed."""

    _feed: Feed

    list_IDs = Fixed[Sequence[Any]](lambda loader: loader._feed.ids)
    labels = Fixed[Any](lambda loader: loader._feed.labels)
    batch_size = Fixed[int](lambda loader: loader._feed.sampler.batch_size)
    dim = Fixed["tuple[int, ...] | None"](lambda loader: loader._feed.row[0])
    n_channels = Fixed["int | None"](lambda loader: loader._feed.row[1])
    n_classes = Fixed["int | None"](lambda loader: loader._feed.n_classes)
    classes = Fixed["tuple[Any, ...] | dict[str, tuple[Any, ...]] | None"](lambda loader: loader._feed.spec.classes)
    shuffle = Fixed[bool](lambda loader: loader._feed.sampler.shuffle)
    shard = Fixed[tuple[int, int]](lambda loader: loader._feed.sampler.shard)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"a {name} can't be copied or pickled, since it has worker processes; make a {name} where it is used")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._feed!r}>"

    @property
    def stats(self) -> Stats:
        """What has been done so far."""
        return self._feed.prefetcher.stats

    @property
    def state(self) -> LoaderState:
        """A snapshot of its slots, its workers, and the requests that wait. Any thread may take one."""
        return self._feed.prefetcher.state

    @property
    def damaged(self) -> tuple[Damaged, ...]:
        """The samples that could not be read, and were replaced or left out, in the order in which they were found."""
        return tuple(self._feed.damage.found.values())

    @property
    def error(self) -> Exception | None:
        """The last error of a request for a batch, whatever a framework has made of it; None if there was none."""
        return self._feed.prefetcher.errors.last

    def close(self) -> None:
        """End the workers and release the memory, except that of batches that are still held.

        May be called repeatedly, from any thread, and while other threads wait for a batch.
        """
        self._feed.close()

    def state_dict(self) -> dict[str, int | str | bool]:
        """The state another run resumes from: behind the last batch that ``next`` returned.

        After the last batch of an epoch, that is the beginning of the next one.

        A flat dict of numbers, texts and bools: ``version``, ``order``, ``seed``, ``epoch``, ``consumed`` (samples of the epoch,
        of all ranks together), ``samples``, ``ids`` (a hash), ``batch_size`` (of all ranks), ``shuffle``, ``tail``,
        ``sampling_weights`` and ``lengths`` (hashes; empty if there are none). Each rank has the same.

        Examples:
            >>> loader = Loader(ids, labels, batch_size=4)
            >>> epoch = iter(loader)
            >>> batch = next(epoch)
            >>> other = Loader(ids, labels, batch_size=2)
            >>> other.load_state_dict(loader.state_dict())
            >>> len(list(other))
            6
        """
        return self._feed.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a saved state: the next iteration has the batches that were left.

        Args:
            state: from `state_dict` of a loader with the same ids, seed, shuffle and tail. The numbers of workers and of ranks
                may be others, and the batch size, if it divides ``state["consumed"]``.

        Raises:
            InputError: the state is of other data or another order; nothing has changed.
        """
        self._feed.load_state_dict(state)


class Loader(BaseLoader):
    """Batches of samples that worker processes make in shared memory: from a folder of ``ID.npy`` files, or from other sources.

    ``for X, y in loader`` is one epoch. The next loop is the next epoch, even if this one was left early. Without ``labels`` and
    ``targets`` a batch is ``(X,)``. The arrays are views of shared memory, which is not reused as long as they, or views of them,
    exist. They stay readable after `close`. Any thread may use a loader.

    The arguments are described at ``__init__``. Only ``list_IDs`` is required.

    Batches:
        ``(inputs,)``, ``(inputs, targets)`` or ``(inputs, targets, weights)``, each nested as it was given. ``X`` has shape
        ``(batch_size, *dim, n_channels)`` and ``dtype``; ``y`` has shape ``(batch_size,)`` and dtype int64, or
        ``(batch_size, n_classes)`` and float32. Each array begins at a multiple of 64 bytes.

    Attributes:
        list_IDs: the ids. This and the other arguments here can be read, but not set.
        labels: as given.
        batch_size: as given.
        dim: shape of the only input without its channels, as given or as found in the first sample. The whole shape if
            ``n_channels`` is None. None if there are several inputs.
        n_channels: size of the only input's last axis, as given or as found. None if neither ``dim`` nor ``n_channels`` was
            given, if ``dim`` was given as the whole shape, or if there are several inputs.
        n_classes: as given.
        classes: names of the classes, in the order of their numbers, or None. If several targets have classes, a dict by field.
        shuffle: as given.
        shard: (rank, world), as given or as found; (0, 1) for a process that gets all.

    Raises:
        InputError: an argument can't be used, or a function can't be sent to a worker.
        SampleError: the first sample can't be read, or does not match the arguments; unless ``on_error`` is ``"raise"``, none of
            the first 8. From a request for a batch: one of its samples can't be read. The batch may be requested again.
        FunctionError: as SampleError, if a function of the user's is the cause.
        TooManyDamaged: from a request for a batch: more samples are damaged than ``max_damaged`` allows. The loader is then
            closed.
        WorkerDied: likewise: workers die one after the other before they have done anything. Otherwise a worker that dies is
            replaced, and its rows are read again. A sample at which three workers have died is damaged.
        StartError: likewise: no worker can start.
        ClosedError: a batch is requested, or a state loaded, after `close`.
        OSError: there is not enough shared memory.

    Examples:
        >>> loader = Loader(ids, labels, batch_size=4, dim=(4, 3), n_channels=1, shuffle=False)
        >>> for X, y in loader:
        ...     print(X.shape, y)
        (4, 4, 3, 1) [0 1 2 3]
        ...
        >>> loader.close()
    """

    @init_from(Options)
    def __init__(self, options: Options) -> None:
        """Start the workers, and begin to read ahead."""
        self._feed = Feed(options)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._feed)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """The batches of the next epoch, or the rest of a resumed one. It begins with the first request."""
        return iter(self._feed)

    def batch(self, index: SupportsIndex) -> tuple[Any, ...]:
        """A batch of the next epoch, which only begins with an iteration or `on_epoch_end`.

        With ``shuffle``, an index that is used for the first time means the next batch of the epoch's order, and the same batch
        when it is used again. Without ``shuffle``, it is the batch's number.

        Args:
            index: from ``-len(loader)`` to ``len(loader) - 1``.

        Raises:
            IndexError: there is no batch of this index, or no batch is left for it in a resumed epoch.
            TypeError: it is no int.
        """
        return self._feed.batch(index)

    def on_epoch_end(self) -> None:
        """End the epoch of the batches that were requested by index: the next request belongs to the next epoch."""
        with self._feed.passes() as passes:
            passes.end()
