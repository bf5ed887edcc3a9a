"""CLIP's zero-shot classifier (Radford et al., ICML 2021, arXiv:2103.00020): class names in sentences.

    logit_k = scale * <P f / |P f|, t_k>,    t_k = normalise(mean over sentences of normalise(text(sentence with k)))

Shapes: B images, C features, E joint space, K classes, T templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from vpeft.backbones import Joint

OPENAI = "openai"


class TextHead(nn.Module):
    """Features [B, C] -> logits [B, K], or [B, T K] of all sentences apart (template after template).

    Everything here was pretrained, so none of it is in an adapter.

    Args:
        joint: Projection and text tower.
        classes: Their names; `_` and `-` are read as spaces, capitals as small letters, as in the official codes of VP,
            EVP and ILM-VP.
        templates: Sentences with {} for the name; `openai` stands for the 80 of CLIP on ImageNet.
        apart: Each sentence is a class of its own, which is what label mapping chooses from.

    Raises:
        ValueError: no template, or one without {}.
    """

    weight: Tensor
    texts: Tensor

    def __init__(
        self,
        joint: Joint,
        classes: Sequence[str],
        templates: Sequence[str] = ("a photo of a {}.",),
        apart: bool = False,
    ) -> None:
        super().__init__()
        sentences = expand(templates)
        names = [spoken(name) for name in classes]
        said = [sentence.replace("{}", name) for sentence in sentences for name in names]
        t = F.normalize(joint.encode(said), dim=-1)
        if not apart:
            t = F.normalize(t.unflatten(0, (len(sentences), len(names))).mean(dim=0), dim=-1)
        self.scale, self.bias = joint.scale, joint.bias
        self.register_buffer("weight", joint.weight.clone(), persistent=False)
        self.register_buffer("texts", t, persistent=False)

    @property
    def classes(self) -> int:
        return len(self.texts)

    def forward(self, features: Tensor) -> Tensor:
        x = F.normalize(F.linear(features, self.weight), dim=-1)
        return self.scale * F.linear(x, self.texts) + self.bias


def spoken(name: str) -> str:
    """A class name as a sentence holds it."""
    return name.lower().replace("_", " ").replace("-", " ")


def expand(templates: Sequence[str]) -> list[str]:
    """The sentences that `templates` stands for, each with {} in it."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    found: list[str] = []
    for template in templates:
        if template != OPENAI and "{}" not in template:
            raise ValueError(f"head.templates has '{template}' without {{}}, where the name of the class goes.")
        found += [one("{}") for one in OPENAI_IMAGENET_TEMPLATES] if template == OPENAI else [template]
    if not found:
        raise ValueError("head.templates is empty; give at least one sentence, such as 'a photo of a {}.'.")
    return found
