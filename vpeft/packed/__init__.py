"""Several runs in one process over one frozen backbone, each with the numbers of a run of its own."""

from vpeft.packed.fit import NOT_PACKED, packable
from vpeft.packed.together import train_together

__all__ = ["NOT_PACKED", "packable", "train_together"]
