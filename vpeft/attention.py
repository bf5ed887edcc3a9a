"""The inside of a block's attention: for tokens that only read it, and for keys and values it reads besides.

Its hooks are registered by `vpeft.seams.Block.add_keys`.

Shapes: B images (or windows), N tokens, T query tokens, P further keys, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

KeysValues = Callable[[], tuple[Tensor, Tensor]]  # P C each, of one block and all images


class Cross(Protocol):
    """Attention in two steps, so that what does not depend on the queries can be kept."""

    def context(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B heads N C/heads] of normalised tokens [B N C]."""
        ...

    def read(self, queries: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What normalised queries [B T C] read in them, after the output projection."""
        ...


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of few queries [B heads T C/heads], back as [B T C].

    Written out: torch's fused kernel computes gradients of k and v that nobody asks for.
    """
    scores = (q * q.shape[-1] ** -0.5).type_as(k) @ k.transpose(-2, -1)  # B heads T N
    return (scores.softmax(dim=-1).type_as(v) @ v).transpose(1, 2).flatten(2)


@dataclass
class Rest:
    """What a block does with tokens after their attention: z = x + scale1(y), z + scale2(mlp(norm2(z))).

    Past the hooks of these modules: what other methods do in the branches is for the block's own tokens.
    """

    norm2: nn.Module
    mlp: nn.Module
    scale1: Callable[[Tensor], Tensor]
    scale2: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        z = x + self.scale1(y)
        return z + self.scale2(self.mlp.forward(self.norm2.forward(z)))


@dataclass
class MoreKeys:
    """Further keys and values, through rows of the attention's input that are given and taken away inside it.

    The rows enter as zeros; the outputs of the maps k and v are replaced there; what they attend to is thrown
    away. Softmax does not know the order of keys, so it is no matter that they stand first.
    """

    sources: list[KeysValues] = field(default_factory=list)
    count: int = 0

    def lengthen(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args:
            name = next(iter(kwargs))  # transformers names the tokens
            return args, {**kwargs, name: self._with_zeros(kwargs[name])}
        return (self._with_zeros(args[0]), *args[1:]), kwargs

    def _with_zeros(self, x: Tensor) -> Tensor:
        return torch.cat([x.new_zeros(len(x), self.count, x.shape[-1]), x], dim=1)

    def shorten(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        y, *rest = out if isinstance(out, tuple) else (out,)
        y = y[:, self.count :]
        return (y, *rest) if rest else y

    def rows(self, which: int) -> Tensor:
        return torch.cat([source()[which] for source in self.sources])

    def lend(self, attn: Any, args: tuple[Any, ...]) -> None:
        """torch's own attention has a place for further keys and values, and takes any number of them."""
        attn.bias_k, attn.bias_v = (self.rows(which).unsqueeze(1) + 0 for which in (0, 1))  # + 0: not a parameter

    def take_back(self, attn: Any, args: tuple[Any, ...], out: Any) -> None:
        attn.bias_k = attn.bias_v = None


@dataclass
class InRows:
    """Puts the further keys (0) or values (1) into the first rows of what a map gave."""

    more: MoreKeys
    which: int
    channels: slice

    def __call__(self, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        first, last = y.split([self.more.count, y.shape[1] - self.more.count], dim=1)
        learned = self.more.rows(self.which).to(y.dtype).expand(len(y), -1, -1)
        first = torch.cat([first[..., : self.channels.start], learned, first[..., self.channels.stop :]], dim=-1)
        return torch.cat([first, last], dim=1)
