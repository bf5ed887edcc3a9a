"""The most active features as logits: DAM-VP's frozen head (Huang et al., CVPR 2023, arXiv:2303.08138).

    logit_k = f_{i(k)},    i = the K features of the largest deviation over images of noise, in ascending order

Shapes: B images, C features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vpeft.backbones import Backbone
    from vpeft.tuned import Tuned

IMAGES, SEED, BATCH = 512, 2023, 64  # images and seed of the official code


class ActiveFeatures(nn.Module):
    """Features [B, C] -> logits [B, K], K of the features themselves; for backbones that have lost their classifier.

    shikiw/DAM-VP @ dec5821 [MIT].

    Args:
        dim: C.
        classes: K.

    Raises:
        ValueError: there are more classes than features.
    """

    index: Tensor

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        if classes > dim:
            raise ValueError(f"active_features: {classes} classes cannot each have one of {dim} features; use linear.")
        self.register_buffer("index", torch.arange(classes))

    def forward(self, features: Tensor) -> Tensor:
        return features[:, self.index]

    def prepare(self, tuned: Tuned, batches: Iterable[tuple[Tensor, Tensor]], epoch: int) -> None:
        """Choose the features, before the first epoch."""
        if epoch == 0:
            self.index.copy_(most_active(tuned.backbone, len(self.index)))


def most_active(backbone: Backbone, count: int) -> Tensor:
    """Indices of the features that vary most over noise, ascending."""
    generator = torch.Generator().manual_seed(SEED)
    device = next(backbone.parameters()).device
    noise = (torch.randn(BATCH, 3, *backbone.image_size, generator=generator) for _ in range(IMAGES // BATCH))
    features = torch.cat([backbone.look(images.to(device)) for images in noise])
    return features.std(dim=0, correction=0).argsort(descending=True)[:count].sort().values
