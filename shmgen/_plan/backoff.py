"""How long what did not help is not tried again."""

from __future__ import annotations

PATIENCE = 4.0
"""So many seconds pass before what was refused is tried again; twice as many each time."""

CHANGED = 1.4
"""It is tried again at once where the rate of rows has changed by this factor: the case is another."""


class Backoff:
    """Of one kind of change: whether it may be tried.

    Attributes:
        left: seconds that have yet to pass.
        cost: seconds that the next refusal costs.
        rate: of rows, when it was refused.
    """

    def __init__(self) -> None:
        self.left, self.cost, self.rate = 0.0, PATIENCE, 0.0

    def refuse(self, rate: float, times: float = 1.0) -> None:
        """It is not to be tried for a while, which is so many times as long as usual."""
        self.left, self.rate = times * self.cost, rate
        self.cost = 2 * self.left

    def forgive(self) -> None:
        """It has helped: the next refusal costs no more than the first did."""
        self.cost = PATIENCE

    def elapse(self, seconds: float) -> None:
        """So much time has passed."""
        self.left = max(0.0, self.left - seconds)

    def allows(self, rate: float) -> bool:
        """Whether it may be tried at this rate."""
        return not self.left or not self.rate / CHANGED < rate < self.rate * CHANGED
