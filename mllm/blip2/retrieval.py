"""What a first stage can do: find the caption of an image and the image of a caption, tell pairs, and write captions.

Shapes: I different images, K different captions, P pairs of the two, M pairs that are asked about, N vision tokens, Q
queries, T tokens, E width of the common space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mllm.blip2.losses import contrastive, similarity
from mllm.blip2.model import FirstStage
from mllm.job import Measures


class Seen(NamedTuple):
    """What was read of a data set, or of a part of it.

    Args:
        image: Numbers of the images, [I] long.
        features: Of the tower, [I N C].
        images: In the common space, [I Q E].
        caption: Numbers of the captions, [K] long.
        ids, mask: [K T] long.
        texts: In the common space, [K E].
        pairs: Numbers of image and caption, [P 2] long.
    """

    image: Tensor
    features: Tensor
    images: Tensor
    caption: Tensor
    ids: Tensor
    mask: Tensor
    texts: Tensor
    pairs: Tensor


def united(parts: Sequence[Seen]) -> Seen:
    """Parts of a data set as one in which every image, caption and pair is once, in the order of their numbers."""
    longest = max(part.ids.shape[1] for part in parts)
    padded = [
        part._replace(
            ids=F.pad(part.ids, (0, longest - part.ids.shape[1])),
            mask=F.pad(part.mask, (0, longest - part.mask.shape[1])),
        )
        for part in parts
    ]
    all_ = Seen(*(torch.cat(field) for field in zip(*padded, strict=True)))
    image, image_at = _first(all_.image)
    caption, caption_at = _first(all_.caption)
    return Seen(
        image,
        all_.features[image_at],
        all_.images[image_at],
        caption,
        all_.ids[caption_at],
        all_.mask[caption_at],
        all_.texts[caption_at],
        all_.pairs.unique(dim=0),
    )


@torch.no_grad()
def measure(stage: FirstStage, seen: Seen, candidates: int, batch: int) -> Measures:
    """Everything that is measured of a first stage on one data set, in the mode that the stage is in.

    `itc`, `itm`, `itg`: the losses over the whole set, without smoothing: of all similarities; of every pair, of its
    image with the wrong caption most like it, and of its caption with the wrong image most like it; of every token.
    `itm_accuracy`: mean of how often a pair is taken for one, and how often these wrong ones are not.

    `itc_image_r1`, `itc_image_r5`: the share of images with a caption of theirs among the first 1 or 5 by similarity;
    `itc_text_*`: of captions with an image of theirs. `itm_image_*`, `itm_text_*`: the same after the first
    `candidates` have been put in the order of similarity plus the logit of yes, as in LAVIS. `chance_*`: what an order
    at random reaches at 1.

    `shuffled_*`: with each image in the place of another. Recall is near chance; a caption is written no better than
    without an image.

    Args:
        stage: Is run where its parameters are, its pairs shared out to the processes.
        seen: United, and the same in all processes.
        candidates: How many are asked about for each image and each caption; 128 in BLIP-2.
        batch: Pairs at once.

    Returns:
        `score`: mean of recall at 1 of both directions, after ITM where it was learned.
    """
    asked = _Asked(stage, seen, batch)
    related = torch.zeros(len(seen.image), len(seen.caption), dtype=torch.bool)
    related[asked.image, asked.text] = True
    scores = asked.similarities()
    logits = scores / float(stage.temperature)
    itc = (contrastive(logits, related, 0.0) + contrastive(logits.T, related.T, 0.0)) / 2
    values = {"itc": float(itc), **_recalls("itc", scores, scores.T, related)}
    if stage.itm_head is not None:
        values |= asked.matching(scores, related) | _recalls("itm", *asked.reranked(scores, candidates), related)
    if stage.word_head is not None:
        values["itg"] = asked.writing(torch.arange(len(seen.image)))
    others = _others(len(seen.image))
    shuffled = _recalls("itc", scores[others], scores[others].T, related)
    values |= {f"shuffled_{name}": value for name, value in shuffled.items()}
    if stage.word_head is not None:
        values["shuffled_itg"] = asked.writing(others)
    values |= {"chance_image": _chance(related), "chance_text": _chance(related.T)}
    best = "itm" if stage.itm_head is not None else "itc"
    score = (values[f"{best}_image_r1"] + values[f"{best}_text_r1"]) / 2
    loss = sum(values[term] for term in ("itc", "itm", "itg") if term in values)
    return Measures(loss, score, {"score": score, **values})


class _Asked:
    """A stage that is asked about images and captions, a batch at a time; `image` and `text` [P] are the pairs."""

    def __init__(self, stage: FirstStage, seen: Seen, batch: int) -> None:
        self.stage, self.seen, self.batch = stage, seen, batch
        self.image = torch.searchsorted(seen.image, seen.pairs[:, 0].contiguous())
        self.text = torch.searchsorted(seen.caption, seen.pairs[:, 1].contiguous())
        self.device = stage.temperature.device

    def similarities(self) -> Tensor:
        """[I K]."""
        texts = self.seen.texts.to(self.device)
        images = (part.to(self.device) for part in self.seen.images.split(self.batch))
        return torch.cat([similarity(part, texts).cpu() for part in images])

    def answers(self, image: Tensor, text: Tensor) -> Tensor:
        """Logits [M 2] of no and yes for images [M] and captions [M]."""
        found = torch.zeros(len(image), 2, device=self.device)
        for mine in self._mine(len(image)):
            logits = self.stage.matched(self._features(image[mine]), *self._words(text[mine]))
            found[mine.to(self.device)] = logits.float()
        return _summed(found).cpu()

    def matching(self, scores: Tensor, related: Tensor) -> dict[str, float]:
        """Loss and accuracy of pairs and of the likeliest wrong ones."""
        wrong = scores.masked_fill(related, -torch.inf)
        image, text = self.image, self.text
        with_image = torch.stack([wrong.argmax(dim=0)[text], text], 1)[~related.all(dim=0)[text]]
        with_caption = torch.stack([image, wrong.argmax(dim=1)[image]], 1)[~related.all(dim=1)[image]]
        asked = torch.cat([torch.stack([image, text], 1), with_image, with_caption])
        logits, yes = self.answers(*asked.T), torch.arange(len(asked)) < len(image)
        right = (logits.argmax(dim=1) == yes.long()).float()
        kinds = [right[kind].mean() for kind in (yes, ~yes) if kind.any()]
        return {
            "itm": float(F.cross_entropy(logits, yes.long())),
            "itm_accuracy": float(torch.stack(kinds).mean()),
        }

    def reranked(self, scores: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
        """Scores [I K] of images, and [K I] of captions, of the first candidates; the others come last."""
        found = []
        for table, images_first in ((scores, True), (scores.T, False)):
            best = table.topk(min(candidates, table.shape[1]), dim=1)
            row = torch.arange(len(table)).repeat_interleave(best.indices.shape[1])
            column = best.indices.flatten()
            yes = self.answers(row, column)[:, 1] if images_first else self.answers(column, row)[:, 1]
            after = torch.full(table.shape, -torch.inf)
            after[row, column] = yes + best.values.flatten()
            found.append(after)
        return found[0], found[1]

    def writing(self, instead: Tensor) -> float:
        """Loss of every token of every pair, where image i is seen as image instead[i]."""
        image, text = self.image, self.text
        total = torch.zeros(2, device=self.device)
        for mine in self._mine(len(image)):
            _, past = self.stage.qformer(self._features(instead[image[mine]]))
            logits, labels = self.stage.written(past, *self._words(text[mine]))
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")
            total += torch.stack([loss, loss.new_tensor(len(labels))])
        loss, tokens = _summed(total).tolist()
        return loss / tokens

    def _mine(self, count: int) -> Sequence[Tensor]:
        """What this process does of so many, in batches."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if _several() else (0, 1)
        return torch.arange(rank, count, world).split(self.batch) if count > rank else ()

    def _features(self, image: Tensor) -> Tensor:
        """Behind their norm."""
        return self.stage.norm(self.seen.features[image].to(self.device).float())

    def _words(self, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.seen.ids[text].to(self.device), self.seen.mask[text].to(self.device)


def _recalls(name: str, images: Tensor, texts: Tensor, related: Tensor) -> dict[str, float]:
    """Recall at 1 and 5 by scores of captions for images [I K], and of images for captions [K I]."""
    found = {}
    for what, scores, right in (("image", images, related), ("text", texts, related.T)):
        for k in (1, 5):
            first = scores.topk(min(k, scores.shape[1]), dim=1).indices
            found[f"{name}_{what}_r{k}"] = float(right.gather(1, first).any(dim=1).float().mean())
    return found


def _others(count: int) -> Tensor:
    """Another one for each of so many, the same every time."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return torch.empty_like(order).scatter(0, order, order.roll(1))


def _chance(related: Tensor) -> float:
    return float(related.float().mean(dim=1).mean())


def _first(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Each number once, in order, and where it is first."""
    found, at = numbers.unique(return_inverse=True)
    first = torch.full_like(found, len(numbers)).scatter_reduce(0, at, torch.arange(len(numbers)), "amin")
    return found, first


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _summed(x: Tensor) -> Tensor:
    if _several():
        dist.all_reduce(x)
    return x
