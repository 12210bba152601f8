"""While all slots are held by batches that were handed out: has the framework release some, collects garbage, grows the ring."""

from __future__ import annotations

import gc
import logging

from shmgen._engine.front_end import FrontEnd
from shmgen._memory.ring import Ring
from shmgen._plan.schedule import Schedule
from shmgen._worker.launch import deferred_signals

GROW_AFTER, GROW_AFTER_LEAST = 1.0, 0.02
"""Seconds that a request waits for a slot to be released before the ring grows: at first, and at least. Halved by each growth,
doubled by a wait that ends without."""

GROW_BY = 4
"""The ring grows by one slot for each 4 slots that it has. So a consumer that holds a whole epoch waits only a few times."""

COLLECT_AFTER = 0.25
"""Seconds after which all garbage is collected, in case it holds the slots."""

log = logging.getLogger("shmgen")


class HeldSlots:
    """Gets slots back from batches that were handed out."""

    def __init__(self, ring: Ring, schedule: Schedule, front_end: FrontEnd) -> None:
        self._ring = ring
        self._schedule = schedule
        self._front_end = front_end
        self._patience = GROW_AFTER
        self.grown = 0  # slots that were added

    def are_many(self, needed: int = 0) -> bool:
        """Whether more than half of all slots are held, not counting ``needed`` of them."""
        return self._ring.held - needed > self._ring.slots // 2

    def push(self, generation: int) -> None:
        """Have the framework release batches that it no longer needs, and collect garbage up to ``generation``.

        JAX releases finished batches whenever garbage is collected; the youngest generation alone takes microseconds.
        An older one may hold the reference cycle in which ``fit`` leaves its batches when it is left early.
        """
        self._front_end.release()
        # An exception that a signal's handler raises inside another library's callback of the collector would be lost: Python
        # prints and ignores it. So handlers run when the collection is over.
        with deferred_signals():
            gc.collect(generation)

    def grow(self) -> None:
        """Add slots to the ring; an OSError if there is no memory for any."""
        added = self._ring.grow(max(1, self._ring.slots // GROW_BY))
        self._schedule.add_slots(added)
        if not self.grown:
            log.info(
                "all %d slots are held, by batches that were handed out: there are more from now on, of %s bytes each",
                self._ring.slots - added,
                f"{self._ring.layout.slot_bytes:,}",
            )
        self.grown += added
        self._patience = max(GROW_AFTER_LEAST, self._patience / 2)


class SlotWait:
    """One request's wait while all slots are held."""

    def __init__(self, held: HeldSlots) -> None:
        self._held = held
        self.since: float | None = None
        self._has_collected = self._has_grown = False

    def next_push(self, now: float) -> int | None:
        """The generation to `HeldSlots.push` now; None if pushing has long been in vain, so that the ring should grow."""
        if self.since is None:
            self.since = now
        if now > self.since + self._held._patience:
            self._has_grown = True
            return None
        if not self._has_collected and now > self.since + COLLECT_AFTER:
            self._has_collected = True
            return 2
        return 0

    def end(self) -> None:
        """The request has got its batch."""
        if self.since is not None and not self._has_grown:
            self._held._patience = min(GROW_AFTER, 2 * self._held._patience)
