"""A decode head and, while it trains, auxiliary ones beside it.

    loss = CE(head(maps), mask) + w sum_i CE(auxiliary_i(maps), mask)

Shapes: B images, K classes, h w the grid of the logits, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpeft.dense.heads import OwnLoss, Pooling
from vpeft.dense.losses import cross_entropy
from vpeft.queries import Linked, Querying


class Decoders(nn.Module):
    """Maps of a neck -> logits, or the losses where the mask is given too.

    Args:
        head: A decode head (`vpeft.dense.heads`).
        auxiliary: Others, for their losses alone.
        weight: w, of each of them; 0.4 in mmsegmentation.
        avg_non_ignore: What cross-entropies are divided by (`vpeft.dense.losses`).
        ignored: Value of a mask that is no class.
    """

    def __init__(
        self, head: nn.Module, auxiliary: Sequence[nn.Module], weight: float, avg_non_ignore: bool, ignored: int
    ) -> None:
        super().__init__()
        self.head, self.auxiliary = head, nn.ModuleList(auxiliary)
        self.weight, self.avg_non_ignore, self.ignored = weight, avg_non_ignore, ignored

    def forward(self, maps: Sequence[Tensor], mask: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits [B K h w], or with a mask [B H W] the losses by name, weighted."""
        if mask is None:
            return self.head(maps)
        losses = {"head": self._loss(self.head, maps, mask)}
        if len(self.auxiliary):
            beside = torch.stack([self._loss(head, maps, mask) for head in self.auxiliary])
            losses["auxiliary"] = self.weight * beside.sum()
        return losses

    def _loss(self, head: nn.Module, maps: Sequence[Tensor], mask: Tensor) -> Tensor:
        if isinstance(head, OwnLoss):
            return head.loss(maps, mask, self.ignored)
        return cross_entropy(head(maps), mask, self.avg_non_ignore, self.ignored)

    @property
    def pools_to_a_cell(self) -> bool:
        """Whether a head does (`vpeft.dense.heads.Pooling`)."""
        heads = (self.head, *self.auxiliary)
        return any(head.pools_to_a_cell for head in heads if isinstance(head, Pooling))

    @property
    def linked(self) -> bool:
        return bool(self._linked())

    def link(self, method: Querying) -> None:
        for head in self._linked():
            head.link(method)

    def _linked(self) -> list[Linked]:
        return [head for head in (self.head, *self.auxiliary) if isinstance(head, Linked) and head.linked]
