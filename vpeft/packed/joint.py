"""The features of several models of one form at once: frozen weights once for all of them, what is trained in a batch.

    y_k = f(W, theta_k, x_k),  k = 1 ... K      as      y = vmap(f)(W, stack(theta), stack(x))

A product with a frozen W sees the images of all models as one batch; one with a trained matrix becomes a batch of K.
What model k draws at random is drawn from its own generators, in the order and in the shapes of a run of its own.

Shapes: K models, B images of each, C features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from vpeft.packed.casts import Autocast
from vpeft.tuned import Tuned


@dataclass
class Generators:
    """The states of torch's generators of one model: the CPU's, and that of its GPU if it has one.

    Args:
        device: Where the model computes.
    """

    device: torch.device
    cpu: Tensor
    gpu: Tensor | None = None

    @classmethod
    def now(cls, device: torch.device) -> Generators:
        generators = cls(device, torch.get_rng_state())
        generators.keep()
        return generators

    def keep(self) -> None:
        """Take the states over from torch."""
        self.cpu = torch.get_rng_state()
        self.gpu = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    @contextmanager
    def use(self) -> Iterator[None]:
        """Draw from these, and keep where they have come to."""
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu, self.device)
        yield
        self.keep()


def features(models: Sequence[Tuned], images: Sequence[Tensor], generators: Sequence[Generators]) -> Tensor:
    """Features [K, B, C] of each model's own images [B, 3, H, W].

    Args:
        models: With the same methods on backbones of the same weights; those of the first are used. Gradients reach
            what each of them trains.
        images: Of the same shape for all.
        generators: Of each model.

    Raises:
        RuntimeError: A method draws at random in a way that is not known here, or cannot be batched.
    """
    names = [name for name in models[0].delta() if not name.startswith("head.")]
    own = {f"tuned.{name}": torch.stack([_tensor(model, name) for model in models]) for name in names}
    body = _Features(models[0])

    def one(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(body, tensors, (x,))

    with _OwnDraws(generators), Autocast(images[0].device.type):
        return torch.vmap(one)(own, torch.stack(list(images)))


class _Features(nn.Module):
    """What the head of a model sees, as a module whose tensors can be exchanged for a call."""

    def __init__(self, tuned: Tuned) -> None:
        super().__init__()
        self.tuned = tuned
        self.train(tuned.training)

    def forward(self, images: Tensor) -> Tensor:
        return self.tuned.backbone(images)


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)


class _OwnDraws(TorchFunctionMode):
    """Within a vmap over models, lets dropout and stochastic depth of each draw from its own generators.

    torch.vmap raises where anything else is drawn.
    """

    def __init__(self, generators: Sequence[Generators]) -> None:
        super().__init__()
        self.generators = generators

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is Tensor.bernoulli_:
            return self._bernoulli(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return x
        return x * self._drawn(x, partial(_factors, p=p))

    def _bernoulli(self, x: Tensor, p: float = 0.5) -> Tensor:
        return self._drawn(x, partial(_coins, p=p))

    def _drawn(self, like: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        drawn = _Drawn.apply(like, draw, _Each(self.generators))
        assert isinstance(drawn, Tensor)
        return drawn


def _factors(like: Tensor, p: float) -> Tensor:
    return F.dropout(torch.ones_like(like), p)  # by torch's own kernel: 0, or 1 / (1 - p)


def _coins(like: Tensor, p: float) -> Tensor:
    return torch.empty_like(like).bernoulli_(p)


class _Each:
    """The generators as one object: torch would take a list of them apart."""

    def __init__(self, generators: Sequence[Generators]) -> None:
        self.generators = generators


class _Drawn(torch.autograd.Function):
    """Random numbers of the shape of each model's own tensor; nothing is differentiated."""

    @staticmethod
    def forward(like: Tensor, draw: Callable[[Tensor], Tensor], each: _Each) -> Tensor:
        raise AssertionError("is called within a vmap over models only")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]  (the base class takes any arguments)
        info: Any, in_dims: tuple[int | None, ...], like: Tensor, draw: Callable[[Tensor], Tensor], each: _Each
    ) -> tuple[Tensor, int]:
        at = in_dims[0]
        alike = [like] * info.batch_size if at is None else like.unbind(at)
        drawn = []
        for one, generators in zip(alike, each.generators, strict=True):
            with generators.use():
                drawn.append(draw(one.detach()))
        return torch.stack(drawn), 0
