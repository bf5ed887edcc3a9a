"""What a first stage can do: find the caption of an image and the image of a caption, tell pairs, and write captions.

What the tower makes of an image is never kept: it is computed once for the places in the common space, and a second
time for everything that is asked about the image, a few images at a time. A process holds the places of all images and
captions, I Q E and K E numbers, and a few tables of I K; for COCO's test of 5,000 images and 25,010 captions .2 GB, and
.5 GB a table.

Shapes: I different images, J of them at once, K different captions, P pairs of the two, M pairs that are asked about, N
vision tokens, C their width, Q queries, T tokens, E width of the common space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mllm.blip2.losses import contrastive, similarity
from mllm.blip2.model import FirstStage
from mllm.job import Measures

# For numbers of images [I] the features of all of them, a few at a time: their numbers [J] and [J N C].
Read = Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]]


class Seen(NamedTuple):
    """What was read of a data set, or of a part of it.

    Args:
        image: Numbers of the images, [I] long.
        images: In the common space, [I Q E].
        caption: Numbers of the captions, [K] long.
        ids, mask: [K T] long.
        texts: In the common space, [K E].
        pairs: Numbers of image and caption, [P 2] long.
    """

    image: Tensor
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
        all_.images[image_at],
        caption,
        all_.ids[caption_at],
        all_.mask[caption_at],
        all_.texts[caption_at],
        all_.pairs.unique(dim=0),
    )


@torch.no_grad()
def measure(stage: FirstStage, seen: Seen, read: Read, candidates: int, batch: int) -> Measures:
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
        stage: Is run where its parameters are, the images shared out to the processes.
        seen: United, and the same in all processes.
        read: The features of images, where the stage is.
        candidates: How many are asked about for each image and each caption; 128 in BLIP-2.
        batch: Pairs at once.

    Returns:
        `score`: mean of recall at 1 of both directions, after ITM where it was learned. `pairs`: how many there were.
    """
    image = torch.searchsorted(seen.image, seen.pairs[:, 0].contiguous())
    text = torch.searchsorted(seen.caption, seen.pairs[:, 1].contiguous())
    related = torch.zeros(len(seen.image), len(seen.caption), dtype=torch.bool)
    related[image, text] = True
    scores = _similarities(stage, seen, batch)
    logits = scores / float(stage.temperature)
    itc = (contrastive(logits, related, 0.0) + contrastive(logits.T, related.T, 0.0)) / 2
    values: dict[str, float] = {"pairs": len(image), "itc": float(itc), **_recalls("itc", scores, scores.T, related)}
    others = _others(len(seen.image))
    # Which image is shown with which caption: the pairs themselves, and then with another image each.
    shown = [torch.stack([which, text], 1) for which in (image, others[image])] if stage.word_head is not None else []
    asked = _questions(scores, related, image, text, candidates) if stage.itm_head is not None else []
    answered, written = _Reading(stage, seen, batch)(read, asked, shown)
    if stage.itm_head is not None:
        values |= _matching(answered[0], len(image)) | _recalls("itm", *_reranked(scores, asked, answered), related)
    if stage.word_head is not None:
        values |= {"itg": written[0], "shuffled_itg": written[1]}
    shuffled = _recalls("itc", scores[others], scores[others].T, related)
    values |= {f"shuffled_{name}": value for name, value in shuffled.items()}
    values |= {"chance_image": _chance(related), "chance_text": _chance(related.T)}
    best = "itm" if stage.itm_head is not None else "itc"
    score = (values[f"{best}_image_r1"] + values[f"{best}_text_r1"]) / 2
    loss = sum(values[term] for term in ("itc", "itm", "itg") if term in values)
    return Measures(loss, score, {"score": score, **values})


def _similarities(stage: FirstStage, seen: Seen, batch: int) -> Tensor:
    """[I K]."""
    device = stage.temperature.device
    texts = seen.texts.to(device)
    return torch.cat([similarity(part.to(device), texts).cpu() for part in seen.images.split(batch)])


