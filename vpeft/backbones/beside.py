"""What was pretrained beside a backbone, loaded when a head asks for it: a classifier, or a joint space with text.

Neither is a part of the backbone: its keys, what is trained and what is merged stay as they are.

Shapes: B images, C features, S pretrained classes, E joint space, T texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vpeft.backbones.backbone import Backbone


@dataclass(frozen=True)
class Joint:
    """The space that images and texts share.

    Args:
        weight: Projection of features, [E, C].
        encode: Texts -> [T, E], not normalised.
        scale: What cosines are multiplied by.
        bias: What is added then (SigLIP).
    """

    weight: Tensor
    encode: Callable[[Sequence[str]], Tensor]
    scale: float
    bias: float = 0.0


class TextTower:
    """Texts -> their embeddings [T, E], some hundred at a time."""

    def __init__(self, encode: Callable[[Tensor], Tensor], tokenizer: Callable[[list[str]], Tensor]) -> None:
        self.encode, self.tokenizer = encode, tokenizer

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        parts = [list(texts[start : start + 256]) for start in range(0, len(texts), 256)]
        return torch.cat([self.encode(self.tokenizer(part)).float() for part in parts])


def classifier(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Weight [S, C] and bias [S] of the classifier that a backbone was pretrained with.

    Raises:
        ValueError: it has none.
        RuntimeError: its weights could not be had.
    """
    recipe = backbone.recipe
    if recipe is not None and recipe.library == "timm":
        from vpeft.backbones.load_timm import classifier

        return classifier(recipe.name, recipe.pretrained, recipe.seed)
    if recipe is not None:
        raise ValueError(
            f"{backbone.name} has no classifier that is read here; those of timm's models are. Take the same weights "
            "from timm, or another kind of head (linear; text for CLIP)."
        )
    own = getattr(backbone.model, "get_classifier", nn.Identity)()
    if not isinstance(own, nn.Linear):
        raise ValueError(f"{backbone.name} was given without a classifier. Wrap the model with its own classes on it.")
    return own.weight.detach(), own.bias.detach()


def joint(backbone: Backbone) -> Joint:
    """The joint space of a CLIP backbone.

    Raises:
        ValueError: it has no text tower.
        RuntimeError: its weights could not be had.
    """
    recipe = backbone.recipe
    if recipe is not None and recipe.library == "open_clip":
        from vpeft.backbones.load_open_clip import joint

        return joint(recipe.name, recipe.pretrained, recipe.seed)
    if recipe is not None and recipe.library == "hf":
        from vpeft.backbones.load_hf import joint

        return joint(recipe.name, recipe.pretrained, recipe.seed)
    raise ValueError(
        f"{backbone.name} has no text tower. Take a CLIP of open_clip (open_clip:ViT-B-16/openai) or of transformers "
        "(hf:openai/clip-vit-base-patch16), or another kind of head (linear; label_mapping where it has classes)."
    )


@torch.no_grad()
def linear_map(module: nn.Module, dim: int) -> Tensor:
    """The matrix [E, C] that a module is on features of width `dim`.

    Raises:
        ValueError: it is another map than a matrix.
    """
    module = module.eval()
    weight = module(torch.eye(dim)).T
    probe = torch.linspace(-1, 1, dim)[None]
    if not torch.allclose(module(probe), probe @ weight.T, rtol=1e-3, atol=1e-4):
        raise ValueError(
            "This tower's projection into the joint space is not one linear map, which is what is read here. Take a "
            "CLIP whose projection is, such as open_clip:ViT-B-16/openai."
        )
    return weight
