"""MTLoRA (Agiza, Neseem & Reda, CVPR 2024, arXiv:2403.20320).

    y   = W x + s B A x                     the trunk, in every block
    y_t = W x + s_t B_t A_t x_t             task t, in the last block of each stage  (matrix)
    y_t = W x + s B A x + s_t B_t A_t x_t   the same, with the trunk's update         (matrixv2)
    y   = W x + LN(sum_t y_t)               the trunk where tasks branch off          (addition, y_t as in matrix)

One pass of the trunk serves all tasks: W meets the trunk's x alone, and x_t, what task t has of that map's input,
passes through the low-rank pair only. Attention is shared; tasks part at its projection and meet the heads.

Shapes: B images, T tasks, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from vpeft.methods.layernorm import LayerNormTuning
from vpeft.methods.low_rank import LowRank, maps, new_down
from vpeft.modules import Modules
from vpeft.seams import Affine, Block

if TYPE_CHECKING:
    from vpeft.backbones import Backbone

Mode = Literal["matrix", "matrixv2", "addition"]

SHARED = ("qkv", "proj", "fc1", "fc2")
BRANCHING = ("proj", "fc1", "fc2")  # the maps with pairs of a task's own
PLAIN_STAGES = 4


class MTLoRA(nn.Module):
    """Low-rank pairs shared and per task, and small parts of the backbone in place; on Swin-T with r = 64 and 4 tasks
    of r_t = 4: 16 r sum(d) + 12 r_t T sum(d_stage) = 4,521,984 + 276,480, and 1,599,546 of the backbone.

    Official code: scale-lab/MTLoRA @ 333a375 (MIT). With its heads (two 1x1 convolutions over reduced maps) that is
    8,344,634 in all on four tasks, the paper's 8.34 M; in `matrix` the shared pair of the last block's fc2 is among
    them, although nothing reads the trunk behind it. Its pre-trained patch embedding, norms, relative position bias
    and patch merging learn too (TRAIN.FREEZE_* are False in every config), which is a quarter of the encoder's count.
    s is 4 as it stands, not divided by r. Dropout is on the trunk's x alone, as there.

    Without `tasks` there are no branches: LoRA on all four maps, together with those parts of the backbone.

    Differs: plain ViTs, which the paper does not have, are cut into four equal stages; scales do not learn.

    Args:
        tasks: Names of the tasks that branch off; a multi-task run fills them in.
        rank: r; 64 in the paper's best setting.
        task_rank: r_t; 4 in that setting.
        scale: s.
        task_scale: s_t.
        mode: What a branch has besides its own pair; `matrix` in the official configs.
        dropout: On the trunk's x.

    Raises:
        ValueError: a rank below 1, a task named twice, or branches on a backbone whose maps are not called.
    """

    def __init__(
        self,
        backbone: Backbone,
        tasks: Sequence[str] = (),
        rank: int = 64,
        task_rank: int = 4,
        scale: float = 4.0,
        task_scale: float = 4.0,
        mode: Mode = "matrix",
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        if rank < 1 or task_rank < 1:
            raise ValueError(f"mtlora: rank is {rank} and task_rank {task_rank}; at least 1 is needed of each.")
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"mtlora: tasks are {list(tasks)}; each may be named once.")
        self.tasks, self.dropout = tuple(tasks), nn.Dropout(dropout)
        self.down = Modules[nn.Linear]()
        self.updates = Modules[LowRank]()
        self.branches = Modules[Branches]()
        self.ends = stage_ends(backbone.blocks) if tasks else []
        for index, block in enumerate(backbone.blocks):
            for affine, rows in self._shared(block, index):
                downs = tuple(new_down(affine.shape[1], rank) for _ in rows)
                self.down.extend(downs)
                self.updates.append(LowRank(downs, rows, affine.shape[0], rank, scale, self.dropout))
            if index in self.ends:
                sizes = [only(block, role).shape for role in BRANCHING]
                updates = [
                    TaskUpdate(n, m, rank, dict.fromkeys(tasks, task_rank), scale, task_scale, mode, dropout)
                    for m, n in sizes
                ]
                self.branches.append(Branches(updates))

    def _shared(self, block: Block, index: int) -> list[tuple[Affine, list[slice]]]:
        """The maps of a block that no task branches off from."""
        return maps("mtlora", block, ("qkv",) if index in self.ends else SHARED, self.dropout.p)

    def _all(self, backbone: Backbone) -> list[tuple[Affine, list[slice]]]:
        return [entry for index, block in enumerate(backbone.blocks) for entry in self._shared(block, index)]

    def attach(self, backbone: Backbone) -> None:
        for (affine, _), update in zip(self._all(backbone), self.updates, strict=True):
            affine.edit(update)
        for index, branches in zip(self.ends, self.branches, strict=True):
            branches.attach(backbone.blocks[index])

    def leaving(self, index: int) -> dict[str, Tensor]:
        """Each task's tokens leaving block `index`, one of `ends`, in the latest pass of the trunk."""
        branches = dict(zip(self.ends, self.branches, strict=True))[index]
        return dict(zip(self.tasks, branches.streams, strict=True))

    def adopts(self, backbone: Backbone) -> list[str]:
        norms = LayerNormTuning(backbone).adopts(backbone)
        others = ("patch_embed", "downsample.reduction", "relative_position_bias_table")
        names = [name for name, _ in backbone.model.named_parameters() if any(part in name for part in others)]
        return norms + [name for name in names if name not in norms]

    def merge(self, backbone: Backbone) -> None:
        """Write the shared pairs into the backbone.

        Raises:
            ValueError: tasks branch off, and one backbone cannot be the backbone of each of them.
        """
        if self.tasks:
            raise ValueError(
                f"MTLoRA cannot be merged: {', '.join(self.tasks)} have maps of their own in some blocks. Use the "
                "adapter beside the backbone."
            )
        for (affine, _), update in zip(self._all(backbone), self.updates, strict=True):
            affine.merge(update)


