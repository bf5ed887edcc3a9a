"""How different the tokens of an image are."""

import torch
import torch.nn.functional as F
from torch import Tensor


def apart(tokens: Tensor) -> float:
    """1 - mean cosine of different tokens of an image, for tokens [I M D]; 0 where all are parallel."""
    tokens = F.normalize(tokens.detach(), dim=-1)
    off = ~torch.eye(tokens.shape[1], dtype=torch.bool)
    return 1 - (tokens @ tokens.mT)[:, off].mean().item()
