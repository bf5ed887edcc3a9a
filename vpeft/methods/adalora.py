"""AdaLoRA (Zhang et al., ICLR 2023, arXiv:2303.10512).

    W x + (alpha / r) P (lambda * (Q x))        Q: d -> r,  lambda: r,  P: r -> out

P and Q are drawn and held orthogonal by a penalty, lambda starts as zero. Every map starts with r triplets
(column of P, lambda_i, row of Q). From the end of a warm-up to the start of a final phase the number of triplets
in the whole backbone falls from r to r' a map, and those with the smallest score have their lambda set to zero:

    I  = |w dL/dw|        I- <- beta1 I- + (1 - beta1) I        U- <- beta2 U- + (1 - beta2) |I - I-|
    score_i = s(lambda_i) + mean_j s(P_ji) + mean_j s(Q_ij),        s = I- U-
    budget(t) = b' + (b - b') (1 - (t - warmup) / (T - final - warmup))^3

Trained on the output of the frozen map, without the change of W, and merged into W. Only where torch reads W as a
tensor (open_clip's attention) is the change formed while training too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vpeft.methods.low_rank import LowRank, maps
from vpeft.modules import Modules
from vpeft.seams import Affine

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class AdaLoRA(nn.Module):
    """Triplets shared out over all maps; r (in + out + 1) parameters each: 442,656 for r = 12 on ViT-B/16.

    295,104 of them are left in use at r' = 8, and an adapter holds no others. Scores are those of
    QingruZhang/AdaLoRA @ d10f5eb (MIT), which Hugging Face peft (Apache-2.0) shares. Where paper and code differ,
    the code is followed: the score is of w after the optimiser's step and of dL/dw before it, the penalty is the
    mean over all P and Q of ||P^T P - I||, not the sum of its squares, and the update is scaled by alpha / r.

    Differs: warm-up and final phase are shares of the run, not numbers of steps.

    Args:
        rank: r, of every map at the start; 12 in peft.
        target_rank: r', the average at the end; 8 in peft.
        alpha: The update is scaled by alpha / rank, also when triplets are gone.
        targets: Maps by role: q k v qkv proj fc1 fc2. q and v are LoRA's.
        orthogonality: Weight of the penalty; 0.1 in the official code, 0.5 in peft.
        warmup: Share of the run before any triplet goes.
        final: Share of the run after the last one has gone.
        interval: Steps from one choice of triplets to the next.
        beta1: Of the running mean of I.
        beta2: Of the running mean of its deviation.

    Raises:
        ValueError: a rank that does not fall, an alpha of 0, phases that leave no time between them, a beta outside
            (0, 1); a target that this backbone does not have, that is named twice or is a norm; at the first step,
            parameters that FSDP shares out.
    """

    sensitivity: Tensor
    uncertainty: Tensor

    def __init__(
        self,
        backbone: Backbone,
        rank: int = 12,
        target_rank: int = 8,
        alpha: float = 12.0,
        targets: Sequence[str] = ("q", "v"),
        orthogonality: float = 0.1,
        warmup: float = 0.1,
        final: float = 0.3,
        interval: int = 10,
        beta1: float = 0.85,
        beta2: float = 0.85,
    ) -> None:
        super().__init__()
        if not 1 <= target_rank < rank or not targets:
            raise ValueError(
                f"adalora: rank is {rank}, target_rank {target_rank} and targets {list(targets)}; the rank falls to a "
                "smaller one of at least 1, on at least one target."
            )
        if alpha == 0:
            raise ValueError(f"adalora: alpha is {alpha}; anything but 0 is needed, or nothing learns.")
        if warmup < 0 or final <= 0 or warmup + final >= 1:
            raise ValueError(
                f"adalora: warmup is {warmup} and final {final}; they are shares of the run, and leave some of it."
            )
        if interval < 1 or not (0 < beta1 < 1 and 0 < beta2 < 1):
            raise ValueError(
                f"adalora: interval is {interval}, beta1 {beta1} and beta2 {beta2}; expected 1 or more, and two "
                "numbers between 0 and 1."
            )
        self.targets, self.orthogonality = tuple(targets), orthogonality
        self.warmup, self.final, self.interval, self.betas = warmup, final, interval, (beta1, beta2)
        self.down = Modules[Scaled]()
        self.updates = Modules[LowRank]()
        for affine, rows in self._all(backbone):
            out_dim, in_dim = affine.shape
            downs = [Scaled(in_dim, rank) for _ in rows]
            self.down.extend(downs)
            self.updates.append(LowRank(downs, rows, out_dim, rank, alpha / rank))
        for _, p in self.pairs():
            nn.init.normal_(p, std=0.02)
        self.total, self.target = rank * len(self.down), target_rank * len(self.down)
        count = sum(parameter.numel() for parameter in self.parameters())
        self.register_buffer("sensitivity", torch.zeros(count))
        self.register_buffer("uncertainty", torch.zeros(count))

    def pairs(self) -> list[tuple[Scaled, nn.Parameter]]:
        """(lambda and Q, P) of each row group of each map."""
        return list(zip(self.down, (p for update in self.updates for p in update.up), strict=True))

    def attach(self, backbone: Backbone) -> None:
        for (affine, _), update in zip(self._all(backbone), self.updates, strict=True):
            affine.edit(update)

    def merge(self, backbone: Backbone) -> None:
        for (affine, _), update in zip(self._all(backbone), self.updates, strict=True):
            affine.merge(update)

    def _all(self, backbone: Backbone) -> list[tuple[Affine, list[slice]]]:
        return [entry for block in backbone.blocks for entry in maps("adalora", block, self.targets)]

    def penalty(self) -> Tensor:
        grams = []
        with torch.autocast(self.sensitivity.device.type, enabled=False):
            for down, p in self.pairs():
                grams += [down.q @ down.q.T, p.T @ p]
        identity = torch.eye(len(grams[0]), device=grams[0].device)
        return self.orthogonality * torch.linalg.matrix_norm(torch.stack(grams) - identity).mean()

    def after_backward(self, step: int, steps: int) -> None:
        """Nothing: scores take the parameters after the step."""

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        if any(isinstance(parameter, DTensor) for parameter in self.parameters()):
            raise ValueError(
                "adalora: triplets are scored on whole tensors, and FSDP leaves a share of each in a process. Set "
                "train.strategy to ddp."
            )
        if step < self._phases(steps)[1]:
            self._observe()
        budget, due = self.budget(step, steps)
        if due:
            self._keep(budget)

    def budget(self, step: int, steps: int) -> tuple[int, bool]:
        """Triplets to keep at a step, counted from 0, and whether they are chosen at it."""
        first, last = self._phases(steps)
        if step <= first:
            return self.total, False
        if step >= last:
            return self.target, True
        left = 1 - (step - first) / (last - first)
        return int(self.target + (self.total - self.target) * left**3), step % self.interval == 0

    def _phases(self, steps: int) -> tuple[int, int]:
        """Last step of the warm-up, first step of the final phase, which has one at least."""
        return round(self.warmup * steps), steps - max(1, round(self.final * steps))

    def _observe(self) -> None:
        # A parameter without a gradient is not of this loss and has no sensitivity.
        now = torch.cat([(torch.zeros_like(p) if p.grad is None else p * p.grad).flatten() for p in self.parameters()])
        now, (beta1, beta2) = now.abs(), self.betas
        self.sensitivity.mul_(beta1).add_(now, alpha=1 - beta1)
        self.uncertainty.mul_(beta2).add_((now - self.sensitivity).abs(), alpha=1 - beta2)

    def scores(self) -> Tensor:
        """Of every triplet [maps, r]."""
        parameters = list(self.parameters())
        parts = (self.sensitivity * self.uncertainty).split([parameter.numel() for parameter in parameters])
        of = {id(parameter): part.view_as(parameter) for parameter, part in zip(parameters, parts, strict=True)}
        return torch.stack(
            [of[id(down.scale)] + of[id(down.q)].mean(1) + of[id(p)].mean(0) for down, p in self.pairs()]
        )

    def _keep(self, budget: int) -> None:
        scores = self.scores()
        threshold = scores.flatten().kthvalue(self.total - budget).values
        for down, gone in zip(self.down, scores <= threshold, strict=True):
            down.scale.masked_fill_(gone, 0.0)

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the scores, and without what a zero lambda multiplies."""
        packed = {}
        for down, p in self._names():
            kept = (scale := state[f"{down}.scale"]) != 0
            packed |= {f"{down}.scale": scale, f"{down}.q": state[f"{down}.q"][kept], p: state[p][:, kept]}
        return packed

    def unpack(self, packed: dict[str, Tensor]) -> dict[str, Tensor]:
        state = {name: torch.zeros_like(tensor) for name, tensor in self.state_dict().items()}
        for down, p in self._names():
            kept = (scale := packed[f"{down}.scale"]) != 0
            state[f"{down}.scale"] = scale
            state[f"{down}.q"][kept] = packed[f"{down}.q"]
            state[p][:, kept] = packed[p]
        return state

    def _names(self) -> list[tuple[str, str]]:
        """Names of what `pairs` holds."""
        ups = [f"updates.{i}.up.{j}" for i, update in enumerate(self.updates) for j in range(len(update.up))]
        return [(f"down.{index}", up) for index, up in enumerate(ups)]


class Scaled(nn.Module):
    def __init__(self, in_dim: int, rank: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(rank))  # lambda
        self.q = nn.Parameter(torch.empty(rank, in_dim))
        nn.init.normal_(self.q, std=0.02)

    @property
    def weight(self) -> Tensor:
        return self.scale[:, None] * self.q
