"""ILM-VP (Chen et al., CVPR 2023, arXiv:2211.11635).

    outside    (pad(shrink(x)) + M sigmoid(P) - mean) / std
    border     x + M P

M is one outside of the inner square and zero inside it. The other half of ILM-VP is its head: the pretrained classes
answer for the new ones under a mapping that is found anew before every epoch (`head.kind: label_mapping`).

Shapes: B images, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpeft.methods.evp import shrink

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class ILMVP(nn.Module):
    """A program outside of the image, or additive on its border; 3 H W parameters: 150,528 on ViT-B/16.

    Those inside the inner square are stored, as in OPTML-Group/ILM-VP @ 84ca042 [MIT], and never change. Their
    program outside serves a ResNet and the pretrained classes; the border with `inner: 164` serves CLIP, on normalised
    images, with a mapping onto class names in templates (`head.source: text`).

    Differs: the image is shrunk from the size that the data has been resized to, theirs from the file; there is no
    mask within the image (their ABIDE task).

    Args:
        kind: `outside` shrinks the image to the inner square; `border` adds to the image as it is.
        inner: Side of the inner square in pixels; 128 in the official code (32 for images of that size).

    Raises:
        ValueError: an inner square that leaves no room for the program.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, kind: Literal["outside", "border"] = "outside", inner: int = 128) -> None:
        super().__init__()
        if not 1 <= inner < min(backbone.image_size):
            most = min(backbone.image_size) - 1
            raise ValueError(f"ilm_vp: inner is {inner}; a square inside these images has a side of 1 to {most}.")
        self.kind, self.inner = kind, inner
        self.program = nn.Parameter(torch.zeros(3, *backbone.image_size))
        mean, std = backbone.normalization
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def attach(self, backbone: Backbone) -> None:
        backbone.edit_pixels(self)

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "border":
            return images + self.mask() * self.program
        return self.surround(shrink(images, (self.inner, self.inner)))

    def surround(self, images: Tensor) -> Tensor:
        """The program around normalised images of the inner square."""
        painted = self.mask() * (self.program.sigmoid() - self.mean) / self.std
        return F.pad(images, self._pads()) + painted

    def mask(self) -> Tensor:
        """M [1, H, W]."""
        return F.pad(self.program.new_zeros(1, self.inner, self.inner), self._pads(), value=1.0)

    def _pads(self) -> tuple[int, int, int, int]:
        """Left, right, top, bottom; left and top take the odd pixel."""
        height, width = (side - self.inner for side in self.program.shape[1:])
        return (width + 1) // 2, width // 2, (height + 1) // 2, height // 2
