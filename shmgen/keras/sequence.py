"""`Sequence`: what ``model.fit`` takes."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import keras

from shmgen._checks import Fixed, check_index, check_int
from shmgen._engine.state import LoaderState
from shmgen._plan.damage import Damaged
from shmgen._plan.sampler import Shard
from shmgen._plan.stats import Stats
from shmgen.errors import InputError
from shmgen.keras.backends import FRONT_END, hands_over
from shmgen.keras.iterations import Iterations, caller_behind, is_keras, stack, variable
from shmgen.keras.synchronised import unsynchronised
from shmgen.loader import NO_COPY, Loader
from shmgen.options import Options, init_from

if TYPE_CHECKING:
    from typing import Self

KERAS_QUEUE = 10
"""Keras's default for ``max_queue_size``."""

MAX_SHOWN = 80
"""Characters of a list of classes that a warning shows."""

in_use: weakref.WeakSet[Sequence] = weakref.WeakSet()
"""All sequences that there are."""

log = logging.getLogger("shmgen")


class _KerasOption:
    """An attribute that Keras's users set on the object. Here it changes nothing, which is logged once."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> int:
        return self._value

    def __set__(self, instance: Sequence, value: object) -> None:
        if value != self._value and self._name not in instance._warned:
            instance._warned.add(self._name)
            log.warning(
                "%s = %r changes nothing, since batches are read by shmgen's own workers; pass workers= to the constructor",
                self._name,
                value,
            )


@dataclass(frozen=True, eq=False, repr=False)
class SequenceOptions(Options):
    """The arguments of a `Sequence`.

    Args:
        use_multiprocessing: accepted for Keras's sake: True if ``workers`` are processes, as they are here; or left out.
        max_queue_size: accepted for Keras's sake: the batches that may be read ahead, no more than ``slots``; or left out.
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


