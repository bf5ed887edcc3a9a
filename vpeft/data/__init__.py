"""Images and labels of every task."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpeft.data.classification import ClassificationData

__all__ = ["ClassificationData"]


def __getattr__(name: str) -> object:
    # Lightning takes seconds to import, and preparing data does not need it.
    if name == "ClassificationData":
        from vpeft.data.classification import ClassificationData

        return ClassificationData
    raise AttributeError(f"module 'vpeft.data' has no attribute '{name}'")
