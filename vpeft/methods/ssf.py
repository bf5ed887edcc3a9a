"""SSF (Lian et al., NeurIPS 2022, arXiv:2210.08823).

    gamma * y + beta        y: what a convolution, norm or linear map gives

A scale and a shift of every channel after every operation of the backbone. Both merge into the operation:
W' = diag(gamma) W, b' = gamma b + beta.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vpeft.methods.scaling import scale_shift
from vpeft.modules import Modules
from vpeft.seams import Affine

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class SSF(nn.Module):
    """Scales and shifts after every affine map; 4 d + L (14 d + 2 h) parameters, h the MLP's width:
    205,824 on ViT-B/16.

    Places and start follow the official code (dongzelian/SSF @ e94e0e7, MIT): after the patch embedding,
    both norms, qkv, proj, fc1 and fc2 of every block, and the last norm. It starts near the backbone, not as
    the backbone; the paper reads as if gamma were 1 and beta 0, which is `init_std: 0`. In Swin the official
    code has pairs for the norms of patch merging too, and by a comparison that is never true does not make them.
    Its authors ship no merging.

    A map without a bias has no place for a merged shift. That of a CLIP patch embedding goes exactly into the
    position embedding that is added next; any other such map (qkv of DINOv3) refuses to merge.

    Differs: the official decay spares gamma and beta, as here every vector is spared. A gamma that is 0 to the last
    bit gets no gradient (`vpeft.methods.scaling`).

    Args:
        init_std: gamma starts as N(1, init_std), beta as N(0, init_std); 0.02 in the official code.
        patch_merging: Also after the norms of Swin's patch merging, as the official code means to.

    Raises:
        ValueError: `patch_merging` on a backbone that merges no patches; an Eva that reads its fused qkv as a
            tensor and keeps the biases apart; when attached, another SSF on the same backbone.
    """

    def __init__(self, backbone: Backbone, init_std: float = 0.02, patch_merging: bool = False) -> None:
        super().__init__()
        if init_std < 0:
            raise ValueError(f"ssf: init_std is {init_std}; 0 or more is needed.")
        if patch_merging and not any(_of_merging(role) for role in backbone.family.affines):
            raise ValueError(f"ssf: patch_merging is true, but {backbone.name} merges no patches. Leave it out.")
        self.patch_merging = patch_merging
        self.pairs = Modules[ScaleShift]()
        for affine in self._maps(backbone):
            if not affine.scalable:
                raise ValueError(
                    f"ssf: {backbone.name} reads its fused qkv as a tensor and keeps the biases apart, so the output "
                    "cannot be scaled. Build it with qkv_fused=False."
                )
            self.pairs.append(ScaleShift(affine.shape[0], init_std))

    def attach(self, backbone: Backbone) -> None:
        for affine, pair in zip(self._maps(backbone), self.pairs, strict=True):
            if any(isinstance(update, ScaleShift) for update in affine.updates):
                raise ValueError(
                    "ssf: another ssf scales these maps already. Two of them are no more than one, and the shift of "
                    "the first may have left the map when the second merges. Use one."
                )
            if len(affine.shape) == 1 and "bias" in affine.tensors():
                affine.replace(pair)  # a norm scales and shifts by itself: no pass more, and nothing kept
            else:
                affine.edit(pair)

    def merge(self, backbone: Backbone) -> None:
        for affine, pair in zip(self._maps(backbone), self.pairs, strict=True):
            affine.merge(pair)

    def _maps(self, backbone: Backbone) -> list[Affine]:
        outside = backbone.family.affines.items()
        maps = [affine for role, affine in outside if self.patch_merging or not _of_merging(role)]
        return maps + [affine for block in backbone.blocks for affine in block.affines.values()]


def _of_merging(role: str) -> bool:
    return role.startswith("merging")


class ScaleShift(nn.Module):
    def __init__(self, dim: int, std: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(1 + std * torch.randn(dim))
        self.beta = nn.Parameter(std * torch.randn(dim))

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        return scale_shift(y, self.gamma, self.beta)

    def weight(self, w: Tensor) -> Tensor:
        return self.gamma.view(-1, *[1] * (w.ndim - 1)) * w

    def bias(self, b: Tensor) -> Tensor:
        return self.gamma * b + self.beta
