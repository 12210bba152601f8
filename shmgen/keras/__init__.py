"""What Keras's users need: `Sequence`, which ``model.fit`` takes, and callbacks. Only this package imports Keras."""

from shmgen.keras.data_wait import DataWait
from shmgen.keras.resume import Resume
from shmgen.keras.sequence import Sequence

__all__ = ["DataWait", "Resume", "Sequence"]
