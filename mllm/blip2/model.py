"""The model of BLIP-2's first stage (Li et al., ICML 2023, arXiv:2301.12597): vision tower, Q-Former, three heads.

    Z = LN(tower(image))        queries, keys and values = QFormer(Z)        text = QFormer(words)

    ITC   z = unit(W_z queries), t = unit(W_t text[CLS])
    ITM   mean over queries of W_m QFormer(Z, words)
    ITG   words, [DEC] for [CLS], behind the keys and values of the queries; BERT's head, which ends in the word table

Shapes: B pairs of a process, G of all, N vision tokens, Q queries, T tokens, D width of the Q-Former, E of the common
space, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.blip2.gather import gathered, gathered_text
from mllm.blip2.losses import contrastive, matching, negatives, next_tokens, similarity
from mllm.qformer import KeysValues, QFormer
from mllm.sequence import IGNORED
from vpeft.tasks.learning import channels, normalise
from vpeft.tuned import Tuned

TERMS = ("itc", "itm", "itg")


class Pairs(NamedTuple):
    """B images and their captions.

    Args:
        features: Of the vision tower, [B N C].
        text_ids: Behind [CLS], [B T] long.
        text_mask: 1 at text, 0 at padding, [B T] long.
        image: Number of each image in its data set, [B] long.
        caption: Number of each different caption, [B] long.
    """

    features: Tensor
    text_ids: Tensor
    text_mask: Tensor
    image: Tensor
    caption: Tensor


class FirstStage(nn.Module):
    """Everything of BLIP-2's first stage that learns.

    With BERT's sizes, 32 queries, features of 1408 and 30,523 words: 186,705,470 parameters. The Q-Former and the norm
    on the features are those of `mllm.connectors.qformer`, under the same names.

    The last row of the word table is [DEC], which stands for [CLS] where a caption is to be written.

    Args:
        qformer: With a vocabulary.
        context_dim: C, width of the features.
        terms: Which losses; itc is one of them, and what the others alone need is built with them only.
        embed: E; 256 in BLIP-2.
        temperature: Where the learned temperature begins; .07 in BLIP-2.
        smoothing: Of the targets of ITC and ITG; .1 in BLIP-2.
        gather_grad: ITC's gradient reaches the images and texts that are compared with, not only those that are
            compared. LAVIS's does not, with one process either.

    Raises:
        ValueError: a Q-Former without a vocabulary.
    """

    def __init__(
        self,
        qformer: QFormer,
        context_dim: int,
        terms: Sequence[str] = TERMS,
        embed: int = 256,
        temperature: float = 0.07,
        smoothing: float = 0.1,
        gather_grad: bool = False,
    ) -> None:
        super().__init__()
        if qformer.words is None:
            raise ValueError(
                "BLIP-2's first stage reads captions, and this Q-Former reads no text; build it with a vocab."
            )
        self.smoothing, self.gather_grad = smoothing, gather_grad
        vocab, dim = qformer.words.weight.shape
        self.norm = nn.LayerNorm(context_dim)
        self.qformer = qformer
        self.image_proj, self.text_proj = nn.Linear(dim, embed), nn.Linear(dim, embed)
        self.temperature = nn.Parameter(torch.tensor(temperature))
        self.itm_head = nn.Linear(dim, 2) if "itm" in terms else None
        self.word_head = WordHead(dim, vocab) if "itg" in terms else None

    def forward(self, pairs: Pairs, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The losses by name. Over several processes each compares its pairs with all, and needs as many as the others.

        Pairs that show one image or say one thing share the target of ITC and are no negatives of each other. LAVIS
        does this with images where it tunes for retrieval; its pre-training takes every pair for a different one.

        Args:
            pairs: Of this process.
            generator: Draws the negatives; None is torch's own.

        Raises:
            ValueError: no pair has a negative.
        """
        seen = self.norm(pairs.features)
        queries, past = self.qformer(seen)
        image, text = self.compared_images(queries), self.compared_texts(pairs.text_ids, pairs.text_mask)
        to_texts = similarity(image, gathered(text, self.gather_grad)).float() / self.temperature
        to_images = similarity(gathered(image, self.gather_grad), text).T.float() / self.temperature
        same = _same(pairs.image) | _same(pairs.caption)
        both = [contrastive(scores, same, self.smoothing) for scores in (to_texts, to_images)]
        losses = {"itc": torch.stack(both).mean()}
        if self.itm_head is not None:
            drawn = (negatives(scores.detach(), same, generator) for scores in (to_images, to_texts))
            losses["itm"] = matching(self.matched(*self.triplets(seen, pairs, *drawn)).float(), same)
        if self.word_head is not None:
            logits, labels = self.written(past, pairs.text_ids, pairs.text_mask)
            losses["itg"] = F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        return losses

    def compared_images(self, queries: Tensor) -> Tensor:
        """Queries of images [I Q D] in the common space: unit vectors [I Q E]."""
        return F.normalize(self.image_proj(queries), dim=-1)

    def compared_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Texts [B T] in the common space: unit vectors [B E]."""
        hidden, _ = self.qformer(None, ids, mask)
        return F.normalize(self.text_proj(hidden[:, 0]), dim=-1)

    def triplets(self, seen: Tensor, pairs: Pairs, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [3 B N C], ids and mask [3 B T]: pairs, other images with the texts, the images with other texts.

        Args:
            seen: Features behind their norm, [B N C].
            pairs: Of this process.
            image: Which of all G images goes with each text, [B].
            text: Which of all G texts goes with each image, [B].
        """
        images = gathered(seen, gradient=True)[image]
        ids, mask = gathered_text(pairs.text_ids, pairs.text_mask)
        room = (0, ids.shape[1] - pairs.text_ids.shape[1])
        own, there = F.pad(pairs.text_ids, room), F.pad(pairs.text_mask, room)
        return torch.cat([seen, images, seen]), torch.cat([own, own, ids[text]]), torch.cat([there, there, mask[text]])

    def matched(self, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits [B 2] of no and yes: whether images, behind their norm [B N C], and texts [B T] are pairs."""
        assert self.itm_head is not None
        hidden, _ = self.qformer(seen, ids, mask)
        return self.itm_head(hidden[:, : self.qformer.queries.shape[1]]).mean(dim=1)

    def written(self, past: Sequence[KeysValues], ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [K V] of the K tokens that a caption goes on with, and which they are, [K].

        Args:
            past: Keys and values of the queries of each image, from the Q-Former.
            ids: [B T] long; [DEC] takes the place of the first.
            mask: 1 at text, 0 at padding, [B T].
        """
        assert self.word_head is not None
        assert self.qformer.words is not None
        table = self.qformer.words.weight
        begun = torch.cat([torch.full_like(ids[:, :1], len(table) - 1), ids[:, 1:]], dim=1)
        hidden, _ = self.qformer(None, begun, mask, "causal", past)
        labels = next_tokens(ids, mask)
        told = labels != IGNORED
        return self.word_head(hidden[told], table), labels[told]


class WordHead(nn.Module):
    """BERT's: LN(gelu(W h)) E^T + b with the word table E [V D]; D^2 + 3 D + V parameters."""

    def __init__(self, dim: int, vocab: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocab))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(x))), table, self.bias)


