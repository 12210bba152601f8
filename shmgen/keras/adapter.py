"""`Adapter`: what Keras's iterators take batches from, so that each iteration is a pass over a `Sequence`.

For each ``fit``, ``evaluate`` and ``predict`` Keras makes an `EpochIterator`, and for that an adapter of the data, with the
arguments that change batches, such as ``class_weight``. Keras's adapter knows nothing of passes: it takes batches by index, some
twice, looks at two beforehand on TensorFlow, and shuffles indexes that mean no more than "the next batch". So `attach` replaces
it by ours when the `EpochIterator` first asks for the number of batches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import FrameType
from typing import Any, cast

from keras.src.trainers.data_adapters.data_adapter_utils import get_tensor_spec
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter
from keras.src.trainers.epoch_iterator import EpochIterator

from shmgen._plan.passes import Pass
from shmgen.keras.backends import FRONT_END
from shmgen.keras.data_checks import Call, check, warnings_of
from shmgen.keras.iterations import Iterations
from shmgen.keras.running_fit import stack, variable


class Adapter(PyDatasetAdapter):  # type: ignore[misc]
    """Gives one `EpochIterator` the batches of a `Sequence`, or of a `keras.utils.PyDataset` around one or several."""

    def __init__(self, replaced: PyDatasetAdapter) -> None:
        super().__init__(replaced.py_dataset, replaced.class_weight, replaced.shuffle)
        # Batches without rows, one for each shape that batches have; none if these are not known.
        self.no_rows: list[tuple[Any, ...]] = []
        self.over: list[Iterations] = []  # one for each `Sequence`
        # Passes that began before Keras reset its iterator; None afterwards.
        self._looks: list[tuple[Iterations, Pass]] | None = []

    @property
    def num_batches(self) -> int | None:
        """Batches in an epoch. Keras reads it when it resets its iterator, which it does before it trains or evaluates.

        If it has iterated by then, that was a look at a batch, to build the model: the next iteration gets its epoch again.
        """
        looks, self._looks = self._looks, None
        for iterations, begun in looks or ():
            with iterations.feed.passes() as passes:
                passes.take_back(begun)
        return cast("int | None", self.py_dataset.num_batches)

    def get_tf_dataset(self) -> Any:
        """Keras's, which takes two batches to find their shapes and dtypes, unless these are known beforehand."""
        if self.no_rows:
            self._output_signature = get_tensor_spec(list(map(self._standardize_batch, self.no_rows)))
        return super().get_tf_dataset()

    def _get_iterator(self) -> Iterator[Any]:
        batches = self.py_dataset.num_batches
        return super()._get_iterator() if batches is None else self._iterate(batches)

    def _iterate(self, batches: int) -> Iterator[Any]:
        """The batches of a pass. It begins with the first request."""
        begun = [(iterations, iterations.begin()) for iterations in self.over]
        if self._looks is not None:
            self._looks += begun
        for index in range(batches - max(one.first for _, one in begun)):
            yield self._request(index, begun)

    def _request(self, index: int, begun: list[tuple[Iterations, Pass]]) -> Any:
        with ExitStack() as stack:
            for iterations, one in begun:
                stack.enter_context(iterations.under_way(one))
            return FRONT_END.hand_over(self._standardize_batch(self.py_dataset[index]))

    def on_epoch_end(self) -> None:
        """Call the data set's hook, which must not end the pass that Keras has made."""
        for iterations in self.over:
            iterations.end(used=False)
        super().on_epoch_end()


def attach(data: Any, iterations: Iterations, no_rows: Callable[[], list[tuple[Any, ...]]]) -> None:
    """Called when a `Sequence` is asked for its number of batches: if the caller is an `EpochIterator` that is being made, give
    it an `Adapter`. ``no_rows`` returns batches without rows; none if a subclass of `Sequence` makes its own batches.
    """
    maker = next((frame for frame in stack(sys._getframe(2)) if frame.f_code is EpochIterator.__init__.__code__), None)
    if maker is None:
        return
    iterator = variable(maker, "self")
    adapter: Any = getattr(iterator, "data_adapter", None)
    # Threads or processes of Keras's own request batches by index.
    if type(adapter) is PyDatasetAdapter and adapter.enqueuer is None:
        adapter = iterator.data_adapter = Adapter(adapter)
    if isinstance(adapter, Adapter) and iterations not in adapter.over:
        adapter.over.append(iterations)
        if adapter.py_dataset is data:
            adapter.no_rows = no_rows()
        if (call := _call(maker, adapter)) is not None:
            check(iterations.feed, call)
            for text in warnings_of(iterations.feed, call):
                iterations.warn(text)


def _call(maker: FrameType, adapter: Adapter) -> Call | None:
    """The call that makes the `EpochIterator` whose constructor has the frame ``maker``; None if no method of a model does."""
    for frame in stack(maker):
        method = frame.f_code.co_name
        if method in ("fit", "evaluate", "predict") and str(frame.f_globals.get("__name__")).startswith("keras."):
            # The training data have their iterator by the time that `fit` makes that of the validation data.
            if method == "fit" and variable(frame, "epoch_iterator") is not None:
                method = "evaluate"
            return Call(
                method,
                variable(frame, "self"),
                variable(frame, "validation_data"),
                adapter.shuffle,
                variable(maker, "steps_per_epoch"),
                adapter.no_rows[0] if adapter.no_rows else None,
            )
    return None
