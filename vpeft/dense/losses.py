"""Cross-entropy over pixels, averaged as mmsegmentation does.

    loss = sum_i CE(logits_i, mask_i) / N,    i not ignored,    N all pixels, or those that are not ignored

Shapes: B images, K classes, h w the grid of the logits, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vpeft.heads.conv import resize

_EPS = torch.finfo(torch.float32).eps  # mmseg's; what keeps a batch without labels finite


def cross_entropy(logits: Tensor, mask: Tensor, avg_non_ignore: bool = False, ignored: int = 255) -> Tensor:
    """Mean cross-entropy of logits [B K h w], resized to the mask [B H W]; 0 where every pixel is ignored.

    Args:
        logits: Of a decode head.
        mask: Class of every pixel.
        avg_non_ignore: Divide by the pixels that are not ignored, as torch does, and not by all of them, which is
            mmseg's default and makes images with padding count less.
        ignored: Value of `mask` that is no class.
    """
    scores = resize(logits, mask.shape[-2:]).float()
    total = F.cross_entropy(scores, mask, ignore_index=ignored, reduction="sum")
    count = (mask != ignored).sum() if avg_non_ignore else mask.numel()
    return total / (count + _EPS)
