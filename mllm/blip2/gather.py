"""What the other processes hold of a batch, in the order of the processes.

Shapes: B pairs of a process, G = B times the processes, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def gathered(x: Tensor, gradient: bool) -> Tensor:
    """[B ...] of every process as [G ...].

    Args:
        x: As many rows in every process.
        gradient: The gradient returns to the process that a row came from. Without it none returns, not even to this
            process's own rows, and in a single process too.
    """
    if not gradient:
        x = x.detach()
    return x if _processes() == 1 else _Gather.apply(x)  # type: ignore[return-value]


def gathered_text(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask [B T] as [G T], with T the longest of all processes; padding has id 0 and mask 0."""
    if _processes() == 1:
        return ids, mask
    longest = torch.tensor(ids.shape[1], device=ids.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    room = int(longest) - ids.shape[1]
    return gathered(F.pad(ids, (0, room)), False), gathered(F.pad(mask, (0, room)), False)


class _Gather(torch.autograd.Function):
    """torch's own, in torch.distributed.nn, is deprecated and has no public successor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(_processes())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous()
        dist.all_reduce(whole)  # every process has used all rows
        return whole.chunk(_processes())[dist.get_rank()]


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
