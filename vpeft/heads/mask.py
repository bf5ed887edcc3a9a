"""Mask2Former (Cheng et al., CVPR 2022, arXiv:2112.01527): queries that each say a class and where it is.

    logits_k(x) = sum_q softmax(c_q)_k * sigmoid(m_q(x)),    k without "no object"
    loss = 2 CE(c, matched) + 5 BCE(m, matched) + 5 dice(m, matched),    before and after every decoder layer

Pixel decoder, transformer decoder, matcher and losses are those of transformers; this file joins them to any maps.

Shapes: B images, Q queries, K classes, C channels, h w the grid of the finest map, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vpeft.dense.mask_losses import MaskLoss, masks_of
from vpeft.dense.san import Proposals
from vpeft.heads.conv import resize
from vpeft.queries import Querying


class MaskHead(nn.Module):
    """Pixel decoder, queries and classifier; 20,336,727 parameters for four maps of 768 and 150 classes.

    Reads four maps of strides 4, 8, 16 and 32. It is trained by matching (`loss`); `forward` gives scores for
    inference, which are no logits of a softmax.

    Equals transformers' Mask2Former (huggingface/transformers @ v5.23.0, Apache-2.0), which is a port of
    facebookresearch/Mask2Former @ 9b0651c (MIT). As in its semantic recipe, a mask is all there is of a class in an
    image, and ignored pixels belong to none.

    With `linked`, the queries E are those of a method (`vpeft.queries`; Rein), and the head learns one map of them in
    the place of two tables: E is added to the queries and keys of attention, linear(E) is what the decoder begins with.
    As ReinMask2FormerHead with `replace_query_feat` in w1oves/Rein @ 29755d4; 2 Q w parameters become w (w + 1).

    Args:
        channels: C of the four maps, finest first.
        classes: K.
        width: Of both decoders, a multiple of 32; 256 in the official ADE20K configs.
        queries: Q; 100 there.
        encoder_layers: Of deformable attention in the pixel decoder; 6 there.
        decoder_layers: Of masked attention; 9 there.
        heads: Of every attention; 8 there.
        points: Sampled of each mask for matching and losses; 12,544 there.
        stride: Of the finest map; 4. `forward` resizes masks by it before their sigmoid, as mmseg does.
        linked: Take the queries of a method, which makes as many and as wide ones.

    Raises:
        ValueError: there are not four maps, or the width is no multiple of 32 and of the heads; in `link`, queries of
            another number or width; in `forward` and `loss`, linked to no method yet.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        width: int = 256,
        queries: int = 100,
        encoder_layers: int = 6,
        decoder_layers: int = 9,
        heads: int = 8,
        points: int = 12544,
        stride: int = 4,
        linked: bool = False,
    ) -> None:
        super().__init__()
        # Not at the top: seconds, which every command would wait for that names a head.
        from transformers import Mask2FormerConfig
        from transformers.models.mask2former import modeling_mask2former as official

        if len(channels) != 4:
            raise ValueError(
                f"mask: it reads four maps, of strides 4, 8, 16 and 32, and the neck makes {len(channels)}. Use neck "
                "vit_adapter, layers with four strides, or stages of a Swin."
            )
        if width % 32 or width % heads:
            raise ValueError(f"mask: width is {width}; it has to be a multiple of 32 and of heads ({heads}).")
        config = Mask2FormerConfig(
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            encoder_feedforward_dim=4 * width,
            dim_feedforward=8 * width,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers + 1,
            num_attention_heads=heads,
            num_queries=queries,
        )
        self.stride, self.width, self.count, self.linked = stride, width, queries, linked
        self.pixels = official.Mask2FormerPixelDecoder(config, feature_channels=list(channels))
        self.queries = official.Mask2FormerTransformerModule(in_features=width, config=config)
        self.classify = nn.Linear(width, classes + 1)
        self.apply(official.Mask2FormerPreTrainedModel(config)._init_weights)
        if linked:
            del self.queries.queries_embedder.weight, self.queries.queries_features.weight
            self.to_features = nn.Linear(width, width)
        self.criterion = MaskLoss(classes, points=points)
        self._method: list[Querying] = []  # in a list: the head does not own it

    def link(self, method: Querying) -> None:
        if (given := tuple(method.queries().shape)) != (self.count, self.width):
            raise ValueError(
                f"mask: it is linked to {given[0]} queries of width {given[1]}, and its queries are {self.count} of "
                f"width {self.width}. Give head and method the same numbers."
            )
        self._method = [method]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Scores [B K h*stride w*stride] of maps [B C h w], finest first; each is within 0..Q."""
        masks, logits = self.proposals(maps)[-1]
        shown = resize(masks, [self.stride * side for side in masks.shape[-2:]]).sigmoid()
        return torch.einsum("bqk,bqhw->bkhw", logits.softmax(-1)[..., :-1], shown)

    def loss(self, maps: Sequence[Tensor], mask: Tensor, ignored: int = 255) -> Tensor:
        """The weighted sum of all losses, a scalar, finite where every pixel is ignored too.

        Args:
            maps: [B C h w] each, finest first.
            mask: Class of every pixel [B H W].
            ignored: Value of `mask` that is no class.
        """
        masks, labels = zip(*(masks_of(one, ignored) for one in mask), strict=True)
        return self.criterion(self.proposals(maps), masks, labels)[0]

    def proposals(self, maps: Sequence[Tensor]) -> list[Proposals]:
        """What the queries propose before the first decoder layer and after each."""
        pixels = self.pixels(list(maps))
        given = {"multi_scale_features": pixels.multi_scale_features, "mask_features": pixels.mask_features}
        decoded = functional_call(self.queries, self._taken(), kwargs=given)
        logits = [self.classify(state.transpose(0, 1)) for state in decoded.intermediate_hidden_states]  # B Q K+1
        return [Proposals(*one) for one in zip(decoded.masks_queries_logits, logits, strict=True)]

    def _taken(self) -> dict[str, Tensor]:
        """The tables of the decoder that a method makes, by their names."""
        if not self.linked:
            return {}
        if not self._method:
            raise ValueError("mask: linked is true, and no method was linked. Call link with one, or build a Tuned.")
        queries = self._method[0].queries()  # Q w
        return {"queries_embedder.weight": queries, "queries_features.weight": self.to_features(queries)}
