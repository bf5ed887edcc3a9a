"""The linear projection of LLaVA (Liu et al., NeurIPS 2023, arXiv:2304.08485).

H = W Z + b        every vision token Z becomes one token
"""

from torch import Tensor, nn

from mllm.shapes import TextShape, VisionShape


class Linear(nn.Module):
    """One linear map; d (d_v + 1) parameters for vision width d_v and text width d: 4,198,400 for 1024 and 4096.

    Starts as torch starts a linear map, as the official code does.
    """

    packable = True

    def __init__(self, vision: VisionShape, text: TextShape) -> None:
        super().__init__()
        self.tokens = vision.tokens
        self.proj = nn.Linear(vision.dim, text.dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.proj(features)
