"""The places where a method may touch a frozen backbone; with `vpeft/affine.py`, every hook of this project.

    pixels   the image before the patch embedding                 Backbone.edit_pixels(f)
             features of the image without such edits             Backbone.look(images)
    tokens   the sequence entering or leaving a block             Block.before(f), Block.after(f)
             the sequence leaving the last block                  Backbone.before_finish(f)
    branch   y in  x + y,  y = f(norm(x))                          Branch.edit(f),  f(x, h, y) -> y
             h = norm(x), what the branch reads                    Branch.edit_input(f),  f(x, h) -> h
             norm(x) of tokens that do not pass the branch         Branch.norm(x)
    affine   y = W x + b                                           Affine.edit(update), .merge(update)
             W and b while y is computed                          Affine.replace(update)
             the gradient of y                                    Affine.edit_gradient(f),  f(x, y) -> y
             the x of it                                           Affine.edit_input(f), .merge_input(M, c)
    query    tokens that read a block's keys and values            Block.attend(queries, context)
             the block's whole path for them                       Block.query(queries, *Block.keys_values(x))
    keys     further keys and values in a block's attention        Block.add_keys(count, f),  f() -> k, v
    stage    the loop over blocks, written in the open             Backbone.embed, blocks, finish, pool
    features what the head will see                                Backbone.edit_features(f), read_with(f)

A hook is a bound method or an object with `__call__`, never a closure: deepcopy and pickle follow
the former to the copy, and silently keep the original inside the latter.

Shapes: B images, N tokens, C channels, H W grid, P prefix tokens. Windowed backbones hand their tokens as
B H W C, and as B 1 N C once a method has put prompts before them; `Block.split` takes all of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vpeft.affine import Affine, TokenEdit
from vpeft.attention import Cross, InRows, KeysValues, MoreKeys, Rest

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

    def norm(self, x: Tensor) -> Tensor:
        """What the branch would read of tokens that take another way, without its edits."""
        return self.opens.forward(x)

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


# Maps that some backbones keep apart, and the name that stands for them all.
APART = {"qkv": ("q", "k", "v"), "fc1": ("fc1_g", "fc1_x")}


@dataclass
class Block:
    """One transformer block, its parts under common names.

    Args:
        module: The backbone's own block.
        attn: Its attention branch.
        mlp: Its MLP branch.
        affines: Its affine maps by role: norm1 qkv q k v proj norm2 fc1 fc2, and gate where attention has one.
        dim: Width C.
        grid: Height and width of its patch grid.
        prefix: Tokens before the patches; a method that adds some calls `grow_prefix`.
        windowed: Whether attention stays within windows, and tokens come as B H W C.
        pads: Whether windows are filled up with zeros after norm1, which are no tokens.
        heads: Of its attention.
        attention: The module that is its attention.
        cross: That attention, for given queries over given context.
        rest: What follows the attention.
        place: Teaches the attention of that many more tokens that have no place in the grid.
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
    pads: bool = False
    heads: int = 1
    attention: Any = None
    cross: Cross | None = None
    rest: Rest | None = None
    place: Callable[[int], None] | None = None
    extra: Callable[[], dict[str, Any]] | None = None
    counts_prefix: Any = None
    _before: list[TokenEdit] = field(default_factory=list)
    _after: list[TokenEdit] = field(default_factory=list)
    _keys: MoreKeys = field(default_factory=MoreKeys)

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
        return self._cross().read(queries, *self._cross().context(context))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens [B N C] entering this block, for `query`."""
        return self._cross().context(self.attn.norm(x))

    def query(self, queries: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What this block makes of queries [B T C], tokens like any others that its own tokens do not see.

        They pass the frozen block; what other methods do in its branches is for its own tokens.
        """
        assert self.rest is not None, "a block that can be queried knows its rest"
        return self.rest(queries, self._cross().read(self.attn.norm(queries), k, v))

    def _cross(self) -> Cross:
        if self.cross is None:
            raise ValueError(
                f"{type(self.module).__name__} attends within windows: there is no one set of keys that a "
                "query token could read. Methods that query a block need a plain ViT."
            )
        return self.cross

    def add_keys(self, count: int, keys_values: KeysValues) -> None:
        """Let every token also attend to `count` keys, with their values; each [count, C], asked for at each call.

        Raises:
            ValueError: the vendor's code leaves no place for them.
        """
        first = not self._keys.sources
        self._keys.sources.append(keys_values)
        self._keys.count += count
        if isinstance(self.attention, nn.MultiheadAttention):
            if first:
                self.attention.register_forward_pre_hook(self._keys.lend)
                self.attention.register_forward_hook(self._keys.take_back)
            return
        if self.place is not None:
            self.place(count)
        if not first:
            return
        for which, role in enumerate("kv"):
            ((affine, rows),) = self.find(role)
            if not affine.called:
                raise ValueError(
                    f"{type(self.attention).__name__} reads '{role}' as a tensor, so that no keys can join its own. "
                    "Take the same weights from timm."
                )
            affine.owner.register_forward_hook(InRows(self._keys, which, rows))
        self.attention.register_forward_pre_hook(self._keys.lengthen, with_kwargs=True)
        self.attention.register_forward_hook(self._keys.shorten, prepend=True)

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

    def group(self, roles: Iterable[str]) -> list[tuple[Affine, list[slice]]]:
        """The maps that `roles` name, each once, with the rows that are named.

        Raises:
            ValueError: there is no such role, or rows are named twice.
        """
        roles = list(roles)
        grouped: dict[int, tuple[Affine, list[slice]]] = {}
        for affine, rows in (found for role in roles for found in self.find(role)):
            taken = grouped.setdefault(id(affine), (affine, []))[1]
            if any(rows.start < other.stop and other.start < rows.stop for other in taken):
                raise ValueError(f"{', '.join(roles)} name one map twice, as qkv holds q; leave one of them out.")
            taken.append(rows)
        return [(affine, sorted(taken, key=lambda rows: rows.start)) for affine, taken in grouped.values()]

    def roles(self) -> set[str]:
        """Every name that `find` knows in this block."""
        named = set(self.affines)
        if "qkv" in named:
            named.update(APART["qkv"])
        return named | {whole for whole, parts in APART.items() if named.issuperset(parts)}
