"""The places where a method may touch a frozen backbone, and every hook of this project.

    pixels   the image before the patch embedding                 Backbone.edit_pixels(f)
    tokens   the sequence entering or leaving a block             Block.before(f), Block.after(f)
             the sequence leaving the last block                  Backbone.before_finish(f)
    branch   y in  x + y,  y = f(norm(x))                          Branch.edit(f),  f(x, h, y) -> y
             h = norm(x), what the branch reads                    Branch.edit_input(f),  f(x, h) -> h
    affine   y = W x + b                                           Affine.edit(update)
             the x of it                                           Affine.edit_input(f)
    query    tokens that read a block's keys and values            Block.attend(queries, context)
    stage    the loop over blocks, written in the open             Backbone.embed, blocks, finish, pool
    features what the head will see                                Backbone.edit_features(f), read_with(f)

A hook is a bound method or an object with `__call__`, never a closure: deepcopy and pickle follow
the former to the copy, and silently keep the original inside the latter.

Shapes: B images, N tokens, C channels, H W grid, P prefix tokens. Windowed backbones hand their tokens as
B H W C, and as B 1 N C once a method has put prompts before them; `Block.split` takes all of these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

TokenEdit = Callable[[Tensor], Tensor]
BranchEdit = Callable[[Tensor, Tensor, Tensor], Tensor]
InputEdit = Callable[[Tensor, Tensor], Tensor]


class Branch:
    """A residual branch, named by the module that opens it (its norm) and the one that closes it.

    An edit sees the residual stream x, h = norm(x), and y, what the branch is about to add; what it
    returns is added instead. An input edit sees x and h, and the branch reads what it returns. Edits
    run in the order in which they were attached.
    """

    def __init__(self, opens: nn.Module, closes: nn.Module) -> None:
        self.opens, self.closes = opens, closes
        self.edits: list[BranchEdit] = []
        self.input_edits: list[InputEdit] = []
        # One slot, not a stack: activation checkpointing may leave a forward half done, and the
        # next one then overwrites what was left.
        self._seen: tuple[Tensor, Tensor] | None = None

    def edit(self, edit: BranchEdit) -> None:
        self._listen()
        self.edits.append(edit)

    def edit_input(self, edit: InputEdit) -> None:
        self._listen()
        self.input_edits.append(edit)

    def _listen(self) -> None:
        if not self.edits and not self.input_edits:
            self.opens.register_forward_hook(self._open)
            self.closes.register_forward_hook(self._close)

    def _open(self, norm: nn.Module, args: tuple[Any, ...], h: Tensor) -> Tensor:
        for edit in self.input_edits:
            h = edit(args[0], h)
        self._seen = (args[0], h)
        return h

    def _close(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        assert self._seen is not None, "a branch closed that had not been opened"
        (x, h), self._seen = self._seen, None
        y, *rest = out if isinstance(out, tuple) else (out,)
        for edit in self.edits:
            y = edit(x, h, y)
        return (y, *rest) if rest else y


class Update(Protocol):
    """A change of one affine map, stated twice: on its output, and on its weight and bias.

    The two must agree. Training uses `output`, which needs no gradient of the full weight; merging
    uses `weight` and `bias`, and so do maps that torch reads as tensors and never calls.
    """

    def output(self, x: Tensor, y: Tensor) -> Tensor: ...
    def weight(self, w: Tensor) -> Tensor: ...
    def bias(self, b: Tensor) -> Tensor: ...


@dataclass
class Affine:
    """y = W x + b, held as two parameters of `owner`.

    Args:
        owner: Module that holds the parameters.
        weight: Name of W in `owner`; shape (out, in), (out, in, kh, kw) or, for a norm, (out,).
        bias: Name of b in `owner`.
        called: False where torch reads W as a tensor, so that no forward hook ever fires.
        channels: Axis of `y` that holds the outputs.
    """

    owner: nn.Module
    weight: str = "weight"
    bias: str = "bias"
    called: bool = True
    channels: int = -1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of W: (out, in, ...), or (out,) for a norm."""
        return tuple(getattr(self.owner, self.weight).shape)

    def edit(self, update: Update) -> None:
        if self.called:
            self.owner.register_forward_hook(_OnOutput(update, self.channels))
            return
        for name, which in ((self.weight, "weight"), (self.bias, "bias")):
            if getattr(self.owner, name) is not None:
                parametrize.register_parametrization(self.owner, name, _OnTensor(update, which))

    def edit_input(self, edit: TokenEdit) -> None:
        """Change x in y = W x + b.

        Raises:
            ValueError: torch reads this W as a tensor, so that nobody ever sees its x.
        """
        if not self.called:
            raise ValueError(
                f"{type(self.owner).__name__} reads '{self.weight}' as a tensor, so that its input is never seen. Take "
                "the same weights from timm."
            )
        self.owner.register_forward_pre_hook(_OnInput(edit))

    @torch.no_grad()
    def merge(self, update: Update) -> None:
        """Write the update into W and b, in place."""
        w, b = _stored(self.owner, self.weight), _stored(self.owner, self.bias)
        w.copy_(update.weight(w))
        if b is not None:
            b.copy_(update.bias(b))
        elif update.bias(w.new_zeros(len(w))).any():
            raise ValueError(
                f"This method adds a bias to a {type(self.owner).__name__} that has none, so it cannot be merged "
                "into the backbone's own weights. Use the adapter unmerged."
            )