class TaskUpdate(nn.Module):
    """The update of one map for the trunk and for each task.

    Args:
        in_dim: Of the map.
        out_dim: Of the map.
        rank: Of the shared pair.
        task_ranks: Of each task's pair.
        scale: s.
        task_scales: s_t, one for all or by task.
        mode: See MTLoRA.
        dropout: On the trunk's x.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        rank: int,
        task_ranks: dict[str, int],
        scale: float,
        task_scales: float | dict[str, float],
        mode: Mode = "matrix",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        scales = task_scales if isinstance(task_scales, dict) else dict.fromkeys(task_ranks, task_scales)
        self.mode, self.dropout = mode, nn.Dropout(dropout)
        self.down = Modules[nn.Linear](new_down(in_dim, r) for r in task_ranks.values())
        rows = [slice(0, out_dim)]
        self.tasks = Modules[LowRank](
            LowRank((down,), rows, out_dim, r, scales[task])
            for (task, r), down in zip(task_ranks.items(), self.down, strict=True)
        )
        if mode == "addition":
            self.norm = nn.LayerNorm(out_dim)
        else:
            self.down.append(down := new_down(in_dim, rank))
            self.shared = LowRank((down,), rows, out_dim, rank, scale)

    def forward(self, x: Tensor, y: Tensor, own: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """What the trunk and each task have in the place of y = W x + b; `own` are the x_t, or all are x."""
        x = self.dropout(x)
        inputs = [x] * len(self.tasks) if own is None else own
        if self.mode == "addition":
            parts = [task.output(x_t, y) for task, x_t in zip(self.tasks, inputs, strict=True)]
            return y + self.norm(torch.stack(parts).sum(0)), parts
        trunk = self.shared.output(x, y)
        base = trunk if self.mode == "matrixv2" else y
        return trunk, [task.output(x_t, base) for task, x_t in zip(self.tasks, inputs, strict=True)]


class Branches(nn.Module):
    """The tasks' way through one block, beside the trunk's.

    Between two of the block's own modules, trunk and tasks travel as one batch [(1 + T) B, ...]; the residual
    stream carries the trunk, and `streams` holds the tasks'.

    Args:
        updates: Of proj, fc1 and fc2.
    """

    def __init__(self, updates: Sequence[TaskUpdate]) -> None:
        super().__init__()
        self.proj, self.fc1, self.fc2 = (Fork(update) for update in updates)
        self.streams: list[Tensor] = []

    def attach(self, block: Block) -> None:
        self.mlp = (block.mlp,)  # a tuple: its norm is the backbone's
        for role, fork in zip(BRANCHING, (self.proj, self.fc1, self.fc2), strict=True):
            only(block, role).edit(fork)
        block.attn.edit(self.after_attention)
        block.mlp.edit_input(self.before_mlp)
        only(block, "fc2").edit_input(self.before_fc2)
        block.mlp.edit(self.after_mlp)

    def after_attention(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        trunk, *parts = y.tensor_split(1 + self.proj.tasks)
        self.streams = [x + part for part in parts]
        return trunk

    def before_mlp(self, x: Tensor, h: Tensor) -> Tensor:
        self.streams = [stream.view(x.shape) for stream in self.streams]
        self.fc1.own = [self.mlp[0].norm(stream) for stream in self.streams]
        return h

    def before_fc2(self, x: Tensor) -> Tensor:
        trunk, *self.fc2.own = x.tensor_split(1 + self.fc2.tasks)
        return trunk

    def after_mlp(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        trunk, *parts = y.tensor_split(1 + self.fc2.tasks)
        self.streams = [stream + part for stream, part in zip(self.streams, parts, strict=True)]
        return trunk


class Fork(nn.Module):
    """A map whose output is that of the trunk and of each task, one after the other along the batch."""

    def __init__(self, update: TaskUpdate) -> None:
        super().__init__()
        self.update, self.tasks = update, len(update.tasks)
        self.own: list[Tensor] | None = None  # of this call alone

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        own, self.own = self.own, None
        trunk, parts = self.update(x, y, own)
        return torch.cat([trunk, *parts])

    def weight(self, w: Tensor) -> Tensor:
        raise NotImplementedError("a map with branches has no one weight")

    def bias(self, b: Tensor) -> Tensor:
        raise NotImplementedError("a map with branches has no one bias")


def only(block: Block, role: str) -> Affine:
    """The one map of that role that tasks can part at."""
    found = [affine for affine, _ in block.find(role)]
    if len(found) > 1 or not found[0].called:
        raise ValueError(
            f"mtlora: tasks cannot branch off at '{role}' of {type(block.module).__name__}, which is "
            f"{'several maps' if len(found) > 1 else 'read as a tensor'} there. Take a timm Swin or ViT."
        )
    return found[0]


def stage_ends(blocks: Sequence[Block]) -> list[int]:
    """Indices of the blocks that end a stage: where the next is wider, or the last of each of four equal parts."""
    ends = [i for i, block in enumerate(blocks) if i + 1 == len(blocks) or blocks[i + 1].dim != block.dim]
    if len(ends) > 1:
        return ends
    stages = min(PLAIN_STAGES, len(blocks))
    return [len(blocks) * (stage + 1) // stages - 1 for stage in range(stages)]
