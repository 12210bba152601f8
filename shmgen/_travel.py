"""How a filler, and the user's functions in it, get into a worker: by value where they live in ``__main__``, with cloudpickle."""

from __future__ import annotations

import io
import pickle
import random
from typing import Any

import numpy as np

from shmgen._filler import Filler
from shmgen.errors import InputError


def dumps(filler: Filler) -> bytes:
    """``filler``, pickled.

    Raises:
        InputError: something in it can't be sent; it says what.
    """
    if filler.is_ours:
        return pickle.dumps(filler)
    try:
        return _dumps(filler)
    except Exception as error:
        for name, part in filler.named():
            try:
                _dumps(part)
            except Exception as culprit:
                raise InputError(
                    f"the {name} can't be sent to a worker process: {culprit}; "
                    "have what it holds made in the worker, as a Source does in open(), or use workers=0"
                ) from error
        raise


def _dumps(thing: object) -> bytes:
    # Imported late: whoever has no functions need not wait for it.
    import cloudpickle

    class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            # `from random import random` names a method of the global generator. Pickled with it, every worker would have a copy
            # of the parent's generator, which nobody seeds anew for each sample.
            for module, generator in ((random, random._inst), (np.random, np.random.mtrand._rand)):
                if getattr(obj, "__self__", None) is generator:
                    return getattr, (module, obj.__name__)
            return super().reducer_override(obj)

    buffer = io.BytesIO()
    Pickler(buffer).dump(thing)
    return buffer.getvalue()
