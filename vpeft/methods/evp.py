"""EVP (Wu et al., TMLR 2024, arXiv:2212.10556).

    (pad(shrink(x)) + P - mean) / std        P <- P - lr M g / |g|

The image is shrunk and the prompt is around it. P is on images in 0..1; M is one on the border of p pixels, and the
norm of the gradient g is taken over the whole canvas, before M.

Shapes: B images, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vpeft.methods.vp import check_border

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class EVP(nn.Module):
    """A prompt around the shrunk image; 3 H W parameters: 150,528 on ViT-B/16.

    Of these 6 p (H + W - 2 p) ever change, 69,840 for p = 30. UCSC-VLAA/EVP @ 96b7131 [MIT] is followed: no sign, no
    clamp, and the interior of P is added as well, which starts and stays at zero. The equation's step is SGD without
    momentum and decay. The paper's input diversity is, in its code, a random flip (`data.augment: flip`) and a random
    crop. The image is shrunk by two matrix products, which equal torch's antialiased bicubic resizing; that has no
    deterministic backward on a GPU, and a method before this one needs it.

    Differs: the image is shrunk from the size that the data has been resized to, theirs from the file. While training
    they crop the longer side of an image at a random place, `data.resize: crop` always in the middle; of a square
    image both keep all.

    Args:
        size: p; 30 in the official code.

    Raises:
        ValueError: a border that leaves no image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, size: int = 30) -> None:
        super().__init__()
        check_border("evp", "size", size, backbone.image_size)
        self.size = size
        self.perturbation = nn.Parameter(torch.zeros(3, *backbone.image_size))
        mean, std = backbone.normalization
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def attach(self, backbone: Backbone) -> None:
        backbone.edit_pixels(self)

    def forward(self, images: Tensor) -> Tensor:
        height, width = (side - 2 * self.size for side in self.perturbation.shape[1:])
        return self.surround(shrink(images, (height, width)))

    def surround(self, images: Tensor) -> Tensor:
        """The prompt around normalised images that are smaller than it by the border."""
        black = -self.mean / self.std  # what pixels of value 0 are once they are normalised
        return F.pad(images - black, (self.size,) * 4) + black + self.perturbation / self.std

    def after_backward(self, step: int, steps: int) -> None:
        gradient = self.perturbation.grad
        assert gradient is not None, "the prompt is a part of every image"
        norm, p = gradient.norm(), self.size
        if isinstance(gradient, DTensor) and isinstance(norm, DTensor):  # FSDP shares out the channels
            norm, gradient = norm.full_tensor(), gradient.to_local()
        gradient.div_(norm + 1e-10)[:, p:-p, p:-p] = 0

    def after_step(self, step: int, steps: int) -> None:
        """Nothing: what is inside the border has had no gradient."""


def shrink(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic resizing of [B, 3, H, W], whose backward is deterministic on a GPU too."""
    with torch.autocast(images.device.type, enabled=False):  # images keep their precision
        rows, columns = (_resizing(before, after, images) for before, after in zip(images.shape[2:], size, strict=True))
        return rows @ images @ columns.T


def _resizing(before: int, after: int, like: Tensor) -> Tensor:
    """The matrix [after, before] of it along one side: what torch makes of the identity, whose width stays."""
    bright = torch.eye(before, device=like.device, dtype=like.dtype)[None, None]
    return F.interpolate(bright, (after, before), mode="bicubic", antialias=True)[0, 0]
