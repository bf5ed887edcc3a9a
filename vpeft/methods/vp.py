"""VP (Bahng et al., 2022, arXiv:2203.17274).

    x + P        P: zero but for a border of p pixels, or for a square of p x p pixels

One prompt for all images, on images as the backbone sees them, that is, normalised.

Shapes: K prompts, H W pixels, p width of the border.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class VP(nn.Module):
    """An additive prompt on pixels; 6 p (H + W - 2 p) parameters, 3 p^2 of a patch: 69,840 for p = 30 on ViT-B/16.

    hjbahng/visual_prompting @ 679e71f [MIT]. Paper and code agree: nothing is clamped, and what is trained beside
    the prompt is nothing: the head is CLIP's text (`head.kind: text`) or the pretrained classes in their order.
    Differs: a random patch moves while training only and stays in the centre in evaluation, where theirs moves too.

    Args:
        kind: `padding` is a border, `fixed_patch` a square in the upper left corner, `random_patch` one at another
            place in every batch; padding in the official code.
        size: p; 30 in the official code.
        std: Deviation of the initial values; 1 in the official code, and 0 starts as the backbone.

    Raises:
        ValueError: a border or a patch that does not fit the image; a negative std.
    """

    def __init__(
        self,
        backbone: Backbone,
        kind: Literal["padding", "fixed_patch", "random_patch"] = "padding",
        size: int = 30,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        if std < 0:
            raise ValueError(f"vp: std is {std}; at least 0 is needed.")
        if kind == "padding":
            check_border("vp", "size", size, backbone.image_size)
            self.prompt: nn.Module = Border(1, size, backbone.image_size, std)
        elif not 1 <= size < min(backbone.image_size):
            raise ValueError(f"vp: size is {size}; a patch in these images has 1 to {min(backbone.image_size) - 1}.")
        else:
            self.prompt = Patch(size, backbone.image_size, std, moves=kind == "random_patch")

    def attach(self, backbone: Backbone) -> None:
        backbone.edit_pixels(self)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.prompt()


def check_border(method: str, option: str, size: int, image_size: tuple[int, int]) -> None:
    """Refuse a border that leaves nothing inside."""
    most = (min(image_size) - 1) // 2
    if not 1 <= size <= most:
        side = f"{image_size[0]}x{image_size[1]}"
        raise ValueError(f"{method}: {option} is {size}; a border inside images of {side} pixels has 1 to {most}.")


class Border(nn.Module):
    """K prompts [K, 3, H, W] that are zero inside their border, and start alike."""

    def __init__(self, count: int, size: int, image_size: tuple[int, int], std: float) -> None:
        super().__init__()
        height, width = image_size
        self.up, self.down = (_start(count, size, width, std) for _ in range(2))
        self.left, self.right = (_start(count, height - 2 * size, size, std) for _ in range(2))

    def forward(self) -> Tensor:
        inside = self.left.new_zeros(*self.left.shape[:3], self.up.shape[3] - 2 * self.left.shape[3])
        return torch.cat([self.up, torch.cat([self.left, inside, self.right], dim=3), self.down], dim=2)


def _start(count: int, height: int, width: int, std: float) -> nn.Parameter:
    return nn.Parameter((torch.randn(1, 3, height, width) * std).repeat(count, 1, 1, 1))


class Patch(nn.Module):
    """A prompt [1, 3, H, W] that is zero but for a square: at the corner, or at a place that is drawn."""

    def __init__(self, size: int, image_size: tuple[int, int], std: float, moves: bool) -> None:
        super().__init__()
        self.patch = nn.Parameter(torch.randn(1, 3, size, size) * std)
        self.image_size, self.moves = image_size, moves

    def forward(self) -> Tensor:
        (height, width), size = self.image_size, self.patch.shape[-1]
        if not self.moves:
            return F.pad(self.patch, (0, width - size, 0, height - size))
        rows, inside_rows = self._axis(height - size, height)
        columns, inside_columns = self._axis(width - size, width)
        return self.patch[:, :, rows][:, :, :, columns] * (inside_rows[:, None] & inside_columns)

    def _axis(self, room: int, length: int) -> tuple[Tensor, Tensor]:
        """Which row of the patch each row of the image has, and whether it has one."""
        device, size = self.patch.device, self.patch.shape[-1]
        start = torch.randint(room, (), device=device) if self.training else torch.tensor(room // 2, device=device)
        at = torch.arange(length, device=device) - start
        return at.clamp(0, size - 1), (at >= 0) & (at < size)
