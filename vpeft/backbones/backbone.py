"""A frozen backbone of any family, its loop over blocks written in the open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vpeft.backbones.weights import Weights
from vpeft.seams import Affine, Block, TokenEdit


class Family(Protocol):
    """What differs between families of backbones; one small file each."""

    blocks: list[Block]
    affines: dict[str, Affine]  # outside the blocks: patch_embed, norm_pre, norm
    norm: nn.Module  # the last norm before pooling
    unused: tuple[str, ...]  # parameters of the vendor model that `pool` never reads

    def embed(self, images: Tensor) -> Tensor: ...  # B 3 H W -> tokens entering the first block
    def between(self, index: int, x: Tensor) -> Tensor: ...  # before block `index`: patch merging
    def finish(self, x: Tensor) -> Tensor: ...  # tokens leaving the last block -> normalised
    def pool(self, x: Tensor) -> Tensor: ...  # -> B C


# Ends the name of a timm Swin whose blocks pad their maps before they shift them, as the official code does.
PAD_FIRST = "+pad_first"


@dataclass(frozen=True)
class Preprocessing:
    """How a backbone's images were prepared when it was trained: its own data config.

    Args:
        mean: Channel means on the scale 0..1.
        std: Channel standard deviations on the same scale.
        interpolation: `bilinear` or `bicubic`.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str


@dataclass(frozen=True)
class Recipe:
    """What `create` built a backbone from, so that what belongs to it can be loaded too.

    Args:
        library: timm, open_clip or hf.
        name: Within the library.
        pretrained: `auto`, `none` or a file.
        seed: Of random weights.
    """

    library: str
    name: str
    pretrained: str
    seed: int


def own_preprocessing(model: Any) -> Preprocessing:
    """What timm knows of a model's images: its own config, or ImageNet's mean and deviation."""
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(model)
    interpolation = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    return Preprocessing(config["mean"], config["std"], interpolation)


class Backbone(nn.Module):
    """A vendor model seen through the seams.

    `forward` maps normalised images [B, 3, H, W] to features [B, dim] and equals the vendor's own
    forward as long as no method is attached.

    Args:
        name: What `create` was called with.
        model: The vendor's model; its keys stay untouched, as `model.<vendor key>`.
        family: Where its parts are.
        dim: Width of the features.
        image_size: Height and width of its images.
        patch: Height and width of a patch.
        preprocessing: Its own data config.
        weights: Where its weights come from, and their hash.
        recipe: What `create` built it from; None where the caller built the model.

    `normalization` is the mean and deviation that its images come with: its own, unless a run sets it. Methods that
    paint pixels read it.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        family: Family,
        dim: int,
        image_size: tuple[int, int],
        patch: tuple[int, int],
        preprocessing: Preprocessing,
        weights: Weights,
        recipe: Recipe | None = None,
    ) -> None:
        super().__init__()
        self.name, self.model, self.family = name, model, family
        self.dim, self.image_size, self.patch = dim, image_size, patch
        self.mean, self.std = preprocessing.mean, preprocessing.std
        self.interpolation = preprocessing.interpolation
        self.normalization: tuple[Sequence[float], Sequence[float]] = (self.mean, self.std)
        self.weights, self.recipe = weights, recipe
        self._on_pixels: list[TokenEdit] = []
        self._before_finish: list[TokenEdit] = []
        self._on_features: list[TokenEdit] = []
        self._read: TokenEdit | None = None

    @property
    def blocks(self) -> list[Block]:
        return self.family.blocks

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid entering the first block."""
        return self.blocks[0].grid

    @property
    def windowed(self) -> bool:
        return self.blocks[0].windowed

    def skip_norm(self) -> None:
        """Take the last norm from what methods may touch: what is built on this backbone reads the blocks only.

        Methods ask for their places when they are built, so this comes first.
        """
        self.family.affines.pop("norm", None)
        last = {id(parameter) for parameter in self.family.norm.parameters()}
        self.family.unused += tuple(name for name, p in self.model.named_parameters() if id(p) in last)

    def end_after(self, last: int) -> None:
        """Take the blocks behind block `last` from what runs and from what methods may touch; this too comes first."""
        behind = {id(parameter) for block in self.blocks[last + 1 :] for parameter in block.module.parameters()}
        del self.blocks[last + 1 :]
        self.family.unused += tuple(name for name, p in self.model.named_parameters() if id(p) in behind)

    def edit_pixels(self, edit: Callable[[Tensor], Tensor]) -> None:
        """Change images [B, 3, H, W] before the patch embedding."""
        self._on_pixels.append(edit)

    def before_finish(self, edit: TokenEdit) -> None:
        """Change the tokens that leave the last block, before the final norm and the pooling.

        Edits run last attached first, so that tokens leave in the reverse order of their coming.
        """
        self._before_finish.append(edit)

    def read_with(self, read: TokenEdit) -> None:
        """Put `read`, tokens leaving the last block -> features, in the place of final norm and pooling.

        Raises:
            ValueError: another method reads them already.
        """
        if self._read is not None:
            raise ValueError(
                f"{_owner(self._read)} and {_owner(read)} both replace how features are read from the last block; use "
                "one of them."
            )
        self._read = read

    def edit_features(self, edit: TokenEdit) -> None:
        """Change features [B, D]; a method that changes D says so (`vpeft.methods.Widening`)."""
        self._on_features.append(edit)

    @property
    def edits_of_features(self) -> int:
        """How many edits there are of features, or of how they are read."""
        return len(self._on_features) + (self._read is not None)

    def embed(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != self.image_size:
            raise ValueError(
                f"{self.name} was built for images of {self.image_size[0]}x{self.image_size[1]} pixels and was given "
                f"{images.shape[-2]}x{images.shape[-1]}. Resize them, or build it with image_size."
            )
        for edit in self._on_pixels:
            images = edit(images)
        return self.family.embed(images)

    def between(self, index: int, x: Tensor) -> Tensor:
        return self.family.between(index, x)

    def finish(self, x: Tensor) -> Tensor:
        return self.family.finish(self._leaving(x))

    def pool(self, x: Tensor) -> Tensor:
        return self.family.pool(x)

    def _leaving(self, x: Tensor) -> Tensor:
        for edit in reversed(self._before_finish):
            x = edit(x)
        return x

    def look(self, images: Tensor) -> Tensor:
        """Features of images as they are, before any edit of pixels or features, and without a gradient."""
        with torch.no_grad():
            return self.pool(self.finish(self._through(self.family.embed(images))))

    def forward(self, images: Tensor) -> Tensor:
        x = self._through(self.embed(images))
        y = self.pool(self.finish(x)) if self._read is None else self._read(self._leaving(x))
        for edit in self._on_features:
            y = edit(y)
        return y

    def _through(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(self.between(index, x))
        return x


def _owner(edit: object) -> str:
    return type(getattr(edit, "__self__", edit)).__name__
