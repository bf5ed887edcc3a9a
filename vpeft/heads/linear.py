"""The linear classifier."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn


class LinearHead(nn.Module):
    """Maps features [B, dim] to logits [B, classes].

    Args:
        dim: Width of the features.
        classes: Number of classes.
        init: `zero`; `trunc_normal` with std 0.01 and no bias to start with (AdaptFormer); `vpt`: kaiming
            fan-out and a bias of -log 99, a prior of one in a hundred.
        batch_norm: A BatchNorm1d without affine parameters first (AdaptFormer, after MAE's linear probe).
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        init: Literal["zero", "trunc_normal", "vpt"] = "trunc_normal",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6) if batch_norm else nn.Identity()
        self.linear = nn.Linear(dim, classes)
        nn.init.zeros_(self.linear.bias)
        if init == "zero":
            nn.init.zeros_(self.linear.weight)
        elif init == "trunc_normal":
            nn.init.trunc_normal_(self.linear.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(self.linear.weight, mode="fan_out")
            nn.init.constant_(self.linear.bias, -math.log(99))

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features))
