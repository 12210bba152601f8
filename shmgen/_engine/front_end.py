"""What the engine asks of a framework that its batches go to."""

from __future__ import annotations

from typing import Any

from shmgen._memory.layout import Arrays


class FrontEnd:
    """Knows a framework; this one knows none. To be subclassed beside the framework's import, and given to a loader once."""

    def release(self) -> None:
        """Make the framework let go of batches that it no longer needs; called again and again while all slots are held."""

    def hand_over(self, arrays: Arrays) -> tuple[Any, ...]:
        """A batch's ``arrays`` as the framework takes them without a copy, one for one."""
        return arrays


NO_FRAMEWORK = FrontEnd()
"""For whoever uses batches without any."""
