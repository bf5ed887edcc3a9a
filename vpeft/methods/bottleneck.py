"""The bottleneck that the adapters share; not a method.

    A(z) = up(act(down(z)))        down: d -> r,  up: r -> d

A method says what A reads and where A is added.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from timm.layers.activations import QuickGELU
from timm.layers.drop import DropPath
from torch import Tensor, nn

Activation = Literal["relu", "gelu", "gelu_tanh", "quick_gelu"]

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, "tanh"), "quick_gelu": QuickGELU}


class Bottleneck(nn.Module):
    """A with biases, on the last axis of its input.

    Args:
        dim: d.
        size: r.
        activation: One of ACTIVATIONS.
        dropout: Before `up`.
        drop_path: Share of images whose A(z) is 0 while training; for the others it is scaled up.
    """

    def __init__(
        self, dim: int, size: int, activation: Activation, dropout: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.down = nn.Linear(dim, size)
        self.up = nn.Linear(size, dim)
        self.act = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, z: Tensor) -> Tensor:
        return self.drop_path(self.up(self.dropout(self.act(self.down(z)))))

    def init_normal(self, std: float) -> Bottleneck:
        """Both matrices near zero, normal cut at two deviations; biases zero (Houlsby et al.)."""
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(linear.bias)
        return self

    def init_xavier(self) -> Bottleneck:
        """Both matrices Xavier uniform, biases N(0, 1e-6) (NOAH)."""
        for linear in (self.down, self.up):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)
        return self

    def init_zero(self) -> Bottleneck:
        """A is zero at the start and `down` is as in a torch linear, its bias zero (LoRA)."""
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        return self


def check(method: str, bottleneck: int, init_std: float | None = None, drop_path: float = 0.0) -> None:
    """Refuse values that cannot train.

    Raises:
        ValueError: a bottleneck below 1, two matrices that would both start as zero, a rate out of its range.
    """
    if bottleneck < 1:
        raise ValueError(f"{method}: bottleneck is {bottleneck}; at least 1 is needed.")
    if init_std is not None and not init_std > 0:
        raise ValueError(
            f"{method}: init_std is {init_std}; it must be above 0, or no gradient ever reaches the two matrices."
        )
    if not 0 <= drop_path < 1:
        raise ValueError(f"{method}: drop_path is {drop_path}; at least 0 and below 1 is needed.")
