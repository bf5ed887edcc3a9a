"""Where a connector may touch a causal language model of transformers, and every hook of mllm on one.

    tokens     the sequence entering a layer                      Layer.before(f),  f(x, first) -> x
    rows       some positions take another path than a map        Layer.reroute(role, path),  path.rows(x, first),
               or the MLP of the layer                             path(rows of x) -> rows of y
    attention  a second softmax over further keys and values      Layer.attend_also(f),  f(q, layer) -> heads' output
               the layer's own maps k and v of further tokens      Layer.keys_values(x)
    rotation   the positions by which queries and keys turn        Decoder.rotate_by(f),  f(positions, x, first)

`first` is the number of columns that a key-value cache holds already (`mllm.window`). Functions are bound methods or
objects with `__call__`, never closures, as in `vpeft.seams`.

A model may be wrapped by Hugging Face peft. That comes first: maps that are replaced after something was attached to
them (LoRA that is added late, or merged and unloaded) are refused at the next forward. Layers may be recomputed in the
backward pass (`use_reentrant=False`, the default of transformers).

Shapes: B sequences, T positions of a forward, H heads, G heads of keys and values, N further tokens, C width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mllm.shapes import TextShape
from mllm.window import Kept, Rows

TokenEdit = Callable[[Tensor, int], Tensor]
PositionEdit = Callable[[Tensor, Tensor, int], Tensor]

_MAPS = {
    "attention": "self_attn",
    **{role: f"self_attn.{role}_proj" for role in "qkvo"},
    "mlp": "mlp",
    **{role: f"mlp.{role}_proj" for role in ("gate", "up", "down")},
}
_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}

# Class of a decoder layer -> its parts by role; the tokens entering a layer need none.
FAMILIES: dict[str, dict[str, str]] = {
    "LlamaDecoderLayer": _MAPS,
    "MistralDecoderLayer": _MAPS,
    "Qwen2DecoderLayer": _MAPS,
    "Qwen3DecoderLayer": _MAPS | _NORMS,
    "GemmaDecoderLayer": _MAPS,
    "GraniteDecoderLayer": _MAPS,
    "GPT2Block": {},
    "GPTNeoXLayer": {},
    "OPTDecoderLayer": {},
}


class Path(Protocol):
    """The way that some positions take instead of a map or an MLP."""

    def rows(self, x: Tensor, first: int) -> Rows | None:
        """Which positions of x [B T C] take this path; None if all stay."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Their rows [n, in] to [n, out]."""
        ...


class Further(Protocol):
    """What queries read under a softmax of its own."""

    def __call__(self, q: Tensor, layer: Layer) -> Tensor:
        """Rotated queries [B H T C/H] to what is added to the heads' output, the same shape."""
        ...


