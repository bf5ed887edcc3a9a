"""Polyhistor (Liu, Ma, Tian, He & Kira, NeurIPS 2022, arXiv:2210.03265).

    y + W_U gelu(W_D y)                   adapter of task t in layer l;  W_D: n x d,  W_U: d x n,  n = d / ratio
    W = X(v_t, u_l) Y(v_t, u_l)^T         decomposed hypernetworks: X gives d x r, Y gives n x r   (Polyhistor)
    W_l = S_l (x) T_t,   T_t = X(v_t) Y(v_t)^T     scaling kernels S_l of a layer on templates T_t   (Polyhistor-Lite)

Two small linear networks give the factors of what one large network gave before (k r (d + n) parameters in the place
of k d n). Polyhistor keeps a set of them for each width of the backbone. In Lite there is one set, for the narrowest
width d_0: a task's template is scaled up to a layer of width s d_0 by that layer's s x s kernel, a Kronecker product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class Polyhistor(nn.Module):
    """Adapters of every task written by small networks, after attention and after the MLP, 2 L in all; of K tasks,
    k (K + 2 L) / 2 + 2 r (k + 1) sum(d + n) over the widths d: 6,365,696 on Swin-T with 4 tasks (printed: 6.41 M).

    Lite has k K + 2 r (k + 1) (d_0 + n_0) + 4 sum(s^2) over the blocks: 413,032 with ratio 32 there (printed: .41 M).
    On ViT-B/16 with one task the counts are 3,395,360 and, with ratio 32, 3,294,832.

    There is no public code. From the paper: adapters in a frozen backbone, shared networks that give their weights for
    task and layer embeddings, the decomposition into two factors, the Kronecker product with one kernel for a layer,
    and Lite as both together. Decided here, since the paper's text leaves it open or was not at hand: linear networks
    with biases; v_t and u_l side by side, k / 2 each (Lite: v_t alone, k); k = 64 and r = 32; GELU; both branches, each
    with a u_l and kernels of its own; no biases in the adapters; W_U is zero at the start. k, r and ratio (16, and 32
    in Lite) are those with which the counts come nearest to the printed ones.

    Tasks part at the first block: a forward pass is that of one task, which `use` chooses.

    Args:
        tasks: Names of the tasks; a multi-task run fills them in. With one the method is an adapter.
        lite: Polyhistor-Lite.
        ratio: d / n.
        rank: r.
        embedding: k.

    Raises:
        ValueError: a task named twice or none, or widths that ratio or the scaling kernels do not divide.
    """

    def __init__(
        self,
        backbone: Backbone,
        tasks: Sequence[str] = ("task",),
        lite: bool = False,
        ratio: int = 16,
        rank: int = 32,
        embedding: int = 64,
    ) -> None:
        super().__init__()
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError(f"polyhistor: tasks are {list(tasks)}; at least one is needed, and each once.")
        if rank < 1 or ratio < 1 or embedding < 2 or embedding % 2:
            raise ValueError(
                f"polyhistor: rank is {rank}, ratio {ratio} and embedding {embedding}; they must be at least 1, 1 and "
                "an even 2."
            )
        widths = sorted({block.dim for block in backbone.blocks})
        for width in widths:
            if width % ratio or (lite and width % widths[0]):
                raise ValueError(
                    f"polyhistor: the blocks of {backbone.name} are {', '.join(map(str, widths))} wide; each must be a "
                    f"multiple of ratio {ratio}{' and of the narrowest' if lite else ''}. Choose another ratio."
                )
        self.names, self.lite = tuple(tasks), lite
        layers = [block.dim for block in backbone.blocks for _ in range(2)]
        self.chosen = Chosen()
        self.tasks = nn.Embedding(len(tasks), embedding if lite else embedding // 2)
        sizes = widths[:1] if lite else widths
        factors = {width: Factors(embedding, width, width // ratio, rank) for width in sizes}
        self.hyper = nn.ModuleDict({str(width): networks for width, networks in factors.items()})
        self.adapters = nn.ModuleList()
        for width in layers:
            if lite:
                adapter = LiteAdapter(self.tasks, factors[widths[0]], self.chosen, width // widths[0])
            else:
                adapter = Adapter(self.tasks, factors[width], self.chosen, embedding // 2)
            self.adapters.append(adapter)

    def use(self, task: str) -> None:
        """Make forward passes from now on those of `task`."""
        self.chosen.index = self.names.index(task)

    def attach(self, backbone: Backbone) -> None:
        branches = [branch for block in backbone.blocks for branch in (block.attn, block.mlp)]
        for branch, adapter in zip(branches, self.adapters, strict=True):
            branch.edit(adapter)


class Chosen:
    """Index of the task whose forward pass it is; shared by all adapters."""

    index = 0


class Factors(nn.Module):
    """The networks of one width: an embedding [k] -> W_D [n, d] and W_U [d, n].

    Args:
        embedding: k.
        dim: d.
        bottleneck: n.
        rank: r.
    """

    def __init__(self, embedding: int, dim: int, bottleneck: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.x_down, self.x_up = (nn.Linear(embedding, dim * rank) for _ in range(2))
        self.y_down, self.y_up = (nn.Linear(embedding, bottleneck * rank) for _ in range(2))
        # Entries of W_D have the variance 1 / d for embeddings of variance 1.
        nn.init.normal_(self.x_down.weight, std=(embedding * dim) ** -0.5)
        for network in (self.y_down, self.y_up):
            nn.init.normal_(network.weight, std=(embedding * rank) ** -0.5)
        for network in (self.x_down, self.y_down, self.y_up):
            nn.init.zeros_(network.bias)
        nn.init.zeros_(self.x_up.weight)
        nn.init.zeros_(self.x_up.bias)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        x_down, x_up, y_down, y_up = (
            network(embedding).unflatten(0, (-1, self.rank))
            for network in (self.x_down, self.x_up, self.y_down, self.y_up)
        )
        return y_down @ x_down.T, x_up @ y_up.T


class Adapter(nn.Module):
    """The adapter of one layer, its weights from (v_t, u_l)."""

    def __init__(self, tasks: nn.Embedding, factors: Factors, chosen: Chosen, embedding: int) -> None:
        super().__init__()
        self.shared = tasks, factors, chosen  # a tuple: the method owns them
        self.layer = nn.Parameter(torch.randn(embedding))

    def weights(self) -> tuple[Tensor, Tensor]:
        tasks, factors, chosen = self.shared
        return factors(torch.cat([tasks.weight[chosen.index], self.layer]))

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        down, up = self.weights()
        return y + F.linear(F.gelu(F.linear(y, down)), up)


class LiteAdapter(nn.Module):
    """The adapter of one layer, its weights the kernels of the layer times the template of the task."""

    def __init__(self, tasks: nn.Embedding, factors: Factors, chosen: Chosen, scale: int) -> None:
        super().__init__()
        self.shared = tasks, factors, chosen
        self.down, self.up = (nn.Parameter(torch.randn(scale, scale) * scale**-0.5) for _ in range(2))

    def weights(self) -> tuple[Tensor, Tensor]:
        tasks, factors, chosen = self.shared
        down, up = factors(tasks.weight[chosen.index])
        return torch.kron(self.down, down), torch.kron(self.up, up)

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        down, up = self.weights()
        return y + F.linear(F.gelu(F.linear(y, down)), up)