def _questions(scores: Tensor, related: Tensor, image: Tensor, text: Tensor, candidates: int) -> list[Tensor]:
    """Images and captions that ITM is asked about, [M 2] each.

    First the pairs, followed by the likeliest wrong ones; then the candidates of every image, and of every caption.
    """
    wrong = scores.masked_fill(related, -torch.inf)
    with_image = torch.stack([wrong.argmax(dim=0)[text], text], 1)[~related.all(dim=0)[text]]
    with_caption = torch.stack([image, wrong.argmax(dim=1)[image]], 1)[~related.all(dim=1)[image]]
    found = [torch.cat([torch.stack([image, text], 1), with_image, with_caption])]
    for table, order in ((scores, (0, 1)), (scores.T, (1, 0))):
        column = table.topk(min(candidates, table.shape[1]), dim=1).indices
        row = torch.arange(len(table))[:, None].expand_as(column)
        found.append(torch.stack([row.flatten(), column.flatten()], 1)[:, order])
    return found


def _matching(logits: Tensor, pairs: int) -> dict[str, float]:
    """Loss and accuracy of pairs, so many, and of the likeliest wrong ones behind them."""
    yes = torch.arange(len(logits)) < pairs
    right = (logits.argmax(dim=1) == yes.long()).float()
    kinds = [right[kind].mean() for kind in (yes, ~yes) if kind.any()]
    return {"itm": float(F.cross_entropy(logits, yes.long())), "itm_accuracy": float(torch.stack(kinds).mean())}


def _reranked(scores: Tensor, asked: Sequence[Tensor], answered: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Scores [I K] of images, and [K I] of captions, of the first candidates; the others come last."""
    found = []
    for questions, logits in zip(asked[1:], answered[1:], strict=True):
        after = torch.full(scores.shape, -torch.inf)
        after[questions[:, 0], questions[:, 1]] = logits[:, 1] + scores[questions[:, 0], questions[:, 1]]
        found.append(after)
    return found[0], found[1].T


class _Reading:
    """A stage that looks at every image once, its share of them in each process, and answers all about it."""

    def __init__(self, stage: FirstStage, seen: Seen, batch: int) -> None:
        self.stage, self.seen, self.batch = stage, seen, batch
        self.device = stage.temperature.device

    def __call__(
        self, read: Read, asked: Sequence[Tensor], shown: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], list[float]]:
        """For each list of images and captions [M 2] in `asked` ITM's logits of no and yes [M 2], and for each in
        `shown` the loss of a token of these captions."""
        different, place = torch.cat([*asked, torch.empty(0, 2, dtype=torch.int64)]).unique(dim=0, return_inverse=True)
        logits = torch.zeros(len(different), 2, device=self.device)
        told = torch.zeros(len(shown), 2, device=self.device)
        rank, world = (dist.get_rank(), dist.get_world_size()) if _several() else (0, 1)
        mine = self.seen.image[rank::world] if asked or shown else self.seen.image[:0]
        for numbers, features in read(mine) if len(mine) else ():
            block, looked = torch.searchsorted(self.seen.image, numbers.cpu()), self.stage.norm(features.float())
            for questions, at, pair in self._about(block, different):
                logits[questions.to(self.device)] = self.stage.matched(looked[at], *self._words(pair)).float()
            past = self.stage.qformer(looked)[1] if shown else []
            for number, pairs in enumerate(shown):
                for _, at, pair in self._about(block, pairs):
                    told[number] += self._written([(keys[at], values[at]) for keys, values in past], pair)
        logits, told = _summed(logits).cpu(), _summed(told).cpu()
        return logits[place].split([len(part) for part in asked]), [float(loss / tokens) for loss, tokens in told]

    def _about(self, block: Tensor, pairs: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Batches of the pairs with an image of the block: which they are, where in the block, their captions."""
        where = torch.full((len(self.seen.image),), -1).scatter(0, block, torch.arange(len(block)))[pairs[:, 0]]
        for some in (where >= 0).nonzero()[:, 0].split(self.batch):
            if len(some):
                yield some, where[some].to(self.device), pairs[some, 1]

    def _written(self, past: Sequence[tuple[Tensor, Tensor]], text: Tensor) -> Tensor:
        """The summed loss of all tokens of captions, and how many there are."""
        logits, labels = self.stage.written(past, *self._words(text))
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        return torch.stack([loss, loss.new_tensor(len(labels))])

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
