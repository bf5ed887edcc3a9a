"""SAN (Xu et al., CVPR 2023, arXiv:2302.12242).

    maps, tokens  = CLIP's first blocks on a smaller image                          frozen
    masks, biases = side(image, maps)                                               trained
    logits        = exp(CLIP's logit scale) <recognise(tokens, biases), rows>       CLIP's last blocks, frozen
    scores_k      = sum_q softmax(logits_q)_k sigmoid(masks_q)                      the background row is left out

Shapes: B images, Q queries, K classes, H W pixels, h w side grid, V width of CLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpeft.dense.san_recognition import recognise
from vpeft.dense.san_side import SideNetwork, resize_positions
from vpeft.dense.san_text import VILD, TextClassifier

_ROWS = 64  # pixel rows whose scores are held at a time: 847 classes of a whole image take gigabytes
_POSITIONS = "clip.visual.positional_embedding"


class Proposals(NamedTuple):
    """What SAN sees in images: masks [B Q h w] and logits [B Q K+1], both before sigmoid and softmax."""

    masks: Tensor
    logits: Tensor


class SAN(nn.Module):
    """A side network on a frozen CLIP; 8,370,866 parameters on ViT-B/16 and 9,321,650 on ViT-L/14-336.

    These are the side network (8,219,058 and 8,730,034), CLIP's position table, which is trained too (151,296 and
    590,848), and the background row (512 and 768). Official code: MendelXu/SAN @ e19262d (MIT).

    Differs: CLIP's position table is one of the parameters, not a tensor shared by name; a published checkpoint is read
    by `vpeft.dense.san_weights`. Left out are the options that no published configuration uses: recognition by
    cross-attention, learned SLS tokens, and pooling the bias by other means than the maximum.

    Args:
        clip: open_clip's CLIP, both towers; is changed: everything but its position table is frozen.
        tokenize: Its tokenizer.
        taps: Blocks of CLIP after which its map is added to the side network's input and first outputs, 0 being before
            the first block; recognition starts after the last. 0 3 6 9 for B/16, 0 6 12 18 for L/14.
        clip_scale: Size of CLIP's image as a fraction of the side network's; 0.5 for B/16, 0.7 for L/14-336.
        templates: Sentences with {} for a class; SAN's are the 14 of ViLD.
        side: Options of `SideNetwork`.

    Raises:
        ValueError: taps are no blocks of this CLIP in order.
        TypeError: the CLIP is of another family than open_clip's ViT with a class token.
    """

    def __init__(
        self,
        clip: nn.Module,
        tokenize: Callable[[list[str]], Tensor],
        taps: Sequence[int] = (0, 3, 6, 9),
        clip_scale: float = 0.5,
        templates: Sequence[str] = VILD,
        **side: Any,
    ) -> None:
        super().__init__()
        self.clip: Any = clip.requires_grad_(False).eval()
        visual = self.clip.visual
        _check(visual, taps)
        self.taps, self.clip_scale = tuple(taps), clip_scale
        self.side = SideNetwork(
            visual.transformer.width, visual.transformer.resblocks[0].attn.num_heads, fusions=len(taps), **side
        )
        self.text = TextClassifier(clip, tokenize, visual.output_dim, templates)
        visual.positional_embedding.requires_grad_(True)

    def train(self, mode: bool = True) -> SAN:
        """Set training mode of the side network; CLIP's dropout stays off."""
        super().train(mode)
        self.clip.eval()
        return self

    def forward(self, images: Tensor, classes: Sequence[str]) -> list[Proposals]:
        """Proposals of every supervised block while training, else of the last one alone.

        Args:
            images: Normalised with CLIP's mean and deviation, [B 3 H W], H and W multiples of the side's patch.
            classes: Names, as the templates will say them.
        """
        return self.propose(images, self.text(classes))

    def propose(self, images: Tensor, rows: Tensor) -> list[Proposals]:
        """As `forward`, for rows [K + 1, E] that `self.text` has made."""
        maps, tokens, grid = self.look(images)
        scale = self.clip.logit_scale.exp()
        found = []
        for masks, biases in self.side(images, maps):
            regions = recognise(self.clip.visual, self.taps[-1], tokens, grid, biases)
            found.append(Proposals(masks, scale * regions @ rows.T))
        return found

    def look(self, images: Tensor) -> tuple[list[Tensor], Tensor, tuple[int, int]]:
        """CLIP's maps [B V . .] at the taps, its tokens at the last, and their grid, of a reduced image."""
        visual = self.clip.visual
        if self.clip_scale != 1:
            images = F.interpolate(images, scale_factor=self.clip_scale, mode="bilinear", align_corners=False)
        x = visual.conv1(images)
        h, w = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        positions = resize_positions(visual.positional_embedding[None], visual.grid_size, (h, w), prefix=1)
        x = visual.ln_pre(x + positions.to(x.dtype))
        maps = []
        for number in range(self.taps[-1] + 1):
            if number:
                x = visual.transformer.resblocks[number - 1](x)
            if number in self.taps:
                maps.append(x[:, 1:].transpose(1, 2).unflatten(2, (h, w)))
        return maps, x, (h, w)

    def trained(self) -> dict[str, nn.Parameter]:
        """What training changes, by name: side network, background row and CLIP's position table."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def undecayed(self) -> set[str]:
        """Names of the trained parameters without weight decay: positions, queries, and the side ViT's norms.

        Not those of fusion: the official rule asks for torch's own classes, and its channel norm is none.
        """
        norms = {f"side.vit.{name}" for name, _ in self.side.vit.named_parameters() if ".norm" in name}
        return norms | {_POSITIONS, "side.vit.pos_embed", "side.queries", "side.query_pos"}

    def delta(self) -> dict[str, Tensor]:
        """The tensors of `trained`, for a file."""
        return {name: parameter.detach() for name, parameter in self.trained().items()}

    def load_delta(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `delta` gave.

        Raises:
            ValueError: tensors are missing, unknown or of another shape; nothing has been changed.
        """
        own = self.trained()
        wrong = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
        if wrong:
            raise ValueError(
                f"These weights are not of this SAN: {wrong[0]} and {len(wrong) - 1} more tensors are missing, unknown "
                "or of another shape. Build the model that they were trained as (CLIP, taps, queries, widths)."
            )
        self.load_state_dict(dict(state), strict=False)


