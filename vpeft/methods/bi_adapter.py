"""BI-Adapter (Jie, Wang & Deng, ICCV 2023, arXiv:2307.16867).

    x + mlp(norm(x)) + s * up(relu(down(x)))
    down, up:  W -> std(W) q(w) + mean(W),   w = (W - mean(W)) / (std(W) + 1e-5)

q sends w to the nearest of 2^bits levels, the k-medians of a standard normal, and its gradient is that of the
identity. Training keeps W; an adapter holds the index of every weight's level in `bits` bits, and mean and
deviation of each W.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class BiAdapter(nn.Module):
    """Quantised bottlenecks beside every MLP; 2 L d r weights of 1 to 8 bits: 589,824 for r = 32 on ViT-B/16.

    73,728 bytes of them at one bit, 8 more for each of the 2 L matrices, and the head in full precision. Official
    code: JieShibo/PETL-ViT @ 026e4f1 (MIT), whose levels, gradients and starting values these are.

    Differs: no quantised LoRA and no quantised head (their Bi-LoRA and Bi-Head), and any number of bits up to 8,
    theirs 1, 2, 4 or 8. An adapter that is loaded keeps the mean and deviation that it was saved with, so that on a
    CPU it computes the same bits as what was saved; trained further, it moves its weights between fixed levels. Mean
    and deviation are taken on a CPU when it is saved. Those of a GPU, which sums in another order, can differ from them
    in the last bits, and a weight that lies that near to a boundary is stored on the neighbouring level.

    Args:
        bottleneck: r; 32 in the official code.
        bits: Of a stored weight; 1 in the official code.
        scale: s, fixed; 1 in the official code, and one of 0.01, 0.1, 1, 10, 100 per task.
        dropout: Before `up`; 0.1 in the official code.

    Raises:
        ValueError: no bottleneck, or bits outside 1..8.
    """

    def __init__(
        self, backbone: Backbone, bottleneck: int = 32, bits: int = 1, scale: float = 1.0, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if bottleneck < 1:
            raise ValueError(f"bi_adapter: bottleneck is {bottleneck}; at least 1 is needed.")
        if not 1 <= bits <= 8:
            raise ValueError(f"bi_adapter: bits is {bits}; 1 to 8 are possible.")
        self.bits = bits
        self.adapters = Modules[Adapter](
            Adapter(block.dim, bottleneck, bits, scale, dropout) for block in backbone.blocks
        )

    def attach(self, backbone: Backbone) -> None:
        for block, adapter in zip(backbone.blocks, self.adapters, strict=True):
            block.mlp.edit(adapter)

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """`codes`, the bits of all weights in a row, and `statistics` [matrices, 2]."""
        codes, statistics = [], []
        for name in self._matrices():
            weight, fixed = state[f"{name}.weight"], state[f"{name}.fixed"]
            code, mean_std = encode(weight, fixed, levels(self.bits)[1])
            codes.append(code.flatten())
            statistics.append(mean_std)
        return {"codes": to_bits(torch.cat(codes), self.bits), "statistics": torch.stack(statistics)}

    def unpack(self, packed: dict[str, Tensor]) -> dict[str, Tensor]:
        state, start = {}, 0
        matrices = self._matrices()
        codes = from_bits(packed["codes"], self.bits, sum(matrix.weight.numel() for matrix in matrices.values()))
        for (name, matrix), statistics in zip(matrices.items(), packed["statistics"], strict=True):
            code = codes[start : (start := start + matrix.weight.numel())].view(matrix.weight.shape)
            # In the middle of its bin, from where it falls on the same level again.
            mean, std = statistics
            state[f"{name}.weight"] = levels(self.bits)[0][code] * (std + 1e-5) + mean
            state[f"{name}.fixed"] = statistics
        return state

    def _matrices(self) -> dict[str, Quantised]:
        return {name: module for name, module in self.named_modules() if isinstance(module, Quantised)}


class Adapter(nn.Module):
    def __init__(self, dim: int, bottleneck: int, bits: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down, self.up = Quantised(dim, bottleneck, bits), Quantised(bottleneck, dim, bits)
        self.dropout, self.scale = nn.Dropout(dropout), scale
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.trunc_normal_(self.up.weight, std=0.001, a=-0.002, b=0.002)

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        z = self.dropout(self.down(x).relu())
        return y + self.scale * self.up(z).reshape(y.shape)


class Quantised(nn.Module):
    """A linear map without bias, of weights on 2^bits levels."""

    fixed: Tensor

    def __init__(self, in_dim: int, out_dim: int, bits: int) -> None:
        super().__init__()
        self.level, self.boundaries = levels(bits)  # here and not in forward, where a compiler would trace their making
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim))
        self.register_buffer("fixed", torch.zeros(2))  # mean and deviation of a loaded adapter, else zeros

    def forward(self, x: Tensor) -> Tensor:
        code, (mean, std) = encode(self.weight, self.fixed, self.boundaries)
        w = (self.weight - mean) / (std + 1e-5)
        q = self.level.to(w.device)[code.detach()] + (w - w.detach())  # exactly a level, the gradient of w
        return F.linear(x, q * std + mean)


def encode(weight: Tensor, fixed: Tensor, boundaries: Tensor) -> tuple[Tensor, Tensor]:
    """Index of every weight's level, and the mean and deviation that it was standardised with."""
    mean, std = statistics = torch.where(fixed[1] > 0, fixed, torch.stack([weight.mean(), weight.std()]))
    return torch.bucketize((weight - mean) / (std + 1e-5), boundaries.to(weight.device)), statistics


@lru_cache
def levels(bits: int) -> tuple[Tensor, Tensor]:
    """The levels, each the median of its bin under a standard normal, and the bins' boundaries halfway between."""
    level = torch.zeros(2**bits, dtype=torch.float64, device="cpu")
    boundaries = level[1:]
    for _ in range(500):  # as many as in the official code
        boundaries = (level[1:] + level[:-1]) / 2
        share = F.pad(torch.special.ndtr(boundaries), (1, 1))
        share[-1] = 1
        level = torch.special.ndtri((share[1:] + share[:-1]) / 2)
    return level.float(), boundaries.float()


def to_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes below 2^bits as bytes, without gaps but in the last one."""
    each = (codes[:, None] >> torch.arange(bits)) & 1
    padded = F.pad(each.flatten(), (0, -each.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8)).sum(1).to(torch.uint8)


def from_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    each = (packed.long()[:, None] >> torch.arange(8)) & 1
    return (each.flatten()[: count * bits].view(count, bits) << torch.arange(bits)).sum(1)
