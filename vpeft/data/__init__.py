"""Images and labels of every task."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpeft.data.classification import ClassificationData
    from vpeft.data.segmentation import SegmentationData

__all__ = ["ClassificationData", "SegmentationData"]


def __getattr__(name: str) -> object:
    # Lightning takes seconds to import, and preparing data does not need it.
    if name == "ClassificationData":
        from vpeft.data.classification import ClassificationData

        return ClassificationData
    if name == "SegmentationData":
        from vpeft.data.segmentation import SegmentationData

        return SegmentationData
    raise AttributeError(f"module 'vpeft.data' has no attribute '{name}'")
