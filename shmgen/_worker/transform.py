"""A user's transform, and how it is called. A worker imports this module at its start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from shmgen.errors import InputError

NAME_THE_INPUTS = (
    "; to change targets, too, name the inputs: with inputs={'x': ...} it is called as flip(sample, rng), sample a dict of all "
    "rows by field"
)


def transform_named(field: str | None) -> str:
    """What errors call the transform of a field's rows, or, for None, of whole samples."""
    return "transform" if field is None else f"transform of field {field!r}"


class Transform(NamedTuple):
    """A function of the user's that changes a row or a whole sample, and whether it takes an ``epoch``."""

    function: Callable[..., Any]
    takes_epoch: bool = False

    def __call__(self, given: Any, rng: Any, epoch: int) -> Any:
        return self.function(given, rng, epoch=epoch) if self.takes_epoch else self.function(given, rng)

    @classmethod
    def checked(cls, function: Any) -> Transform:
        """``function`` as a transform; an InputError if it can't be called as one."""
        import inspect

        if not callable(function):
            raise InputError(f"transform: expected a function, or a dict of functions by field, found {function!r}")
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # some functions written in C have none
            return cls(function)
        takes_epoch = "epoch" in signature.parameters
        try:
            signature.bind(None, None, **({"epoch": 0} if takes_epoch else {}))
            for second in [*signature.parameters.values()][1:2]:
                if second.default is not second.empty and second.name != "rng":
                    raise TypeError("an option is not meant for a generator")
        except TypeError:
            name = getattr(function, "__qualname__", repr(function))
            raise InputError(
                "transform: expected a function of a row and a generator, such as def flip(x, rng), or flip(x, rng, epoch), "
                f"found {name}{signature}{NAME_THE_INPUTS if len(signature.parameters) > 2 else ''}"
            ) from None
        return cls(function, takes_epoch)
