"""The three losses of BLIP-2's first stage (Li et al., ICML 2023, arXiv:2301.12597).

    ITC   s(i, t) = max_q <z_iq, t> / temperature, cross-entropy over texts and over images, halved
    ITM   cross-entropy of yes and no: a pair, an image drawn for its text, a text drawn for its image
    ITG   cross-entropy of each next token of the text, given image and tokens before it

Shapes: B pairs of a process, G of all, Q queries, E width of the space that both are compared in, T tokens, V words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm.sequence import IGNORED

_MASKED = -10000.0


def similarity(images: Tensor, texts: Tensor) -> Tensor:
    """How like its best query is a text: unit vectors [I Q E] and [T E] to [I T]."""
    return torch.einsum("iqe,te->itq", images, texts).max(dim=-1).values


def contrastive(scores: Tensor, same: Tensor, smoothing: float) -> Tensor:
    """One direction of ITC: cross-entropy of similarities over the temperature.

    Args:
        scores: Of rows to all columns, [B G].
        same: Which columns belong together with a row, its own among them, bool [B G]; they share the target.
        smoothing: Of the target, over all G.
    """
    return F.cross_entropy(scores, same / same.sum(dim=1, keepdim=True), label_smoothing=smoothing)


def weights(scores: Tensor, same: Tensor) -> Tensor:
    """The distribution that a negative is drawn from: softmax [B G] of scores, without what belongs together."""
    return scores.masked_fill(same, _MASKED).softmax(dim=1)


def negatives(scores: Tensor, same: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A hard negative for each row: a column [B], drawn by `weights`.

    Args:
        scores: Similarities over the temperature, [B G].
        same: Columns that are no negatives, bool [B G]. A row of nothing else draws one of them all the same
            (`matching` leaves it out).
        generator: Of the draw; None is torch's own.

    Raises:
        ValueError: no row has a negative.
    """
    if bool(same.all()):
        raise ValueError(
            f"A batch of {same.shape[1]} pairs leaves no negative for the matching loss: all of them show one image or "
            "say one thing. Raise data.batch_size."
        )
    return torch.multinomial(weights(scores, same), 1, generator=generator)[:, 0]


def matching(logits: Tensor, same: Tensor) -> Tensor:
    """ITM of logits [3 B, 2]: pairs, then an image drawn for each text, then a text drawn for each image.

    Args:
        logits: Column 1 is yes.
        same: As in `negatives`; rows that had no negative do not count.
    """
    labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    labels[: len(same)] = 1
    labels[len(same) :].masked_fill_(same.all(dim=1).repeat(2), IGNORED)
    return F.cross_entropy(logits, labels)


def next_tokens(ids: Tensor, mask: Tensor) -> Tensor:
    """What ITG is to say behind each token of [B T]: the next one, and IGNORED where there is none."""
    return F.pad(ids.masked_fill(mask == 0, IGNORED)[:, 1:], (0, 1), value=IGNORED)
