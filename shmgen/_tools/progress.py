"""How far a command has come."""

from __future__ import annotations

from typing import NamedTuple


class Progress(NamedTuple):
    """How far a scan, a pack, or a tuning has come.

    Attributes:
        done: how much is done: samples of a scan or a pack, measurements of a tuning.
        total: how much there is to do, as far as is known by now.
        now: what it is at, or what it has found.
    """

    done: int
    total: int
    now: str
