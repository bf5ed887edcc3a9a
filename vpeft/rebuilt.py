"""Functions of what a norm or an activation gave, which keep none of it for the gradient.

    z = f(x, theta),  x = g(u)        kept: u and theta;  x = g(u) is made again for the gradient of theta

Through a frozen backbone a gradient needs what its norms and activations read, u, and not what they give: a frozen
map keeps no input. A trained map beside it would keep x, and x of fc2 is four times as wide as a token. So x is made
again, by one or two passes over it, from the very tensors that its own operation keeps. Which these are is asked of
the graph (`x.grad_fn`), so that no name of any library's modules is needed.

Where x comes from elsewhere, or the graph does not hold such tensors (torch.compile, torch.vmap, activation
checkpointing), f keeps what it keeps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Maker = Callable[..., Tensor]

# Numbers that are made again at a time: few enough for the cache. All at once would be a fresh piece of memory, and
# to get that from the system takes a CPU ten times as long as the pass itself (fc2 of ViT-B at batch 16: 22 ms, 2).
PORTION = 2**20


class Op(Protocol):
    """A function f(x, theta), affine in x, and its gradients for a gradient g of what it gives.

    theta, and x where it is asked for, come in the dtype of g.
    """

    def __call__(self, x: Tensor, *theta: Tensor) -> Tensor: ...
    def of_x(self, g: Tensor, *theta: Tensor) -> Tensor: ...
    def of_theta(self, g: Tensor, x: Tensor, *theta: Tensor) -> tuple[Tensor, ...]: ...  # a sum over all but channels


class Linear:
    """W x, or W x + b."""

    def __call__(self, x: Tensor, *theta: Tensor) -> Tensor:
        return F.linear(x, *theta)

    def of_x(self, g: Tensor, *theta: Tensor) -> Tensor:
        return g @ theta[0]

    def of_theta(self, g: Tensor, x: Tensor, *theta: Tensor) -> tuple[Tensor, ...]:
        g = g.flatten(0, -2)
        of_weight = g.T @ x.flatten(0, -2)
        return (of_weight,) if len(theta) == 1 else (of_weight, g.sum(0))


class Scale:
    """l * x."""

    def __call__(self, x: Tensor, *theta: Tensor) -> Tensor:
        return x * theta[0].to(x.dtype)

    def of_x(self, g: Tensor, *theta: Tensor) -> Tensor:
        return g * theta[0]

    def of_theta(self, g: Tensor, x: Tensor, *theta: Tensor) -> tuple[Tensor, ...]:
        return ((g * x).flatten(0, -2).sum(0),)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, for a weight that is trained."""
    return apply(Linear(), x, weight) if bias is None else apply(Linear(), x, weight, bias)


def apply(op: Op, x: Tensor, *theta: Tensor) -> Tensor:
    """op(x, *theta)."""
    # While compiling, torch chooses by itself what it keeps.
    if torch.compiler.is_compiling() or not any(t.requires_grad for t in theta):
        return op(x, *theta)
    made = _maker(x)
    if made is None:
        return op(x, *theta)
    maker, kept = made
    z = _Rebuilt.apply(op, maker, len(theta), x, *theta, *kept)
    assert isinstance(z, Tensor)
    return z


def _norm(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addcmul(bias, torch.addcmul(-mean * rstd, x, rstd), weight)


# By the name that the graph has for it: the operation, the tensors it keeps, and its options.
_MAKERS: dict[str, tuple[Maker, tuple[str, ...], tuple[str, ...]]] = {
    "GeluBackward0": (F.gelu, ("self",), ("approximate",)),
    "SiluBackward0": (F.silu, ("self",), ()),
    "MulBackward0": (torch.mul, ("self", "other"), ()),  # QuickGELU, and the product in a SwiGLU
    "NativeLayerNormBackward0": (_norm, ("input", "result1", "result2", "weight", "bias"), ()),
}


def _maker(x: Tensor) -> tuple[Maker, list[Tensor]] | None:
    """What made x, and of which tensors, if these are kept as they are."""
    node: Any = x.grad_fn
    if node is None or x.output_nr != 0 or node.name() not in _MAKERS:
        return None
    maker, names, options = _MAKERS[node.name()]
    # To read a tensor that a hook has put away, as checkpointing does, would fetch it now.
    if any(getattr(node, f"_raw_saved_{name}").unpack_hook is not None for name in names):
        return None
    kept = [getattr(node, f"_saved_{name}") for name in names]
    if any(tensor is None for tensor in kept):
        return None
    chosen = {option: getattr(node, f"_saved_{option}") for option in options}
    return partial(maker, **chosen), [tensor.detach() for tensor in kept]


class _Rebuilt(torch.autograd.Function):
    @staticmethod
    def forward(op: Op, maker: Maker, count: int, x: Tensor, *tensors: Tensor) -> Tensor:
        return op(x, *tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.op, ctx.maker, ctx.count, _, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        tensors = ctx.saved_tensors
        # Under autocast g has the dtype that the forward was computed in; torch casts gradients to what they are of.
        theta = [tensor.to(g.dtype) for tensor in tensors[: ctx.count]]
        kept = tensors[ctx.count :]
        parts = [
            ctx.op.of_theta(some, ctx.maker(*of_some).to(g.dtype), *theta) for some, *of_some in _portions(g, kept)
        ]
        of_theta = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
        return None, None, None, ctx.op.of_x(g, *theta), *of_theta, *(None for _ in kept)


def _portions(g: Tensor, kept: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """g and what x is made of, some images at a time on a CPU."""
    count = len(g)
    if g.device.type == "cpu":
        count = max(1, count * PORTION // max(tensor.numel() for tensor in kept))

    def of_each(tensor: Tensor) -> bool:  # not a weight, nor the same for all images; a gate has fewer tokens than g
        return tensor.ndim == g.ndim and len(tensor) == len(g)

    split = [tensor.split(count) if of_each(tensor) else itertools.repeat(tensor) for tensor in (g, *kept)]
    return zip(*split, strict=False)
