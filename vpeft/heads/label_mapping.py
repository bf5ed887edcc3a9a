"""Label mapping: the pretrained classes answer for the new ones, and nothing of a head is trained.

    p(k | x) ~ exp(mean of the source logits f_s(x), s in M(k)),   M from  n[s, k] = #{x of class k: argmax f(x) = s}

M is greedy: the largest count left gives its source to its target. Mapped once it is FLM, before every epoch ILM
(Chen et al., CVPR 2023, arXiv:2211.11635).

Shapes: B images, C features, S source classes, K target classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from vpeft.tuned import Tuned


class Classifier(nn.Module):
    """A pretrained classifier, frozen: features [B, C] -> source logits [B, S]. It is no part of an adapter."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.clone(), persistent=False)
        self.register_buffer("bias", bias.clone(), persistent=False)

    @property
    def classes(self) -> int:
        return len(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)


class LabelMapping(nn.Module):
    """Features [B, C] -> logits [B, K], through the pretrained classes that a mapping found on the training images.

    Until it is prepared, target k is answered by the sources from k n on, n being `sources`.
    OPTML-Group/ILM-VP @ 84ca042 [MIT]. Differs: several sources of a target are averaged; its training uses one.

    Args:
        source: Features -> logits of `source.classes` pretrained classes; a Classifier, or a TextHead (ILM-VP on CLIP,
            where a source is a class name in a template).
        classes: K.
        sources: Source classes of each target; 1 in the official code.
        every: Epochs between two mappings; 1 in the official code, 0 maps before the first epoch only.

    Raises:
        ValueError: there are fewer source classes than the targets need.
    """

    mapping: Tensor

    def __init__(self, source: nn.Module, classes: int, sources: int = 1, every: int = 1) -> None:
        super().__init__()
        there: int = source.classes  # type: ignore[assignment]
        if classes * sources > there:
            raise ValueError(
                f"label_mapping: {classes} classes with {sources} sources each need {classes * sources} pretrained "
                f"classes, and this backbone has {there}. Lower head.sources, or use head.kind linear."
            )
        self.source, self.every = source, every
        self.register_buffer("mapping", torch.arange(classes * sources).view(classes, sources))

    def forward(self, features: Tensor) -> Tensor:
        return self.source(features)[:, self.mapping].mean(dim=2)  # B S -> B K sources -> B K

    @torch.no_grad()
    def prepare(self, tuned: Tuned, batches: Iterable[tuple[Tensor, Tensor]], epoch: int) -> None:
        """Map the targets anew, from what the classifier says of the training images as they are prompted now."""
        if epoch % self.every if self.every else epoch:
            return
        classes, sources = self.mapping.shape
        counts = torch.zeros(self.source.classes, classes, dtype=torch.int64)  # type: ignore[arg-type]
        for images, labels in batches:
            counts += frequency(self.source(tuned.backbone(images)), labels, classes)
        self.mapping.copy_(greedy(counts, sources))


def frequency(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How many images of each target have each source as their largest logit: [B, S] and [B] -> [S, K]."""
    pairs = logits.argmax(dim=1).cpu() * classes + labels.cpu()
    return torch.bincount(pairs, minlength=logits.shape[1] * classes).view(-1, classes)


def greedy(counts: Tensor, sources: int) -> Tensor:
    """The sources of each target, ascending: counts [S, K] -> [K, sources]. A source serves one target.

    The largest count goes first; of equal ones that of the lowest source, then of the lowest target.
    """
    left, classes = counts.clone(), counts.shape[1]
    found: list[list[int]] = [[] for _ in range(classes)]
    for _ in range(classes * sources):
        source, target = divmod(int(left.argmax()), classes)
        found[target].append(source)
        left[source] = -1
        if len(found[target]) == sources:
            left[:, target] = -1
    return torch.tensor([sorted(each) for each in found])
