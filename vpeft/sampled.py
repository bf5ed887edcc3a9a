"""The gradient of single entries of a weight, where that of the whole weight is not formed.

    y = W x,    dW[i, j] = sum_n dy[n, i] x[n, j]    at chosen (i, j) only

Shapes: N rows of all images, k entries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ROWS = 512  # taken at once: transposing more of them to new memory costs more than the products


class Sampled(torch.autograd.Function):
    """y as it is; on its way back the gradient of y gives `values` theirs.

    Args:
        y: W x, shape [..., out].
        values: Of the chosen entries of W, shape [k]. What makes W of them must not pass on a gradient.
        x: Shape [..., in].
        places: Of the values in the flat W, ascending, shape [k].
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, values: Tensor, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(x, places)
        ctx.dtype = values.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (dy,), (x, places) = gradients, ctx.saved_tensors
        return dy, entries_of_product(dy.flatten(0, -2), x.flatten(0, -2), places).to(ctx.dtype), None, None


@torch.library.custom_op("vpeft::entries_of_product", mutates_args=())
def entries_of_product(dy: Tensor, x: Tensor, places: Tensor) -> Tensor:
    """(dy^T x).flatten()[places] of dy [N, out], x [N, in] and ascending places [k]; single precision at least.

    On a CPU only these k entries are formed. Elsewhere all are, of one map at a time: tensor cores are quick at it,
    and no sampled product was measured against them.
    """
    wide = torch.promote_types(dy.dtype, torch.float32)
    if dy.device.type != "cpu":
        return (dy.T @ x.to(dy.dtype)).flatten()[places].to(wide)
    height, width = dy.shape[1], x.shape[1]
    starts = torch.arange(height + 1) * width
    # Any places, of a damaged adapter too, give indices within bounds.
    found = torch.sparse_csr_tensor(
        torch.searchsorted(places, starts),
        places.long() % width,
        torch.zeros(len(places), dtype=wide),
        (height, width),
        check_invariants=False,
    )
    for left, right in zip(dy.split(_ROWS), x.split(_ROWS), strict=True):
        found = torch.sparse.sampled_addmm(found, left.to(wide).T, right.to(wide))
    return found.values()


@entries_of_product.register_fake
def _(dy: Tensor, x: Tensor, places: Tensor) -> Tensor:
    return dy.new_empty(len(places), dtype=torch.promote_types(dy.dtype, torch.float32))