class Decoder:
    """The layers of a causal language model under common names.

    Args:
        model: A transformers causal LM, plain or wrapped by peft.

    Raises:
        ValueError: its layers are of a type that is not known.
    """

    def __init__(self, model: nn.Module) -> None:
        causal: Any = model
        self.model = causal.get_base_model() if hasattr(causal, "get_base_model") else causal
        self.body = self.model.get_decoder() if hasattr(self.model, "get_decoder") else self.model
        found = [getattr(self.body, name, None) for name in ("layers", "h")]
        blocks = next((blocks for blocks in found if isinstance(blocks, nn.ModuleList)), ())
        self.layers = [Layer(block, _family(block), self) for block in blocks]
        if not self.layers:
            raise ValueError(
                f"{type(self.model).__name__} has no list of decoder layers. Choose a language model of one of these: "
                f"{_known()}."
            )
        self.first = 0
        self.hooked: list[tuple[nn.Module, str, nn.Module]] = []
        self._listens = False

    def check(self, text: TextShape) -> None:
        """Raise ValueError if a connector was built for another language model."""
        from mllm.language import text_shape

        found = text_shape(self.model)
        if text != found:
            raise ValueError(
                f"The connector was built for {text}, and this language model is {found}. Build it from the shape of "
                "the model that it is attached to."
            )

    def rotate_by(self, edit: PositionEdit) -> None:
        """Turn queries and keys by other positions; masks and position embeddings that are added keep theirs.

        Raises:
            ValueError: the model has no rotary embedding that is known.
        """
        self.layers[0].part("attention")
        self.listen()
        self.body.rotary_emb.register_forward_pre_hook(_OnPositions(edit, self), with_kwargs=True)

    def listen(self) -> None:
        """Follow how much of the sequences the cache holds."""
        if not self._listens:
            self._listens = True
            self.body.register_forward_pre_hook(self._enter, with_kwargs=True)

    def _enter(self, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        self.first = 0 if cache is None else int(cache.get_seq_length())
        for block, name, part in self.hooked:
            if block.get_submodule(name) is not part:
                raise RuntimeError(
                    f"{name} of a {type(block).__name__} was replaced after a connector had been attached to it, which "
                    "would now be left out. Add LoRA before the connector is attached, and merge it without unloading."
                )


@dataclass
class Layer:
    """One decoder layer: the model's own module, and the names in it of its parts by role."""

    module: nn.Module
    parts: dict[str, str]
    decoder: Decoder = field(repr=False)

    def part(self, role: str) -> Any:
        """The module of a role: attention q k v o mlp gate up down, and q_norm k_norm where there are such.

        Raises:
            ValueError: it is not known where that is in this layer.
        """
        if role not in self.parts:
            inside = ", ".join(name for name, parts in FAMILIES.items() if role in parts)
            raise ValueError(
                f"'{role}' of a {type(self.module).__name__} is not known here. It is known of {inside or 'no layer'}; "
                "choose such a language model, or a connector or method that does not need it."
            )
        return self.module.get_submodule(self.parts[role])

    def plain(self, role: str) -> Any:
        """The same without what peft has put around it."""
        part = self.part(role)
        return part.get_base_layer() if hasattr(part, "get_base_layer") else part

    def before(self, edit: TokenEdit) -> None:
        self.decoder.listen()
        self.module.register_forward_pre_hook(_OnTokens(edit, self.decoder), with_kwargs=True)

    def reroute(self, role: str, path: Path) -> None:
        """Let some positions take `path` instead of the map or the MLP that `role` names, which never sees them."""
        hook = _OnRows(path, self.decoder)
        part = self._hook(role)
        part.register_forward_pre_hook(hook.enter)
        part.register_forward_hook(hook.leave)

    def attend_also(self, further: Further) -> None:
        """Add what rotated queries read elsewhere to the output of the heads, before the map o."""
        hook = _OnAttention(further, self)
        self._hook("attention").register_forward_pre_hook(hook.enter, with_kwargs=True)
        self._hook("q_norm" if "q_norm" in self.parts else "q").register_forward_hook(hook.ask)
        self._hook("o").register_forward_pre_hook(hook.add)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's own keys and values [B G N C/H] of tokens [B N C] as they are: no norm before, no rotation."""
        k, v = (self.part(role)(x).unflatten(-1, (-1, self.part("attention").head_dim)) for role in "kv")
        if "k_norm" in self.parts:
            k = self.part("k_norm")(k)
        return k.transpose(1, 2), v.transpose(1, 2)

    @property
    def scale(self) -> float:
        """Of the scores of its attention."""
        return self.part("attention").scaling

    def _hook(self, role: str) -> nn.Module:
        self.decoder.listen()
        part = self.part(role)
        self.decoder.hooked.append((self.module, self.parts[role], part))
        return part


@dataclass
class _OnTokens:
    edit: TokenEdit
    decoder: Decoder

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (self.edit(args[0], self.decoder.first), *args[1:]), kwargs


@dataclass
class _OnPositions:
    edit: PositionEdit
    decoder: Decoder

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, positions, *_ = (*args, *kwargs.values())
        return (x, self.edit(positions, x, self.decoder.first)), {}


@dataclass
class _OnRows:
    path: Path
    decoder: Decoder
    seen: Kept[tuple[Tensor, Rows]] = field(default_factory=lambda: Kept("a map ended unbegun"))

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        x = args[0]
        rows = self.path.rows(x, self.decoder.first)
        if rows is None:
            self.seen.value = None
            return None
        self.seen.value = (x, rows)
        return (x.flatten(0, 1)[rows.stay], *args[1:])

    def leave(self, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        if self.seen.value is None:
            return y
        x, rows = self.seen.take()
        other = self.path(x.flatten(0, 1)[rows.go]).to(y.dtype)
        return torch.cat([y, other])[rows.order].unflatten(0, x.shape[:2])


@dataclass
class _OnAttention:
    further: Further
    layer: Layer
    rotary: Kept[tuple[Tensor, Tensor]] = field(default_factory=lambda: Kept("queries without an attention"))
    queries: Kept[Tensor] = field(default_factory=lambda: Kept("an attention without queries"))

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.rotary.value = kwargs["position_embeddings"]

    def ask(self, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
        self.queries.value = y

    def add(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        cos, sin = (part.unsqueeze(1) for part in self.rotary.take())
        y = self.queries.take()
        q = y.view(*y.shape[:2], -1, cos.shape[-1]).transpose(1, 2)  # B H T C/H
        low, high = q.chunk(2, dim=-1)
        q = q * cos + torch.cat([-high, low], dim=-1) * sin
        added = self.further(q, self.layer).transpose(1, 2).flatten(2)  # B T C
        return (args[0] + added.to(args[0].dtype), *args[1:])


def _family(block: nn.Module) -> dict[str, str]:
    for kind in type(block).__mro__:  # FSDP makes subclasses
        if kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__]
    raise ValueError(
        f"Layers of type {type(block).__name__} are not known. Choose a language model of one of these: {_known()}."
    )


def _known() -> str:
    return ", ".join(FAMILIES)
