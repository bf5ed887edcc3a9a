"""The map after each stage of a hierarchical backbone, each through a LayerNorm of its own.

    m_i = LN_i(x_i),  x_i leaving the last block of stage i

The official norm0 ... norm3 of Swin as a backbone for segmentation and detection (Liu et al., ICCV 2021,
arXiv:2103.14030).

Shapes: B images, C channels of a stage, h w its grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class Stages(nn.Module):
    """Images [B 3 H W] -> the maps [B C h w] after every stage, finest first; 2 (d_1 + ... + d_n) parameters.

    The official codes of LoRand and Mona, and those of the baselines beside Mona, freeze these norms with the backbone.
    Pretrained weights have none, so that they stay without scale and shift. Their BitFit trains the shifts; their norm
    tuning and full tuning train both.

    The last norm of the backbone itself is not read, and methods that are built afterwards leave it alone. Prompts that
    travel with a map are left out of it. Maps that a window does not divide are padded and shifted in the backbone's
    order; the official one is `+pad_first` (see vpeft.backbones.create).

    Args:
        backbone: A Swin, or any whose blocks grow wider from stage to stage; methods are built for it afterwards.
        norms: What of the norms learns: `frozen` is nothing, `bias` the shifts, `all` scales too.

    Raises:
        ValueError: all blocks of the backbone are of one width.
    """

    def __init__(self, backbone: Backbone, norms: Literal["frozen", "bias", "all"] = "frozen") -> None:
        super().__init__()
        blocks = backbone.blocks
        after = [block.dim for block in blocks[1:]] + [0]
        self.ends = tuple(i for i, (block, wider) in enumerate(zip(blocks, after, strict=True)) if block.dim != wider)
        if len(self.ends) < 2:
            raise ValueError(
                f"stages needs a backbone whose blocks grow wider from stage to stage, and those of {backbone.name} "
                f"are all {blocks[0].dim} wide. Take a Swin, or the neck 'layers', which is for plain ViTs."
            )
        self.channels = [blocks[end].dim for end in self.ends]
        self.strides = [backbone.patch[0] << stage for stage in range(len(self.ends))]
        self.norms = Modules[nn.LayerNorm](nn.LayerNorm(dim) for dim in self.channels)
        for name, parameter in self.norms.named_parameters():
            parameter.requires_grad_(norms == "all" or (norms == "bias" and name.endswith("bias")))
        backbone.skip_norm()

    def forward(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        x = backbone.embed(images)
        for index, block in enumerate(backbone.blocks):
            x = block(backbone.between(index, x))
            if index in self.ends:
                _, patches = block.split(x)  # B h w C
                maps.append(self.norms[len(maps)](patches).permute(0, 3, 1, 2).contiguous())
        return maps