def scores(proposals: Proposals, padded: tuple[int, int], inner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Scores [B K H W]; they do not sum to 1, as the background row's share is dropped.

    Masks are upsampled to the padded image, cut to the image, and brought to the wanted size before they are summed.

    Args:
        proposals: Of the padded image.
        padded: (height, width) of what the model saw.
        inner: (height, width) of the image in it, at its top left.
        size: (H, W).
    """
    weights, masks = _weighed(proposals, padded, inner, size)
    return torch.einsum("bqk,bqhw->bkhw", weights, masks)


def label_map(proposals: Proposals, padded: tuple[int, int], inner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The class of the highest score, int64 [B H W]; as `scores`, without holding all of them at once."""
    weights, masks = _weighed(proposals, padded, inner, size)
    strips = [torch.einsum("bqk,bqhw->bkhw", weights, strip).argmax(dim=1) for strip in masks.split(_ROWS, dim=2)]
    return torch.cat(strips, dim=1)


def _weighed(
    proposals: Proposals, padded: tuple[int, int], inner: tuple[int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    weights = proposals.logits.float().softmax(dim=-1)[..., :-1]
    masks = F.interpolate(proposals.masks.float(), size=padded, mode="bilinear", align_corners=False)
    masks = masks[..., : inner[0], : inner[1]]
    if inner != size:
        masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    return weights, masks.sigmoid()


def pad_to_multiple(images: Tensor, multiple: int = 32) -> Tensor:
    """Normalised images with zeros at the right and the bottom, as the official test does; 32 is its multiple."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple))


def _check(visual: Any, taps: Sequence[int]) -> None:
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.pool_type != "tok":
        raise TypeError(
            f"SAN reads open_clip's own ViT with a class token, such as ViT-B-16/openai; {type(visual).__name__} is "
            "another tower or pools otherwise."
        )
    depth = len(visual.transformer.resblocks)
    if sorted(set(taps)) != list(taps) or not taps or taps[0] < 0 or taps[-1] >= depth:
        raise ValueError(
            f"san: taps is {list(taps)}; it lists, in order, blocks from 0 to {depth - 1} of this CLIP's {depth}, of "
            "which the last leaves at least one for recognition."
        )
