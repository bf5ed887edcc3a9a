"""A decode head and, while it trains, an auxiliary one beside it.

    loss = CE(head(maps), mask) + w CE(auxiliary(maps), mask)

Shapes: B images, K classes, h w the grid of the logits, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vpeft.dense.heads import OwnLoss
from vpeft.dense.losses import cross_entropy


class Decoders(nn.Module):
    """Maps of a neck -> logits, or the losses where the mask is given too.

    Args:
        head: A decode head (`vpeft.dense.heads`).
        auxiliary: Another, for its loss alone, or None.
        weight: w; 0.4 in mmsegmentation.
        avg_non_ignore: What cross-entropies are divided by (`vpeft.dense.losses`).
        ignored: Value of a mask that is no class.
    """

    def __init__(
        self, head: nn.Module, auxiliary: nn.Module | None, weight: float, avg_non_ignore: bool, ignored: int
    ) -> None:
        super().__init__()
        self.head, self.auxiliary = head, auxiliary
        self.weight, self.avg_non_ignore, self.ignored = weight, avg_non_ignore, ignored

    def forward(self, maps: Sequence[Tensor], mask: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits [B K h w], or with a mask [B H W] the losses by name, weighted."""
        if mask is None:
            return self.head(maps)
        losses = {"head": self._loss(self.head, maps, mask)}
        if self.auxiliary is not None:
            losses["auxiliary"] = self.weight * self._loss(self.auxiliary, maps, mask)
        return losses

    def _loss(self, head: nn.Module, maps: Sequence[Tensor], mask: Tensor) -> Tensor:
        if isinstance(head, OwnLoss):
            return head.loss(maps, mask, self.ignored)
        return cross_entropy(head(maps), mask, self.avg_non_ignore, self.ignored)
