"""`Sequence`: what ``model.fit`` takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import keras

from shmgen._checks import Fixed, check_index, check_int
from shmgen._engine.feed import Feed
from shmgen._plan.passes import Pass, Position
from shmgen._signatures import init_from
from shmgen.errors import InputError
from shmgen.keras.adapter import attach
from shmgen.keras.backends import FRONT_END
from shmgen.keras.iterations import Iterations
from shmgen.loader import BaseLoader
from shmgen.options import Options

KERAS_QUEUE = 10
"""Keras's default for ``max_queue_size``."""


class _NotMade:
    """An attribute that ``__init__`` sets. Until then, using it is an error that says so."""

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        raise InputError(
            f"{owner.__name__}.__init__ did not call super().__init__() before this: call super().__init__(list_IDs, labels, "
            "batch_size, ...) first; it sets the attributes of these names, and starts workers that read the batches, so you "
            "need not write __getitem__, __len__ and on_epoch_end"
        )


@dataclass(frozen=True, eq=False, repr=False)
class SequenceOptions(Options):
    """The arguments of a `Sequence`.

    Args:
        use_multiprocessing: Keras's argument. It changes nothing, since workers are processes anyway.
        max_queue_size: Keras's argument. It changes nothing, and must be ``slots`` or 10, Keras's default.
    """

    _: KW_ONLY
    use_multiprocessing: bool | None = None
    max_queue_size: int | None = None

    def __post_init__(self) -> None:
        if self.use_multiprocessing and self.workers == 0:
            raise InputError("use_multiprocessing=True asks for processes, and workers=0 for none: leave one of them out")
        if self.max_queue_size not in (None, KERAS_QUEUE, self.slots):
            raise InputError(
                f"max_queue_size={self.max_queue_size!r}: batches are read ahead into slots: leave max_queue_size out, "
                f"or pass slots={self.max_queue_size!r} in its place"
            )
        super().__post_init__()


class Sequence(BaseLoader, keras.utils.Sequence):  # type: ignore[misc]
    """A `shmgen.Loader` that ``fit``, ``evaluate`` and ``predict`` take.

    Each iteration, Keras's or a ``for`` loop, is a pass of its own. It gets the next epoch, even if the last pass was left early.
    With ``shuffle=True`` a pass has every sample exactly once, in an order that depends on ``seed`` and the epoch alone,
    in whatever order Keras requests the batches. With ``shuffle=False``, ``sequence[i]`` is batch i.

    ``sequence[i]`` outside of an iteration is a look at the next epoch, until `on_epoch_end` says that the batches were used.

    The arguments are described at ``__init__``. ``workers`` is the loader's, not Keras's. A subclass may override ``__len__``,
    for shorter passes, and ``__getitem__``.

    Examples:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
        >>> model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> with Sequence(ids, labels, batch_size=4) as training:
        ...     history = model.fit(training, epochs=2, verbose=0)
        >>> len(history.history["loss"])
        2
    """

    _feed: Feed = cast(Feed, _NotMade())
    _iterations: Iterations = cast(Iterations, _NotMade())

    # With other values, Keras would copy every batch through a pool of its own.
    workers = Fixed[int](lambda sequence: 1)
    use_multiprocessing = Fixed[bool](lambda sequence: False)
    max_queue_size = Fixed[int](lambda sequence: KERAS_QUEUE)

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a subclass with a method that is never called.

        Raises:
            InputError: it has ``__data_generation``, as the blog's class, but not ``__getitem__``, which calls it.
        """
        super().__init_subclass__(**options)
        unused = [name for name in vars(cls) if name.endswith("data_generation")]
        if unused and cls.__getitem__ is Sequence.__getitem__:
            raise InputError(
                f"{cls.__name__}: {unused[0].removeprefix('_' + cls.__name__)} is never called, since workers read the samples: "
                "pass a function that reads the sample of an id as source=, one that changes a sample as transform=; or override "
                "__getitem__, which returns a batch"
            )

    @init_from(SequenceOptions)
    def __init__(self, options: SequenceOptions) -> None:
        """Start the workers, and begin to read ahead."""
        super().__init__()
        self._feed = Feed(options, FRONT_END)
        self._iterations = Iterations(self._feed)

    def __len__(self) -> int:
        """Batches in an epoch."""
        attach(self, self._iterations, self._no_rows)
        return len(self._feed)

    @property
    def num_batches(self) -> int:
        """Batches in an epoch, as ``len``."""
        attach(self, self._iterations, self._no_rows)
        return len(self)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """``(X, y)``, or ``(X,)`` without labels; see `shmgen.Loader` for shapes, dtypes and nesting.

        Raises:
            IndexError: there is no batch of this index.
            SampleError: a file can't be read. ``fit`` on TensorFlow raises TensorFlow's own error, whose text contains this one.
                It is also in the log, and in `error`.
        """
        return self._iterations.request(check_index(index, self._batches()))

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """The batches of the next epoch, or the rest of a resumed one. It begins with the first request."""
        begun = self._iterations.begin(by_hand=True)
        for index in range(self._batches() - begun.first):
            yield self._at(index, begun)

    def _at(self, index: int, of: Pass) -> tuple[Any, ...]:
        with self._iterations.under_way(of):
            return self[index]

    def _batches(self) -> int:
        """As ``len``, but not for Keras's iterator, so `attach` has nothing to do."""
        return len(self._feed) if type(self).__len__ is Sequence.__len__ else len(self)

    def _no_rows(self) -> list[tuple[Any, ...]]:
        """Batches without rows, one for each shape that batches may have; none if a subclass makes its own batches."""
        return self._feed.no_rows() if type(self).__getitem__ is Sequence.__getitem__ else []

    def on_epoch_end(self) -> None:
        """End the epoch of the batches from ``sequence[i]``: the next one is the next epoch's. Keras may call this any time."""
        self._iterations.end()

    def state_dict(self, trained: int | None = None) -> dict[str, int | str | bool]:
        """The state another run resumes from; see `shmgen.Loader.state_dict`. `shmgen.keras.Resume` saves it by itself.

        Args:
            trained: batches of its present iteration that Keras has trained on, ``batch + 1`` in ``on_train_batch_end``. Keras
                requests batches long before it trains on them, so they can't be counted here. If left out, an iteration of
                Keras's counts as finished, and a ``for`` loop as far as ``next`` has got.

        Raises:
            InputError: ``trained`` is given, and Keras has not begun to iterate.
        """
        if trained is None:
            return self._whole(self._feed.state_dict())
        begun = self._iterations.of_keras
        if begun is None:
            raise InputError(f"trained: expected None before the first iteration of Keras's, found {trained!r}")
        return self._whole(self._feed.state_dict(Position(begun.epoch, begun.first + check_int(trained, "trained", 0))))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a saved state; see `shmgen.Loader.load_state_dict`.

        Raises:
            InputError: the state is of other data or another order; nothing has changed.
        """
        super().load_state_dict(state)
        if (whole := self._whole(found := self._feed.state_dict())) is not found:
            super().load_state_dict(whole)

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """``state``, or the next epoch's beginning if a subclass has a shorter ``__len__`` and no batch left in this one."""
        has_more = state["consumed"] < len(self) * self.batch_size
        return state if has_more else {**state, "epoch": state["epoch"] + 1, "consumed": 0}
