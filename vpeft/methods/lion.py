"""LION, Implicit Vision Prompt Tuning (Wang et al., AAAI 2024, arXiv:2303.09992).

    x + V z,   z = tanh(W' z + U norm(x) + b),   W' = W / max(1, |W| / c)
    dL/da = D (g + W'^T dL/da),   dL/dW' = dL/da z^T      a = U norm(x) + b,  g = dL/dz,  D = diag(1 - z^2)

Two equilibrium layers: on the tokens that enter the first block, and on the features. z is defined by its own
equation and found by iterating it. Its gradient solves a second, linear equation, so no iterate is kept. W' is a
contraction in Frobenius norm, so both have one solution and the error after k iterations is at most c^k / (1 - c).
Shapes: B images, N tokens, C channels, R rank.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F

from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class LION(nn.Module):
    """Equilibrium layers before and behind the backbone; 2 r (2 d + r + 1) parameters: 100,416 for r = 32 on ViT-B/16.

    There is no public code, and the paper's method section has not been read here: known are its abstract, the
    beginning of its introduction and the caption of its Figure 2. From these: two equilibrium implicit layers and no
    more, one in front of the backbone's input and one behind its output, the backbone frozen; their parameters pruned
    by the lottery hypothesis, to relieve the computation of the layers. It claims up to 11.5 % fewer trained parameters
    than VPT, or 11.5 % of them: the sentence reads both ways. Pruned by half, 50,240 of these remain, 10.9 % of
    VPT-deep's 460,800.

    Decided here: the equation of a layer, its rank, norm(x) without parameters, that the first layer acts on tokens
    and not on pixels, V = 0 at the start (so that it starts as the backbone), the bound c on W and plain iteration.
    The tolerance fixes the number of iterations beforehand, so that a compiled graph stays whole and a GPU is never
    waited for. Also which parameters are pruned, how many and when, after the lottery itself (Frankle & Carbin, ICLR
    2019, arXiv:1803.03635): the smallest entries of U, W and V, each by its own magnitudes, are masked for good, the
    others go back to their initial values and train on. All rounds fall into the first `search` of one run; the head,
    the schedule, the optimiser's moments and the average of `train.ema` go on. That average therefore keeps a share of
    the values from before the rewind, its decay to the power of the steps since: train long enough after `search`.

    May differ: a reader's public notes on the paper, which could not be checked against it, have the first layer make
    a prompt for the image, the second one for the features, and a threshold that parts the parameters: those above it
    train as usual, the others are drawn to zero by a strong penalty. They mention neither masks nor a rewind.

    Args:
        rank: r, the width of z.
        sparsity: Share of each matrix that is pruned in the end; 0 prunes nothing.
        rounds: Prunings on the way there, each of the same share of what is left.
        search: Share of the run's steps after which the last pruning comes.
        contraction: c, below 1.
        tolerance: Bound on the error of z and of its gradient, relative to the first iterate.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        backbone: Backbone,
        rank: int = 32,
        sparsity: float = 0.5,
        rounds: int = 1,
        search: float = 0.5,
        contraction: float = 0.5,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__()
        if rank < 1 or rounds < 1:
            raise ValueError(f"lion: rank is {rank} and rounds is {rounds}; both are at least 1.")
        if not 0 <= sparsity < 1:
            raise ValueError(f"lion: sparsity is {sparsity}; it is at least 0 and below 1.")
        if not 0 < search <= 1:
            raise ValueError(f"lion: search is {search}; it is above 0 and at most 1.")
        if not (0 < contraction < 1 and 0 < tolerance < 1):
            raise ValueError(
                f"lion: contraction is {contraction} and tolerance is {tolerance}; both are between 0 and 1, because "
                "the equation has one solution only then."
            )
        iterations = max(1, math.ceil(math.log(tolerance * (1 - contraction)) / math.log(contraction)))
        self.layers = Modules[Implicit](
            Implicit(dim, rank, contraction, iterations) for dim in (backbone.blocks[0].dim, backbone.dim)
        )
        self.sparsity, self.rounds, self.search = sparsity, rounds, search

    def attach(self, backbone: Backbone) -> None:
        first, last = self.layers
        backbone.blocks[0].before(first)
        backbone.edit_features(last)

    def after_backward(self, step: int, steps: int) -> None:
        """Nothing: the masks are in the graph, so what is pruned has no gradient."""

    def after_step(self, step: int, steps: int) -> None:
        before, now = (min(self.rounds, int(done * self.rounds / (self.search * steps))) for done in (step, step + 1))
        for layer in self.layers:
            if now > before and self.sparsity:
                layer.prune(1 - (1 - self.sparsity) ** (now / self.rounds))
            layer.clear()


