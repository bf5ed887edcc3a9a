"""Multi-scale deformable attention (Zhu et al., ICLR 2021, arXiv:2010.04159), without a compiled operator.

    y_q = sum_h W_h  sum_l sum_p  A_hlqp  V_l( r_q + offset_hlqp / (w_l, h_l) )

V_l(.) is bilinear, half-pixel centred, zero outside of the map. A sample is a weighted sum of four rows of a table, so
that one corner of all samples of a query and a level is one `embedding_bag`: what is sampled is never written out.
torch.compile cannot see into that operator, and fuses plain indexing as well: there all corners and points are one loop
(`_bags`, `_dots`).

Shapes: B images, Q queries, M heads, L levels of h w cells, S cells of all levels, P points, D channels a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]


class DeformableAttention(nn.Module):
    """Attention to P points a head and level, placed by the query; of width d and value width v = ratio d it has
    3 M L P (d + 1) + 2 d v + v + d parameters: 923,184 for d = 768, M = 12, L = 3, P = 4, v = 384.

    Starts as in fundamentalvision/Deformable-DETR: offsets on rings around the reference point, even weights.

    Args:
        dim: d, of queries, context and output.
        heads: M.
        levels: L.
        points: P.
        ratio: v / d; ViT-Adapter's `deform_ratio`.

    Raises:
        ValueError: the heads do not divide d or v.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int = 4, ratio: float = 1.0) -> None:
        super().__init__()
        inner = int(dim * ratio)
        if dim % heads or inner % heads or not inner:
            raise ValueError(
                f"Deformable attention of width {dim} and values of width {inner} cannot have {heads} heads; both "
                "widths have to be multiples of the heads. Change heads or ratio."
            )
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, inner)
        self.output_proj = nn.Linear(inner, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.sampling_offsets, self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ring = torch.stack([angle.cos(), angle.sin()], dim=-1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        rings = ring[:, None, None] * torch.arange(1, self.points + 1)[:, None]  # M 1 P 2
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(rings.expand(-1, self.levels, -1, -1).flatten())

    def forward(
        self, query: Tensor, reference: Tensor, context: Tensor, sizes: Sequence[Size], padding: Tensor | None = None
    ) -> Tensor:
        """Queries [B Q d] to [B Q d].

        Args:
            query: What asks.
            reference: Where each query looks, x before y, in 0..1 of a map; [B or 1, Q, L or 1, 2].
            context: The maps of all levels one after another, [B S d].
            sizes: Height and width of each level.
            padding: True at cells of the context that count as zero, [B S].
        """
        shape = (self.heads, self.levels, self.points)
        value = self.value_proj(context)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0)
        # Places and samples are float32 in any precision: bfloat16 cannot tell neighbouring cells of a map apart.
        offsets = self.sampling_offsets(query).float().unflatten(-1, (*shape, 2))  # B Q M L P 2
        weights = self.attention_weights(query).float().unflatten(-1, (self.heads, -1)).softmax(-1)
        size = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float32, device=query.device)
        at = reference.float()[:, :, None, :, None] + offsets / size[:, None]
        y = sample(value.float().unflatten(-1, (self.heads, -1)), sizes, at, weights.unflatten(-1, shape[1:]))
        return self.output_proj(y.to(value.dtype))


def centres(sizes: Sequence[Size], device: torch.device) -> Tensor:
    """The middle of every cell of some maps, as reference points [1 Q 1 2]."""
    maps = []
    for h, w in sizes:
        y = (torch.arange(h, device=device) + 0.5) / h
        x = (torch.arange(w, device=device) + 0.5) / w
        maps.append(torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1).flatten(0, 1))
    return torch.cat(maps)[None, :, None]


