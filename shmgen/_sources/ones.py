"""`Ones`: weights of samples that were given none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shmgen._sources.base import Source


class Ones(Source):
    """Weighs every sample 1."""

    shape, dtype = (), "float32"
    in_main_process = True

    def fill(self, ids: Sequence[Any], rows: np.ndarray) -> None:
        rows[...] = 1
