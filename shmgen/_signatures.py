"""Gives functions and constructors the arguments of an options class, so that each argument is named and described once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

ELSEWHERE = {
    # what to pass here -> what other libraries call it
    "workers": "num_workers n_workers worker_count num_parallel_calls use_multiprocessing",
    "slots, a number of batches": "prefetch_factor prefetch prefetch_size max_queue_size buffer_size",
    "tail='drop', the default, or tail='keep'": "drop_last drop_remainder",
    "transform": "collate_fn map_fn transforms augment preprocessing_function preprocess",
    "seed": "generator random_state rng shuffle_seed",
    "shuffle, or sampling_weights": "sampler batch_sampler",
    "weights, for the loss, or sampling_weights, for how often each is drawn": "sample_weight sample_weights",
    "nothing: leave it out": "pin_memory persistent_workers multiprocessing_context",
    "source": "dataset reader loader",
    "list_IDs": "ids indices filenames file_paths paths",
    "inputs": "x X",
    "labels, or targets": "y target",
    "data_dir": "directory root folder path data_path base_dir",
    "dim; of images, source=Images(folder, size=...)": "target_size image_size input_shape shape",
    "source=Images(folder, mode=..., resize=...)": "color_mode interpolation",
    "n_classes, for one-hot rows": "class_mode label_mode",
    "n_classes": "num_classes nb_classes",
    "n_channels": "channels num_channels",
    "ids of one part: train, validation = shmgen.split(ids, labels, 0.2)": "validation_split subset",
    "setup": "worker_init_fn",
    "steps_per_epoch to fit": "steps_per_epoch",
}

P = ParamSpec("P")
OptionsT = TypeVar("OptionsT")
ResultT = TypeVar("ResultT")
SelfT = TypeVar("SelfT")

_signature = cache(inspect.signature)  # of options, for each call: it takes 0.2 ms


def init_from(
    options: Callable[P, OptionsT],
) -> Callable[[Callable[[SelfT, OptionsT], None]], Callable[Concatenate[SelfT, P], None]]:
    """Make of an ``__init__`` that takes checked options one that takes the arguments of ``options``.

    Callers, ``help``, editors and type checkers see these arguments, and their description.
    """

    def decorate(init: Callable[[SelfT, OptionsT], None]) -> Callable[Concatenate[SelfT, P], None]:
        @wraps(init)
        def call(self: SelfT, /, *args: P.args, **kwargs: P.kwargs) -> None:
            init(self, _checked(type(self).__name__, options, *args, **kwargs))

        _describe(call, options, inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY))
        return call

    return decorate


def call_from(options: Callable[P, OptionsT]) -> Callable[[Callable[[OptionsT], ResultT]], Callable[P, ResultT]]:
    """As `init_from`, for a function of checked options."""

    def decorate(function: Callable[[OptionsT], ResultT]) -> Callable[P, ResultT]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> ResultT:
            return function(_checked(function.__name__, options, *args, **kwargs))

        _describe(call, options)
        return call

    return decorate


def _checked(name: str, options: Callable[P, OptionsT], *args: P.args, **kwargs: P.kwargs) -> OptionsT:
    """The options. A `TypeError` names the function or class that was called, ``name``, and what may be meant."""
    signature = _signature(options)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        unknown = next((given for given in kwargs if given not in signature.parameters), None)
        raise TypeError(f"{name}: {error}{_meant(unknown, signature) if unknown else ''}") from None
    return options(*args, **kwargs)


def _meant(unknown: str, signature: inspect.Signature) -> str:
    """Advice on an unknown argument: the one that was probably meant."""
    from difflib import get_close_matches

    for here, names in ELSEWHERE.items():
        if unknown in names.split():
            return f"; pass {here}"
    by_lower_case = {known.lower(): known for known in signature.parameters}
    close = get_close_matches(unknown.lower(), by_lower_case, 1, 0.6)
    return f"; did you mean {by_lower_case[close[0]]}?" if close else ""


def _describe(call: Any, options: Any, *first: inspect.Parameter) -> None:
    """Give a function the signature and the description of its arguments that callers see."""
    parameters = [*first, *_signature(options).parameters.values()]
    call.__signature__ = inspect.signature(call.__wrapped__).replace(parameters=parameters)
    described = [inspect.cleandoc(cls.__doc__ or "").partition("Args:\n") for cls in reversed(options.__mro__)]
    arguments = "\n".join(text for _, found, text in described if found)
    summary, raises, errors = inspect.cleandoc(call.__doc__ or "").partition("\n\nRaises:")
    call.__doc__ = f"{summary}\n\nArgs:\n{arguments}{raises}{errors}"
