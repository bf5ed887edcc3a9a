"""LoRA-FA (Zhang et al., 2023, arXiv:2308.03303).

    W x + (alpha / r) B A x        A stays what it was drawn as,  B learns

The gradient of B needs A x alone, so a map keeps r numbers of every token for it and not d: x is not
saved, and there is no dropout, whose mask would be of the size of x. Trained on the output of the frozen map,
without B A; merged into W. Only where torch reads W as a tensor (open_clip's attention) is B A formed while training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vpeft.methods.low_rank import LowRank, maps, new_down
from vpeft.modules import Modules
from vpeft.seams import Affine

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class LoRAFA(nn.Module):
    """Low-rank updates whose A is frozen; r out parameters of each map: 147,456 for r = 8 on ViT-B/16.

    A is a buffer and is saved with B, so an adapter is as large as LoRA's: what is saved is memory and
    optimiser state while training. Hugging Face peft (Apache-2.0) freezes A too, but its LoRA-FA optimiser
    also multiplies the gradient of B by (A A^T)^-1.

    Differs: plain gradients of B, as in the first version of the paper.

    Args:
        rank: r; LoRA's default here.
        alpha: The update is scaled by alpha / rank.
        targets: Maps by role: q k v qkv proj fc1 fc2. q and v are LoRA's.

    Raises:
        ValueError: a rank below 1; an alpha of 0; a target that this backbone does not have, that is named twice or is
            a norm.
    """

    def __init__(
        self, backbone: Backbone, rank: int = 8, alpha: float = 8.0, targets: Sequence[str] = ("q", "v")
    ) -> None:
        super().__init__()
        if rank < 1 or not targets:
            raise ValueError(f"lora_fa: rank is {rank} and targets {list(targets)}; both have to be there.")
        if alpha == 0:
            raise ValueError(f"lora_fa: alpha is {alpha}; anything but 0 is needed, or nothing learns.")
        self.targets = tuple(targets)
        self.down = Modules[Frozen]()
        self.updates = Modules[LowRank]()
        for affine, rows in self._all(backbone):
            out_dim, in_dim = affine.shape
            downs = [Frozen(in_dim, rank) for _ in rows]
            self.down.extend(downs)
            self.updates.append(LowRank(downs, rows, out_dim, rank, alpha / rank))

    def attach(self, backbone: Backbone) -> None:
        for (affine, _), update in zip(self._all(backbone), self.updates, strict=True):
            affine.edit(update)

    def merge(self, backbone: Backbone) -> None:
        for (affine, _), update in zip(self._all(backbone), self.updates, strict=True):
            affine.merge(update)

    def _all(self, backbone: Backbone) -> list[tuple[Affine, list[slice]]]:
        return [entry for block in backbone.blocks for entry in maps("lora_fa", block, self.targets)]


class Frozen(nn.Module):
    weight: Tensor

    def __init__(self, in_dim: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("weight", new_down(in_dim, rank).weight.detach())