class Blip2(nn.Module):
    """A vision tower and what BLIP-2's first stage learns on it.

    Args:
        vision: From `mllm.vision.tower`.
        connector: Built for its features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vision: Tuned, connector: FirstStage) -> None:
        super().__init__()
        self.vision, self.connector = vision, connector
        mean, std = vision.backbone.normalization
        self.register_buffer("mean", channels(tuple(mean)), persistent=False)
        self.register_buffer("std", channels(tuple(std)), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """uint8 [I 3 H W] to what the connector reads, [I N C]."""
        return self.vision(normalise(images, self.mean, self.std))

    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        """The losses by name."""
        return self.connector(pairs)

    def delta(self) -> dict[str, Tensor]:
        """What training changes: all but the frozen part of the tower."""
        vision = {f"vision.{name}": tensor for name, tensor in self.vision.delta().items()}
        return vision | {f"connector.{name}": tensor for name, tensor in self.connector.state_dict().items()}

    def components(self) -> dict[str, Sequence[tuple[str, nn.Parameter]]]:
        """Named trainable parameters; the text branch and the heads are the connector's."""
        vision = [(f"vision.{name}", parameter) for name, parameter in self.vision.trainable()]
        connector = [(f"connector.{name}", p) for name, p in self.connector.named_parameters()]
        return {"vision": vision, "connector": connector, "language": [], "embeddings": []}

    def totals(self) -> dict[str, int]:
        """Parameters of each component."""
        parts = {"vision": self.vision, "connector": self.connector}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()} | {
            "language": 0,
            "embeddings": 0,
        }


def _same(ids: Tensor) -> Tensor:
    """Which of all pairs have the number of each of this process's, bool [B G]."""
    return ids[:, None] == gathered(ids, gradient=False)[None]