def _stored(owner: nn.Module, name: str) -> Any:
    """The tensor behind a possibly parametrized name."""
    if parametrize.is_parametrized(owner, name):
        return owner.parametrizations[name].original  # type: ignore[index]
    return getattr(owner, name)


@dataclass
class _OnOutput:
    update: Update
    channels: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        if self.channels == -1:
            return self.update.output(args[0], y)
        return self.update.output(args[0], y.movedim(self.channels, -1)).movedim(-1, self.channels)


@dataclass
class _OnInput:
    edit: TokenEdit

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.edit(args[0]), *args[1:])


class _OnTensor(nn.Module):
    def __init__(self, update: Update, which: str) -> None:
        super().__init__()
        self._change = [getattr(update, which)]  # in a list: the method, not the backbone, owns the update

    def forward(self, tensor: Tensor) -> Tensor:
        return self._change[0](tensor)


# Maps that some backbones keep apart, and the name that stands for them all.
APART = {"qkv": ("q", "k", "v"), "fc1": ("fc1_g", "fc1_x")}


@dataclass
class Block:
    """One transformer block, its parts under common names.

    Args:
        module: The backbone's own block.
        attn: Its attention branch.
        mlp: Its MLP branch.
        affines: Its affine maps by role: norm1 qkv q k v proj norm2 fc1 fc2.
        dim: Width C.
        grid: Height and width of its patch grid.
        prefix: Tokens before the patches; a method that adds some calls `grow_prefix`.
        windowed: Whether attention stays within windows, and tokens come as B H W C.
        cross: Attention of given queries over given context, both normalised: `(q, kv) -> y`.
        extra: Further arguments of `module`, asked for at each call (rotary position embeddings).
        counts_prefix: Module whose `num_prefix_tokens` must follow `prefix` (rotary attention).
    """

    module: nn.Module
    attn: Branch
    mlp: Branch
    affines: dict[str, Affine]
    dim: int
    grid: tuple[int, int]
    prefix: int = 0
    windowed: bool = False
    cross: Callable[[Tensor, Tensor], Tensor] | None = None
    extra: Callable[[], dict[str, Any]] | None = None
    counts_prefix: Any = None
    _before: list[TokenEdit] = field(default_factory=list)
    _after: list[TokenEdit] = field(default_factory=list)

    def __call__(self, x: Tensor) -> Tensor:
        for edit in self._before:
            x = edit(x)
        out = self.module(x, **(self.extra() if self.extra else {}))
        x = out[0] if isinstance(out, tuple) else out
        for edit in self._after:
            x = edit(x)
        return x

    def before(self, edit: TokenEdit) -> None:
        self._before.append(edit)

    def after(self, edit: TokenEdit) -> None:
        self._after.append(edit)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Any tokens of this block, as prefix [B P C] and patches [B H W C]."""
        tokens = x.flatten(1, -2)
        return tokens[:, : self.prefix], tokens[:, self.prefix :].unflatten(1, self.grid)

    def join(self, prefix: Tensor, patches: Tensor, like: Tensor) -> Tensor:
        """What `split` gave, in the shape of `like` but for its channels."""
        tokens = torch.cat([prefix, patches.flatten(1, 2)], dim=1)
        return tokens.view(*like.shape[:-1], tokens.shape[-1])

    def grow_prefix(self, count: int) -> None:
        self.prefix += count
        if self.counts_prefix is not None:
            self.counts_prefix.num_prefix_tokens += count

    def attend(self, queries: Tensor, context: Tensor) -> Tensor:
        """Attention output of queries [B T C] over the keys and values of context [B N C].

        Both are normalised (norm1) already. The context does not see the queries. Rotary position
        embeddings rotate the context's patches; queries carry no position.
        """
        if self.cross is None:
            raise ValueError(
                f"{type(self.module).__name__} attends within windows: there is no one set of keys that a "
                "query token could read. Methods that query a block need a plain ViT."
            )
        return self.cross(queries, context)

    def find(self, role: str) -> list[tuple[Affine, slice]]:
        """The maps, and the rows of each, that `role` names in this backbone.

        `q` is some rows of a fused qkv, or all rows of a map of its own; `qkv` is one map or three.

        Raises:
            ValueError: there is no such role; the roles there are are named.
        """
        if role in self.affines:
            affine = self.affines[role]
            return [(affine, slice(0, affine.shape[0]))]
        if role in APART["qkv"] and "qkv" in self.affines:
            affine, at = self.affines["qkv"], APART["qkv"].index(role)
            size = affine.shape[0] // 3
            return [(affine, slice(at * size, (at + 1) * size))]
        if role in APART and all(part in self.affines for part in APART[role]):
            return [found for part in APART[role] for found in self.find(part)]
        raise ValueError(
            f"{type(self.module).__name__} has no affine map '{role}'. It has {', '.join(sorted(self.roles()))}."
        )

    def roles(self) -> set[str]:
        """Every name that `find` knows in this block."""
        named = set(self.affines)
        if "qkv" in named:
            named.update(APART["qkv"])
        return named | {whole for whole, parts in APART.items() if named.issuperset(parts)}
