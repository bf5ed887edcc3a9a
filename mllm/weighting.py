"""Every trained word of an optimiser step counts once, in whichever of its batches and processes it is.

A batches are accumulated. Lightning adds 1/A of the gradient of each, and DDP and FSDP average over the processes. With
w_i words in batch i of a process, on average over the processes v_i, and the mean loss of its words m_i:

    loss of batch i   w_i / v_1 m_i             gradient of all   A v_1 / (v_1 + ... + v_A)
"""

from __future__ import annotations

from collections.abc import Iterable

import lightning.pytorch as L
import torch
from torch import Tensor, nn


class Weighting:
    """The words of the optimiser step that is under way."""

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._sum, self._least = torch.zeros(()), 1.0

    def add(self, words: Tensor, trainer: L.Trainer) -> tuple[Tensor, Tensor]:
        """What the mean loss of a batch with so many words of this process is multiplied by.

        Returns:
            The factor for the loss; and that of what is to have no weight but 1 in the whole step, if it is added to
            the loss of its last batch alone.
        """
        mean: Tensor = words.float()
        if trainer.world_size > 1:
            mean = trainer.strategy.reduce(mean.clone(), reduce_op="mean")
        if self._first is None:
            self._least = 1 / trainer.world_size  # where no word is trained, the loss is 0 and may be divided by any
            first: Tensor = mean.clamp(min=self._least)
            self._first = first
            self._sum = torch.zeros_like(mean)
        self._sum = self._sum + mean
        return words / self._first, self._sum.clamp(min=self._least) / self._first

    def finish(self, parameters: Iterable[nn.Parameter], accumulated: int) -> None:
        """Divide the gradients, which are all there, by the words of the step."""
        if accumulated > 1 and self._first is not None:
            scale = float(accumulated * self._first / self._sum.clamp(min=self._least))
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        self._first = None
