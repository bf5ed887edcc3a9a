"""DoRA (Liu et al., ICML 2024, arXiv:2402.09353).

    m (W + s B A) / ||W + s B A||        A: d -> r,  B: r -> out,  m and the norm one for each row,  s = alpha / r

The norm is a constant to the gradient (section 4.3 of the paper). Neither W + s B A nor B A is formed for it:

    ||W + s B A||^2 = ||W||^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>        row by row

Trained on the output of the frozen map, y = W x + b:  g (y + s B A x) + (1 - g) b  with  g = m / ||W + s B A||.
Merged into W. Only where torch reads W as a tensor (open_clip's attention) is W + s B A formed while training too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.methods.low_rank import LowRank, maps, new_down
from vpeft.methods.scaling import scale_shift
from vpeft.modules import Modules
from vpeft.seams import Affine

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class DoRA(nn.Module):
    """Direction at low rank, magnitude by row; r (in + out) + out parameters each: 313,344 for r = 8 on ViT-B/16.

    The paper writes W as in x out and calls the norm one of columns; these are the rows of torch's weight, as in
    NVlabs/DoRA (Nvidia source licence; facts only) and Hugging Face peft (Apache-2.0), with which it agrees.

    Differs: with dropout, both drop the input of W in (g - 1) W x too; here only the input of A.

    Args:
        rank: r; LoRA's default here (the paper: 4 to 64).
        alpha: The update is scaled by alpha / rank; twice the rank in the official scripts.
        targets: Maps by role: q k v qkv proj fc1 fc2. q and v are LoRA's.
        dropout: On the input of A.

    Raises:
        ValueError: a rank below 1; an alpha of 0; a target that this backbone does not have, that is named twice or is
            a norm; dropout on a map that is read as a tensor; when attached, a map that another method already changes.
    """

    def __init__(
        self,
        backbone: Backbone,
        rank: int = 8,
        alpha: float = 16.0,
        targets: Sequence[str] = ("q", "v"),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if rank < 1 or not targets:
            raise ValueError(f"dora: rank is {rank} and targets {list(targets)}; both have to be there.")
        if alpha == 0:
            raise ValueError(f"dora: alpha is {alpha}; anything but 0 is needed, or nothing learns.")
        self.targets, self.dropout = tuple(targets), nn.Dropout(dropout)
        self.down = Modules[nn.Linear]()
        self.updates = Modules[Magnitude]()
        for affine, rows in self._all(backbone):
            out_dim, in_dim = affine.shape
            downs = [new_down(in_dim, rank) for _ in rows]
            self.down.extend(downs)
            self.updates.append(Magnitude(affine, LowRank(downs, rows, out_dim, rank, alpha / rank, self.dropout)))

    def attach(self, backbone: Backbone) -> None:
        for (affine, _), update in zip(self._all(backbone), self.updates, strict=True):
            if affine.updates:
                raise ValueError(
                    f"dora: {type(affine.updates[0]).__name__} changes a map of {list(self.targets)} already, and the "
                    "magnitude is that of the backbone's own weight. Put dora before it in the list of methods."
                )
            affine.edit(update, reads=True)

    def merge(self, backbone: Backbone) -> None:
        for (affine, _), update in zip(self._all(backbone), self.updates, strict=True):
            affine.merge(update)

    def _all(self, backbone: Backbone) -> list[tuple[Affine, list[slice]]]:
        return [entry for block in backbone.blocks for entry in maps("dora", block, self.targets, self.dropout.p)]


class Magnitude(nn.Module):
    def __init__(self, affine: Affine, low: LowRank) -> None:
        super().__init__()
        self.affine, self.low = affine, low
        norm = torch.linalg.vector_norm(affine.tensors()["weight"].detach(), dim=1)
        self.magnitude = nn.ParameterList(nn.Parameter(norm[part].clone()) for part in low.rows)

    @torch.no_grad()
    def norm(self, w: Tensor) -> Tensor:  # out
        with torch.autocast(w.device.type, enabled=False):
            a, b, s = self.low.a(), self.low.b(), self.low.scale
            cross = ((w @ a.T) * b).sum(1)
            square = ((b @ (a @ a.T)) * b).sum(1)
            # Rounding may leave nothing, or less, where B A cancels W.
            whole = torch.linalg.vector_norm(w, dim=1).square() + 2 * s * cross + s**2 * square
            return whole.clamp_min(torch.finfo(w.dtype).tiny).sqrt()

    def gain(self, w: Tensor) -> Tensor:  # out, one on rows that are not updated
        norm, gain = self.norm(w), torch.ones_like(w[:, 0])
        for part, m in zip(self.low.rows, self.magnitude, strict=True):
            gain = gain + F.pad(m / norm[part] - 1, (part.start, len(norm) - part.stop))
        return gain

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        tensors = self.affine.tensors()
        gain = self.gain(tensors["weight"])
        shift = (1 - gain) * tensors["bias"] if "bias" in tensors else torch.zeros_like(gain)
        return scale_shift(self.low.output(x, y), gain, shift)

    def weight(self, w: Tensor) -> Tensor:
        return self.gain(w)[:, None] * self.low.weight(w)

    def bias(self, b: Tensor) -> Tensor:
        return b