class Sequence(keras.utils.Sequence):  # type: ignore[misc]
    """A `shmgen.Loader` that ``fit``, ``evaluate`` and ``predict`` take.

    Each iteration, Keras's or a ``for`` loop, is a pass of its own. It gets the next epoch, even if the last pass was left early.
    With ``shuffle=True`` a pass deals every sample exactly once, in an order that depends on ``seed`` and the epoch alone,
    whatever order Keras requests its batches in. With ``shuffle=False``, ``sequence[i]`` is batch i.

    ``sequence[i]`` outside of an iteration is a look at the next epoch, until `on_epoch_end` says that it was used.

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

    @init_from(SequenceOptions)
    def __init__(self, options: SequenceOptions) -> None:
        """Start the workers, and begin to read ahead."""
        super().__init__()
        self._warned: set[str] = set()
        self._loader = Loader.from_options(options, FRONT_END)
        self._iterations = Iterations(self._loader)
        in_use.add(self)

    list_IDs = Fixed[Any](lambda sequence: sequence._loader.list_IDs)
    labels = Fixed[Any](lambda sequence: sequence._loader.labels)
    batch_size = Fixed[int](lambda sequence: sequence._loader.batch_size)
    dim = Fixed["tuple[int, ...] | None"](lambda sequence: sequence._loader.dim)
    n_channels = Fixed["int | None"](lambda sequence: sequence._loader.n_channels)
    n_classes = Fixed["int | None"](lambda sequence: sequence._loader.n_classes)
    classes = Fixed[Any](lambda sequence: sequence._loader.classes)
    shuffle = Fixed[bool](lambda sequence: sequence._loader.shuffle)
    shard = Fixed["tuple[int, int]"](lambda sequence: sequence._loader.shard)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._loader)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__getitem__" in vars(cls):
            cls.__getitem__ = hands_over(vars(cls)["__getitem__"])  # type: ignore[method-assign]

    @hands_over
    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """``(X, y)``, or ``(X,)`` without labels; see `shmgen.Loader` for shapes, dtypes and nesting.

        Raises:
            IndexError: there is no batch of this index.
            SampleError: a file can't be read. ``fit`` on TensorFlow raises TensorFlow's own error, whose text contains this one.
                It is also in the log, and in `error`.
        """
        return self._loader.batch(check_index(index, len(self)), self._iterations.find(sys._getframe(1)))

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """The batches of the next epoch. The epoch begins with the first request."""
        for index in range(self.num_batches):
            yield self[index]

    @property
    def num_batches(self) -> int:
        """Batches in an epoch, as ``len``. An iteration reads it when it begins; then it is what is left of a resumed epoch."""
        forwarding, caller = caller_behind("num_batches")
        if caller.f_code.co_flags & inspect.CO_GENERATOR:
            begun = self._iterations.begin(caller, by_hand=caller.f_code is Sequence.__iter__.__code__)
            return len(self) - begun.first
        if any(map(is_keras, forwarding)):
            self._iterations.on_read()
            for frame in filter(is_keras, stack(caller)):
                if frame.f_code.co_name == "predict":
                    self._warn_of_predict()
                elif frame.f_code.co_name == "fit" and variable(frame, "x") is self:
                    self._warn_of_ranks(variable(frame, "self"))
                    self._warn_of_classes(variable(frame, "validation_data"))
        return len(self)

    def on_epoch_begin(self) -> None:
        """Does nothing: an epoch begins when its first batch is requested."""

    def on_epoch_end(self) -> None:
        """The batches from ``sequence[i]`` were used: the next one belongs to the next epoch. Keras may call this at any time."""
        _, caller = caller_behind("on_epoch_end")
        self._iterations.end(by_keras=is_keras(caller))

    def _warn_of_classes(self, validation: object) -> None:
        if not isinstance(validation, Sequence) or None in (self.classes, validation.classes):
            return
        if validation.classes != self.classes:
            self._warn_once(
                f"the classes of the training data are {_shortened(self.classes)}, and those of the validation data "
                f"{_shortened(validation.classes)}, so that the same number means another class: pass "
                "classes=training.classes to the validation data"
            )

    def _warn_of_predict(self) -> None:
        if self.shuffle:
            self._warn_once(
                "predict over a Sequence with shuffle=True returns rows in the order of that pass, not in that of list_IDs: "
                "make a Sequence with shuffle=False for it"
            )
        rank, world = self.shard
        if world > 1:
            self._warn_once(
                f"predict over a Sequence with shard=({rank}, {world}) returns the rows of this rank alone: predict in one "
                "process, over a Sequence without shard"
            )
        lost = len(self.list_IDs) - self.batch_size * len(self._loader)
        if lost < 0 and self._loader.fills_up:
            self._warn_once(
                f"predict returns {-lost:,} rows more than there are ids, which fill up the last batch: leave the last "
                f"{-lost:,} out, or make a Sequence with tail='keep' for it"
            )
        if self._loader.replaces:
            self._warn_once(
                "predict over a Sequence with on_error='replace' returns rows of other samples in place of those that can't be "
                "read, which `damaged` lists: make a Sequence with on_error='raise' for it"
            )
        if lost > 0:
            self._warn_once(
                f"predict leaves out {lost:,} of {len(self.list_IDs):,} samples, which fill no batch of {self.batch_size}: "
                "make a Sequence with tail='keep' for it"
            )

    def _warn_of_ranks(self, model: keras.Model) -> None:
        if (what := unsynchronised(model, Shard(*self.shard))) is not None:
            self._warn_once(what)

    def _warn_once(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(what, stacklevel=2)

    # With other values, Keras would copy every batch through a pool of its own.
    workers = _KerasOption(1)
    use_multiprocessing = _KerasOption(False)
    max_queue_size = _KerasOption(KERAS_QUEUE)

    @property
    def stats(self) -> Stats:
        """What has been done so far."""
        return self._loader.stats

    @property
    def state(self) -> LoaderState:
        """What it is doing at this moment; see `shmgen.Loader.state`."""
        return self._loader.state

    @property
    def damaged(self) -> tuple[Damaged, ...]:
        """The samples that could not be read and were replaced by others; see `shmgen.Loader.damaged`."""
        return self._loader.damaged

    @property
    def error(self) -> Exception | None:
        """The last error of a request for a batch, whatever the backend made of it; None if there was none."""
        return self._loader.error

    def state_dict(self, trained: int | None = None) -> dict[str, int | str | bool]:
        """Where another run would go on; see `shmgen.Loader.state_dict`.

        Args:
            trained: how many batches of its present iteration Keras has trained on, ``batch + 1`` in ``on_train_batch_end``: it
                asks for batches long before it trains on them. If left out, an iteration of Keras's counts as over, and of a
                ``for`` loop counts what ``next`` returned. `shmgen.keras.Resume` does all that.

        Raises:
            InputError: ``trained`` is given, and Keras has not begun to iterate.
        """
        if trained is None:
            return self._whole(self._loader.state_dict())
        begun = self._iterations.of_keras
        if begun is None:
            raise InputError(f"trained: expected None before the first iteration of Keras's, found {trained!r}")
        return self._whole(self._loader.state_at(begun.epoch, begun.first + check_int(trained, "trained", 0)))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run was; see `shmgen.Loader.load_state_dict`.

        Raises:
            InputError: it does not fit; the sequence is as before.
        """
        self._loader.load_state_dict(self._whole(state))

    def _whole(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """``state``, but at the next epoch if a subclass whose ``__len__`` is shorter has no batch left in this one."""
        if state["consumed"] < len(self) * self.batch_size:
            return dict(state)
        return {**state, "epoch": state["epoch"] + 1, "consumed": 0}

    def close(self) -> None:
        """End the workers and release the memory; see `shmgen.Loader.close`."""
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(NO_COPY.format(type(self).__name__))

    def __repr__(self) -> str:
        return repr(self._loader).replace("Loader", type(self).__name__, 1)


def _shortened(classes: object) -> str:
    """Names of classes, for a warning."""
    text = repr(classes)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
