"""Class names as the rows of SAN's classifier.

    t_k = normalise(mean_T normalise(text(T(k)))),    rows = normalise([t_1 .. t_K; background])

Shapes: T templates, K classes, E joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The templates of ViLD (Gu et al., ICLR 2022, arXiv:2104.13921) that SAN trains and tests with.
VILD = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)
_AT_ONCE = 256  # sentences through the text tower


class TextClassifier(nn.Module):
    """Class names -> rows [K + 1, E], each of length 1; the last is a background that is learned: E parameters.

    Embeddings of names are kept. They are made again when a weight of the tower or the templates have changed.

    Args:
        tower: CLIP with `encode_text`; it is read and not owned.
        tokenize: Sentences -> token ids.
        dim: E.
        templates: Sentences with {} for the name; SAN's are those of ViLD.

    Raises:
        ValueError: no template, or one without {}.
    """

    def __init__(
        self,
        tower: nn.Module,
        tokenize: Callable[[list[str]], Tensor],
        dim: int,
        templates: Sequence[str] = VILD,
    ) -> None:
        super().__init__()
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"templates has '{template}' without {{}}, where the name of the class goes.")
        if not templates:
            raise ValueError("templates is empty; give at least one sentence, such as 'a photo of a {}.'.")
        self.background = nn.Parameter(torch.empty(1, dim))
        nn.init.normal_(self.background, std=dim**-0.5)
        self.templates = tuple(templates)
        self.tokenize = tokenize
        self._tower = [tower]  # in a list: the CLIP, not this module, owns it
        self._kept: dict[str, Tensor] = {}
        self._made_with: object = None

    def forward(self, classes: Sequence[str]) -> Tensor:
        rows = torch.cat([self.embed(classes), self.background])
        return F.normalize(rows, dim=-1)

    def embed(self, classes: Sequence[str]) -> Tensor:
        """t [K E], without a gradient.

        Raises:
            ValueError: no class, an empty name, or a name that comes twice.
        """
        check_classes(classes)
        # The visual tower has no part in it, and a parameter there that is trained.
        named = self._tower[0].named_parameters()
        read = [(id(one), one._version) for name, one in named if not name.startswith("visual.")]
        state = self.templates, read
        if state != self._made_with:
            self._kept, self._made_with = {}, state
        if new := [name for name in classes if name not in self._kept]:
            self._kept.update(zip(new, self._encode(new).cpu(), strict=True))
        return torch.stack([self._kept[name] for name in classes]).to(self.background)

    @torch.no_grad()
    def _encode(self, names: list[str]) -> Tensor:
        tower = self._tower[0]
        said = [template.replace("{}", name) for template in self.templates for name in names]
        found = []
        for start in range(0, len(said), _AT_ONCE):
            tokens = self.tokenize(said[start : start + _AT_ONCE]).to(self.background.device)
            with torch.autocast(tokens.device.type, enabled=False):
                found.append(F.normalize(tower.encode_text(tokens).float(), dim=-1))  # pyright: ignore[reportCallIssue]
        mean = torch.cat(found).unflatten(0, (len(self.templates), len(names))).mean(dim=0)
        return F.normalize(mean, dim=-1)


def check_classes(classes: Sequence[str]) -> None:
    """Raise ValueError unless `classes` are names of which none is empty and none comes twice."""
    if not classes:
        raise ValueError("The list of classes is empty; give at least one name, such as 'cat, sofa, floor'.")
    seen: set[str] = set()
    for name in classes:
        if not name.strip():
            raise ValueError(f"A class has an empty name: {', '.join(repr(one) for one in classes[:10])}.")
        if (key := name.strip().lower()) in seen:
            raise ValueError(f"The class '{name.strip()}' is named twice; each class needs a name of its own.")
        seen.add(key)
