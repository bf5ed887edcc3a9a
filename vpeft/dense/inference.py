"""From a network that maps crops to logits, to predictions of whole images, step by step as in mmsegmentation.

    pad -> network -> resize to the padded image -> un-pad -> un-flip -> resize to the original -> average

Every function takes a callable, normalised images [B 3 H W] -> [B K ...], so that they nest:
`augmented(partial(slide, network, crop=(512, 512), stride=(341, 341)), images, size)`.

Shapes: B images, K classes, h w the grid of the logits, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vpeft.heads.conv import resize

Predict = Callable[[Tensor], Tensor]
Size = tuple[int, int]


def whole(network: Predict, images: Tensor, size: Size | None = None) -> Tensor:
    """Logits [B K H W] of images in one pass.

    Args:
        network: Logits [B K h w] of normalised images.
        images: Normalised.
        size: What the network takes. Smaller images are padded at the bottom and the right with 0, which is the mean,
            and the padding's logits are cut off; None gives it any size.

    Raises:
        ValueError: the images are larger than `size`.
    """
    height, width = images.shape[-2:]
    down, right = (size[0] - height, size[1] - width) if size else (0, 0)
    if size and min(down, right) < 0:
        raise ValueError(
            f"The images are {height}x{width} pixels and the network takes {size[0]}x{size[1]}. Resize them, or use "
            "slide inference."
        )
    padded = F.pad(images, (0, right, 0, down))
    return resize(network(padded).float(), padded.shape[-2:])[..., :height, :width]


def slide(network: Predict, images: Tensor, crop: Size, stride: Size) -> Tensor:
    """Logits [B K H W], averaged over overlapping windows.

    Windows start every `stride` pixels; the last one of a row or column is shifted back so that it ends with the
    image. Images smaller than a window are padded to it, as a network of one size needs.

    Args:
        network: Logits [B K h w] of normalised images of the crop's size.
        images: Normalised.
        crop: Height and width of a window.
        stride: Between windows; two thirds of the crop in the configs of mmseg and ViT-Adapter.

    Raises:
        ValueError: the stride is not positive, or leaves gaps between windows.
    """
    if any(not 0 < step <= side for step, side in zip(stride, crop, strict=True)):
        raise ValueError(f"A stride of {stride} with windows of {crop}: it has to be from 1 to the window's side.")
    rows, columns = (starts(*one) for one in zip(images.shape[-2:], crop, stride, strict=True))
    total: Tensor | None = None
    count = images.new_zeros(images.shape[-2:], dtype=torch.float32)
    for y in rows:
        for x in columns:
            window = (..., slice(y, y + crop[0]), slice(x, x + crop[1]))
            logits = whole(network, images[window], crop)
            if total is None:
                total = logits.new_zeros((*logits.shape[:2], *images.shape[-2:]))
            total[window] += logits
            count[window] += 1
    assert total is not None, "an image has at least one window"
    return total / count


def starts(side: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along a side."""
    number = max(side - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride + crop, side) - crop, 0) for i in range(number)]


def augmented(
    predict: Predict, images: Tensor, size: Size, scales: Sequence[float] = (1.0,), flip: bool = False
) -> Tensor:
    """Probabilities [B K *size], the mean over scales and mirror images of softmax(logits).

    Differs: mmseg resizes the uint8 image with OpenCV, whose result is rounded; here the normalised image is resized.

    Args:
        predict: Logits [B K H W] of normalised images of any size, on their own grid.
        images: Normalised.
        size: Height and width of the original images.
        scales: Factors of the images' sides; 0.5 0.75 1.0 1.25 1.5 1.75 in mmseg's multi-scale testing.
        flip: Mirror every scale as well.
    """
    total: Tensor | None = None
    for scale in scales:
        sides = [int(side * scale + 0.5) for side in images.shape[-2:]]
        scaled = images if scale == 1 else resize(images, sides)
        for mirror in (False, True)[: 1 + flip]:
            logits = predict(scaled.flip(-1)).flip(-1) if mirror else predict(scaled)
            shares = resize(logits, size).softmax(dim=1)
            total = shares if total is None else total + shares
    if total is None:
        raise ValueError("There are no scales to test at. Give at least one, such as 1.0.")
    return total / (len(scales) * (1 + flip))
