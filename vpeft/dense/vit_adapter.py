"""ViT-Adapter (Chen et al., ICLR 2023, arXiv:2205.08534).

    x <- x + gamma * attend(LN(x), LN(c))          Injector: patches read the maps at 1/8, 1/16 and 1/32
    x <- blocks(x)                                 of the ViT
    c <- c + attend(LN(c), LN(x))                  Extractor: the maps read the patches
    c <- c + ffn(LN(c))

c are the tokens of a small convolutional pyramid, `attend` is deformable attention. After four such interactions c is
split into maps again, one at 1/4 is grown from that at 1/8, and what the ViT knew after each interaction is added.

Shapes: B images, C channels, h w the grid of patches, S tokens of c, which are those of three maps one after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from vpeft.dense.adapter_modules import Extractor, Injector, SpatialPrior, as_map, levels, resize
from vpeft.dense.deform_attn import DeformableAttention, centres
from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone

STRIDES = [4, 8, 16, 32]


class ViTAdapter(nn.Module):
    """Normalised images [B 3 H W] -> maps [B d H/s W/s] for s = 4 8 16 32; beside the ViT it has
    252 i^2 + 53 i + 11 i d + 4 d^2 + 16 d + n (I + E) + 2 E parameters, with i for `inplanes`, n for `interactions`,
    I for an Injector (deformable attention of three levels, and 5 d) and E for an Extractor (that of one level, 7 d,
    and 2 d k + 11 k in its FFN, k = d / 4): 13,680,608 on ViT-B with 12 heads and a ratio of 0.5.

    Names of parameters are those of czczup/ViT-Adapter @ fd64a51 (Apache-2.0), so that its checkpoints load.

    Differs: its SyncBatchNorm is BatchNorm2d, which `sync_batchnorm` of a Lightning trainer turns into the former. It
    resizes position embeddings without antialiasing, `vpeft.backbones.create` with. Its ViT has layer scales from 1
    that no checkpoint knows; here the ViT is as timm has it. Patches need not be of 16 pixels: then what the ViT knew
    is resized to the maps, as in DINOv2's version.

    The backbone's last norm is not read unless `final_norm`; methods that are built afterwards leave it alone.

    Args:
        backbone: A plain ViT; methods are built for it afterwards.
        regime: `full`: the ViT learns too, as published (`adopts` names its parameters). `injector`: it is frozen, and
            gradients pass through it to the injectors. `extractor`: no injectors, and no graph in the ViT (DINOv3).
        interactions: n, each with as many blocks as the others.
        heads: Of deformable attention: 6 in the official code for ViT-T and S, 12 for B, 16 for L.
        ratio: Width of its values over d: 1.0 for T and S, 0.5 for B and L.
        points: It reads, a head and level.
        inplanes: Width of the stem of the pyramid.
        cffn_ratio: k / d; 0 leaves the FFN of the extractors out.
        extra_extractors: Of the last interaction; 0 in the official `light` setting.
        vit_features: Add what the ViT knew after each interaction; there have to be four.
        prefix_tokens: Class token and registers pass the blocks (official for BEiT, DINOv2, DINOv3) instead of being
            dropped before the first (official for DeiT and AugReg weights).
        final_norm: What leaves the ViT, except towards its next block, passes its last norm (DINOv3).
        drop_path: Stochastic depth of the extractors' FFN, the same at every interaction.

    Raises:
        ValueError: a windowed backbone, images that are no multiple of 32 pixels and of the patch, or counts that do
            not fit each other.
    """

    def __init__(
        self,
        backbone: Backbone,
        regime: Literal["full", "injector", "extractor"] = "full",
        interactions: int = 4,
        heads: int = 6,
        ratio: float = 1.0,
        points: int = 4,
        inplanes: int = 64,
        cffn_ratio: float = 0.25,
        extra_extractors: int = 2,
        vit_features: bool = True,
        prefix_tokens: bool = False,
        final_norm: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        _check(backbone, interactions, vit_features)
        dim, blocks = backbone.blocks[0].dim, backbone.blocks
        self.regime, self.vit_features = regime, vit_features
        self.prefix_tokens, self.final_norm = prefix_tokens, final_norm
        height, width = backbone.image_size
        self.grid = backbone.grid
        self.sizes = [(height // stride, width // stride) for stride in STRIDES]
        self.channels, self.strides = [dim] * 4, STRIDES
        self.spans = [
            range(i * len(blocks) // interactions, (i + 1) * len(blocks) // interactions) for i in range(interactions)
        ]
        attention = heads, points, ratio
        self.level_embed = nn.Parameter(torch.empty(3, dim))
        self.spm = SpatialPrior(inplanes, dim)
        self.interactions = Modules[Interaction](
            Interaction(
                Injector(dim, *attention) if regime != "extractor" else None,
                [
                    Extractor(dim, *attention, int(dim * cffn_ratio), drop_path)
                    for _ in range(1 + (extra_extractors if i == interactions - 1 else 0))
                ],
            )
            for i in range(interactions)
        )
        self.up = nn.ConvTranspose2d(dim, dim, 2, 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.BatchNorm2d(dim) for _ in range(4))
        self.apply(_initialise)
        nn.init.normal_(self.level_embed)
        if not prefix_tokens:
            for block in blocks:
                block.grow_prefix(-block.prefix)
        if not final_norm:
            backbone.skip_norm()

    def adopts(self, backbone: Backbone) -> list[str]:
        """Names in the vendor's model of the parameters that the maps depend on; none unless the regime is `full`."""
        if self.regime != "full":
            return []
        within = {id(p) for block in backbone.blocks for p in block.module.parameters()}
        if self.final_norm:
            within |= {id(p) for p in backbone.family.norm.parameters()}
        named = dict(backbone.model.named_parameters())
        outside = {name: p.requires_grad for name, p in named.items() if id(p) not in within}
        # What the first block's tokens depend on, asked of them: a class token that is dropped is not among it.
        try:
            for name in outside:
                named[name].requires_grad_(True)
            with torch.enable_grad():
                device = next(backbone.model.parameters()).device
                height, width = backbone.image_size
                image = torch.linspace(-1, 1, 3 * height * width, device=device).view(1, 3, height, width)
                x = self._tokens(backbone.family.embed(image))
                weights = torch.linspace(-1, 1, x.numel(), device=device).view_as(x)
                reached = torch.autograd.grad(x, [named[name] for name in outside], weights, allow_unused=True)
        finally:
            for name, learned in outside.items():
                named[name].requires_grad_(learned)
        within |= {
            id(named[name]) for name, grad in zip(outside, reached, strict=True) if grad is not None and grad.any()
        }
        return [name for name, p in named.items() if id(p) in within]

    def forward(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        c1, *priors = self.spm(images)
        c = torch.cat([prior + embed for prior, embed in zip(priors, self.level_embed, strict=True)], dim=1)
        at_patches, at_maps = centres([self.grid], c.device), centres(self.sizes[1:], c.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.regime != "extractor"):
            x = self._tokens(backbone.embed(images))
        known: list[Tensor] = []
        for interaction, span in zip(self.interactions, self.spans, strict=True):
            if interaction.injector is not None:
                prefix, patches = self._split(x)
                patches = interaction.injector(patches, at_patches, c, self.sizes[1:])
                x = torch.cat([prefix, patches], dim=1) if prefix.shape[1] else patches
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.regime != "extractor"):
                for index in span:
                    x = backbone.blocks[index](backbone.between(index, x))
                _, patches = self._split(x)
                if self.final_norm:
                    patches = backbone.family.norm(patches)
            for extractor in interaction.extractors():
                c = extractor(c, at_maps, patches, self.grid, self.sizes[1:])
            known.append(patches)
        return self._maps(c1, c, known)

    def _tokens(self, x: Tensor) -> Tensor:
        """What enters the first block."""
        return x if self.prefix_tokens else self._split(x)[1]

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens as those before the patches, prompts among them, and the patches."""
        patches = self.grid[0] * self.grid[1]
        return x[:, :-patches], x[:, -patches:]

    def _maps(self, c1: Tensor, c: Tensor, known: list[Tensor]) -> list[Tensor]:
        maps = [as_map(part, size) for part, size in zip(levels(c, self.sizes[1:]), self.sizes[1:], strict=True)]
        maps = [self.up(maps[0]) + c1, *maps]
        if self.vit_features:
            maps = [m + resize(as_map(x, self.grid), size) for m, x, size in zip(maps, known, self.sizes, strict=True)]
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        return [norm(m) for norm, m in zip(norms, maps, strict=True)]


class Interaction(nn.Module):
    """What is learned between one run of blocks and the next."""

    def __init__(self, injector: Injector | None, extractors: Sequence[Extractor]) -> None:
        super().__init__()
        self.injector = injector
        self.extractor = extractors[0]
        self.extra_extractors = Modules[Extractor](extractors[1:])

    def extractors(self) -> list[Extractor]:
        return [self.extractor, *self.extra_extractors]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, DeformableAttention):  # after its linears: children come first
        return module.reset_parameters()
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _check(backbone: Backbone, interactions: int, vit_features: bool) -> None:
    if backbone.windowed:
        raise ValueError(
            f"vit_adapter needs a plain ViT, and {backbone.name} attends within windows. Use the neck 'stages'."
        )
    if not 1 <= interactions <= len(backbone.blocks):
        raise ValueError(
            f"vit_adapter: interactions is {interactions}, and {backbone.name} has {len(backbone.blocks)} blocks to "
            "share among them; 1 to that many are possible."
        )
    if vit_features and interactions != 4:
        raise ValueError(
            f"vit_adapter: vit_features adds one map of the ViT to each of four, and there are {interactions} "
            "interactions. Make it 4, or set vit_features to false."
        )
    for side, patch in zip(backbone.image_size, backbone.patch, strict=True):
        multiple = math.lcm(32, patch)
        if side % 32:
            below = side // multiple * multiple
            near = " or ".join(str(size) for size in (below, below + multiple) if size)
            raise ValueError(
                f"vit_adapter: images of {backbone.name} are {backbone.image_size[0]}x{backbone.image_size[1]} pixels, "
                f"and {side} is not a multiple of 32, as the map at 1/32 needs. With patches of {patch} pixels, sides "
                f"are multiples of {multiple}: set image_size to {near}."
            )
