"""The three historical ways to normalise an image, and a backbone's own."""

from __future__ import annotations

from vpeft.backbones import Backbone

NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def normalization(name: str, backbone: Backbone) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and deviations: one of the three historical choices, or for `auto` the backbone's own."""
    return (backbone.mean, backbone.std) if name == "auto" else NORMALIZATIONS[name]
