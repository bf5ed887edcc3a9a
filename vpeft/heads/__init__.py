"""From features to predictions."""

from vpeft.heads.linear import LinearHead

__all__ = ["LinearHead"]