class Implicit(nn.Module):
    """x + V z at the equilibrium z of x, with a mask on each matrix."""

    def __init__(self, dim: int, rank: int, contraction: float, iterations: int) -> None:
        super().__init__()
        self.contraction, self.iterations = contraction, iterations
        self.u = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rank, dim), a=5**0.5))
        self.w = nn.Parameter(torch.randn(rank, rank) * contraction / rank)  # |W| is about c
        self.b = nn.Parameter(torch.zeros(rank))
        self.v = nn.Parameter(torch.zeros(dim, rank))
        for name in ("u", "w", "v"):
            self.register_buffer(f"keep_{name}", torch.ones_like(getattr(self, name), dtype=torch.bool))
        # No buffers: the constructor draws them again from the run's seed, so an adapter need not hold them.
        self._initial = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def masked(self, name: str) -> Tensor:
        return getattr(self, name) * getattr(self, f"keep_{name}")

    def forward(self, x: Tensor) -> Tensor:  # ... C
        w = self.masked("w")
        a = F.linear(F.layer_norm(x, x.shape[-1:]), self.masked("u"), self.b)  # ... R
        with torch.autocast(x.device.type, enabled=False):
            w = w / (w.norm() / self.contraction).clamp(min=1)
            z = equilibrium(w, a.to(w.dtype), self.iterations)
        return x + F.linear(z, self.masked("v"))

    @torch.no_grad()
    def prune(self, share: float) -> None:
        """Mask the smallest entries of each matrix, that share of all of them, and rewind the others."""
        for name in ("u", "w", "v"):
            size, keep = _whole(getattr(self, name)).abs().flatten(), getattr(self, f"keep_{name}")
            # What is masked already counts as smaller than any zero that is not.
            size = size.masked_fill(~keep.flatten(), -1.0)
            keep.view(-1)[size.argsort()[: round(share * len(size))]] = False
        for name, parameter in self.named_parameters():
            parameter.copy_(_shared(self._initial[name].to(parameter.device), parameter))

    @torch.no_grad()
    def clear(self) -> None:
        """Zero what is masked: an optimiser's momentum still moves it."""
        for name in ("u", "w", "v"):
            parameter = getattr(self, name)
            parameter.mul_(_shared(getattr(self, f"keep_{name}"), parameter))


def _whole(tensor: Tensor) -> Tensor:
    """A tensor of which FSDP leaves a share in each process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _shared(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has whole, divided as FSDP divides `like`."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


class _Equilibrium(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, a: Tensor, iterations: int) -> Tensor:
        z = a.tanh()
        for _ in range(iterations):
            z = (z @ w.T + a).tanh()
        ctx.save_for_backward(w, z)
        ctx.iterations = iterations
        return z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,), (w, z) = grads, ctx.saved_tensors
        slope = 1 - z.square()
        v = slope * g
        for _ in range(ctx.iterations):
            v = slope * (g + v @ w)
        return v.flatten(0, -2).T @ z.flatten(0, -2), v, None


def equilibrium(w: Tensor, a: Tensor, iterations: int) -> Tensor:
    """z = tanh(W z + a) for |W| < 1, differentiable in W [R, R] and a [..., R] by the implicit function theorem.

    Args:
        w: W.
        a: What does not depend on z.
        iterations: Of z, and in the backward pass of its adjoint.
    """
    return _Equilibrium.apply(w, a, iterations)  # pyright: ignore[reportReturnType]