def sample(value: Tensor, sizes: Sequence[Size], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear samples, [B Q M*D], of float32 tensors.

    The backward pass finds the cells once more: between the passes nothing is kept but the arguments.

    Args:
        value: The maps of all levels, [B S M D].
        sizes: Height and width of each level.
        locations: Where to sample, x before y, in 0..1 of a level's map; [B Q M L P 2].
        weights: Of the samples, [B Q M L P].
    """
    return _Sample.apply(value, locations, weights, tuple(sizes))  # type: ignore[return-value]


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, sizes: tuple[Size, ...]) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.sizes = sizes
        batch, queries, heads = weights.shape[:3]
        out = value.new_zeros(batch * queries * heads, value.shape[-1])
        for level, cells in enumerate(value.split([h * w for h, w in sizes], dim=1)):
            row, (x, _), (y, _) = _cells(locations[:, :, :, level], sizes[level])
            table = _table(cells, sizes[level])
            for step, part in zip(_steps(sizes[level], heads), _parts(weights[:, :, :, level], x, y), strict=True):
                out += _bags(table, row + step, part)
        return out.view(batch, queries, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        value, locations, weights = ctx.saved_tensors
        grad = grad.reshape(-1, value.shape[-1])
        values, places, shares = [], [], []
        for level, cells in enumerate(value.split([h * w for h, w in ctx.sizes], dim=1)):
            of_level = _backward(grad, cells, locations[:, :, :, level], weights[:, :, :, level], ctx.sizes[level])
            for grads, one in zip((values, places, shares), of_level, strict=True):
                grads.append(one)
        return torch.cat(values, dim=1), torch.stack(places, dim=3), torch.stack(shares, dim=3), None


def _backward(grad: Tensor, cells: Tensor, at: Tensor, weights: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one level's cells, places and weights; grad is [N D], a row for each query and head."""
    (h, w), heads, points = size, weights.shape[2], weights.shape[-1]
    table = _table(cells, size)
    row, (x, near_x), (y, near_y) = _cells(at, size)
    # Corner by corner, a cell gathers from the samples to its lower right: a bag of rows of `grad`, in sorted order.
    key, order = row.flatten().sort()
    bags = torch.searchsorted(key, torch.arange(len(table), dtype=torch.int32, device=key.device), out_int32=True)
    reads = (order // points).int()
    dots, to_cells = [], torch.zeros_like(cells.unflatten(1, size))
    for corner, (step, part) in enumerate(zip(_steps(size, heads), _parts(weights, x, y), strict=True)):
        sums = F.embedding_bag(reads, grad, bags, per_sample_weights=part.flatten()[order], mode="sum")
        top, left = 1 - corner // 2, 1 - corner % 2
        to_cells += sums.view(-1, h + 2, w + 2, *cells.shape[2:])[:, top : top + h, left : left + w]
        dots.append(_dots(table, row + step, grad))
    upper, lower = dots[0].lerp(dots[1], x), dots[2].lerp(dots[3], x)
    to_x = (dots[1] - dots[0]).lerp(dots[3] - dots[2], y) * (weights * near_x * w)
    to_y = (lower - upper) * (weights * near_y * h)
    return to_cells.flatten(1, 2), torch.stack([to_x, to_y], dim=-1), upper.lerp(lower, y)


def _steps(size: Size, heads: int) -> tuple[int, int, int, int]:
    """From the row of an upper left cell to those of the corners: upper left and right, lower left and right."""
    below = (size[1] + 2) * heads
    return 0, heads, below, below + heads


def _parts(weights: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What each corner counts, the weight of the sample in it."""
    lower = weights * y
    upper = weights - lower
    upper_right, lower_right = upper * x, lower * x
    return upper - upper_right, upper_right, lower - lower_right, lower_right


def _bags(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums [N D] of rows of a table, P each: those in the last dimension of `rows` and `weights`, of N P."""
    rows, weights = rows.flatten(0, -2), weights.flatten(0, -2)
    if torch.compiler.is_compiling():
        return (table[rows] * weights[..., None]).sum(1)
    return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")


def _dots(table: Tensor, rows: Tensor, grad: Tensor) -> Tensor:
    """Scalar products of rows of a table, N P of them, with rows of `grad` [N D], each with P in turn."""
    points = rows.shape[-1]
    if torch.compiler.is_compiling():
        return (table[rows] * grad.view(*rows.shape[:-1], 1, -1)).sum(-1)
    first = torch.arange(0, rows.numel(), points, dtype=torch.int32, device=rows.device)
    owner = torch.arange(len(grad), dtype=torch.int32, device=rows.device).repeat_interleave(points)
    # torch has no public name for it.
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(grad, table, rows.flatten(), first, owner, 0)
    return dots.view(rows.shape)


def _table(cells: Tensor, size: Size) -> Tensor:
    """Cells [B h*w M D] in a border of zeros, as rows [B*(h+2)*(w+2)*M, D]."""
    maps = F.pad(cells.unflatten(1, size), (0, 0, 0, 0, 1, 1, 1, 1))
    return maps.reshape(-1, cells.shape[-1])


def _cells(at: Tensor, size: Size) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Of places [B Q M P 2] in a map: the row of the upper left cell in its table, and for x and for y how far the
    place is from that cell's middle, in cells, and whether it is near enough to the map for that to matter."""
    batch, _, heads = at.shape[:3]
    (h, w), device = size, at.device
    x, beyond_x, near_x = _axis(at[..., 0], w)
    y, beyond_y, near_y = _axis(at[..., 1], h)
    image = torch.arange(batch, dtype=torch.int32, device=device).view(-1, 1, 1, 1)
    head = torch.arange(heads, dtype=torch.int32, device=device)[:, None]
    row = ((image * (h + 2) + y) * (w + 2) + x) * heads + head
    return row, (beyond_x, near_x), (beyond_y, near_y)


def _axis(at: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same along one axis; the cell is counted with the border."""
    at = at * cells - 0.5
    near = (at > -1) & (at < cells)
    at = at.clamp(-1, cells)
    cell = at.floor().int().clamp(-1, cells - 1)  # as an integer: a place that is not a number has one too
    return cell + 1, at - cell, near
