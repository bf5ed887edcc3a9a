"""Multi-scale deformable attention (Zhu et al., ICLR 2021, arXiv:2010.04159), without a compiled operator.

    y_q = sum_h W_h  sum_l sum_p  A_hlqp  V_l( r_q + offset_hlqp / (w_l, h_l) )

V_l(.) is bilinear, half-pixel centred, zero outside of the map. A sample is a weighted sum of four rows of a table, so
that all samples of a query and a level are one `embedding_bag`: what is sampled is never written out.

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

    The backward pass computes the places once more: between the passes nothing is kept but the arguments.

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
            h, w = sizes[level]
            row, share, _ = _cells(locations[:, :, :, level], (h, w))
            down, right = (w + 2) * heads, heads
            rows = torch.stack([row, row + right, row + down, row + down + right], dim=-1)  # of the four corners
            x, y = share.unbind(-1)
            bottom = weights[:, :, :, level] * y
            top = weights[:, :, :, level] - bottom
            right_top, right_bottom = top * x, bottom * x
            parts = torch.stack([top - right_top, right_top, bottom - right_bottom, right_bottom], dim=-1)
            out += F.embedding_bag(
                rows.view(len(out), -1), _table(cells, (h, w)), per_sample_weights=parts.view(len(out), -1), mode="sum"
            )
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
    row, share, inside = _cells(at, size)
    # Corner by corner, a cell gathers from the samples to its lower right: a bag of rows of `grad`, in sorted order.
    key, order = row.flatten().sort()
    bags = torch.searchsorted(key, torch.arange(len(table), dtype=torch.int32, device=key.device), out_int32=True)
    reads = (order // points).int()
    sample_of = torch.arange(len(grad), dtype=torch.int32, device=key.device).repeat_interleave(points)
    first = torch.arange(0, row.numel(), points, dtype=torch.int32, device=key.device)
    to_table, to_weights, to_share = torch.zeros_like(table), torch.zeros_like(weights), torch.zeros_like(share)
    x, y = share.unbind(-1)
    for bottom in (0, 1):
        for right in (0, 1):
            step = (bottom * (w + 2) + right) * heads
            in_x, in_y = (x if right else 1 - x), (y if bottom else 1 - y)
            part = (weights * in_x * in_y).flatten()[order]
            gathered = F.embedding_bag(reads, grad, bags, per_sample_weights=part, mode="sum")
            to_table[step:] += gathered[: len(table) - step]
            # <grad, corner> of every sample; torch has no public name for it.
            dot = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                grad, table, (row + step).flatten(), first, sample_of, 0
            ).view(weights.shape)
            to_weights += dot * in_x * in_y
            to_share[..., 0] += dot * in_y if right else -dot * in_y
            to_share[..., 1] += dot * in_x if bottom else -dot * in_x
    scale = torch.tensor((w, h), dtype=share.dtype, device=share.device)
    to_cells = to_table.view(-1, h + 2, w + 2, *cells.shape[2:])[:, 1:-1, 1:-1].flatten(1, 2)
    return to_cells, to_share * (weights[..., None] * inside * scale), to_weights


def _table(cells: Tensor, size: Size) -> Tensor:
    """Cells [B h*w M D] in a border of zeros, as rows [B*(h+2)*(w+2)*M, D]."""
    maps = F.pad(cells.unflatten(1, size), (0, 0, 0, 0, 1, 1, 1, 1))
    return maps.reshape(-1, cells.shape[-1])


def _cells(at: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Of places [B Q M P 2] in a map: the row of the upper left cell in its table, how far the place is from there
    to the lower right one, and whether it is near enough to the map for that to matter."""
    batch, _, heads = at.shape[:3]
    h, w = size
    scale = torch.tensor((w, h), dtype=at.dtype, device=at.device)
    at = at * scale - 0.5
    inside = (at > -1) & (at < scale)
    at = at.clamp(min=torch.full_like(scale, -1), max=scale)
    corner = at.int() - (at < 0).int()  # floor, within -1..; what is not a number stays so in `share`
    corner = torch.stack([corner[..., 0].clamp(-1, w - 1), corner[..., 1].clamp(-1, h - 1)], dim=-1)
    image = torch.arange(batch, dtype=torch.int32, device=at.device).view(-1, 1, 1, 1)
    head = torch.arange(heads, dtype=torch.int32, device=at.device)[:, None]
    x, y = (corner + 1).unbind(-1)
    return ((image * (h + 2) + y) * (w + 2) + x) * heads + head, at - corner, inside
