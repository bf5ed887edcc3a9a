"""Two processes: each compares its pairs with all, and together they learn what the official gathering gives."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from mllm.blip2 import model
from mllm.blip2.losses import contrastive, matching, similarity, weights
from mllm.blip2.model import FirstStage, Pairs
from mllm.blip2.retrieval import Seen, measure
from mllm.qformer import QFormer
from tests.mllm.blip2.stages import SIZES, kept

SHARE = 3  # pairs of each process


def stage() -> FirstStage:
    torch.manual_seed(0)
    return FirstStage(QFormer(4, 20, **SIZES, vocab=31, positions=12), 20, embed=14).eval()


def pairs() -> Pairs:
    """Of both processes; the second's captions are shorter, and pairs 1 and 4 show one image."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 30, (2 * SHARE, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[SHARE:, 5:] = 0
    image = torch.tensor([0, 1, 2, 3, 1, 5])
    features = torch.randn(2 * SHARE, 9, 20, generator=generator)
    return Pairs(features, ids * mask, mask, image, torch.arange(2 * SHARE))


def likeliest(scores, same, generator=None):
    """Instead of a draw, so that both computations have the same negatives."""
    return weights(scores, same).argmax(dim=1)


def official(whole: Pairs) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Losses of each process and the mean gradients, from one graph over all pairs.

    What is compared with is detached in ITC; images that are drawn in ITM are not.
    """
    one = stage()
    seen = one.norm(whole.features)
    queries, past = one.qformer(seen)
    images, texts = one.compared_images(queries), one.compared_texts(whole.text_ids, whole.text_mask)
    same = whole.image[:, None] == whole.image[None]
    losses = []
    for mine in (slice(0, SHARE), slice(SHARE, None)):
        to_texts = similarity(images[mine], texts.detach()) / one.temperature
        to_images = similarity(images.detach(), texts[mine]).T / one.temperature
        itc = (contrastive(to_texts, same[mine], 0.1) + contrastive(to_images, same[mine], 0.1)) / 2
        image, text = likeliest(to_images, same[mine]), likeliest(to_texts, same[mine])
        ids, mask = whole.text_ids, whole.text_mask
        logits = one.matched(
            torch.cat([seen[mine], seen[image], seen[mine]]),
            torch.cat([ids[mine], ids[mine], ids[text]]),
            torch.cat([mask[mine], mask[mine], mask[text]]),
        )
        written, labels = one.written([(k[mine], v[mine]) for k, v in past], ids[mine], mask[mine])
        itg = F.cross_entropy(written, labels, label_smoothing=0.1)
        losses.append({"itc": itc, "itm": matching(logits, same[mine]), "itg": itg})
    sum(sum(terms.values()) for terms in losses).div(2).backward()  # type: ignore[union-attr]
    found = {name: p.grad for name, p in one.named_parameters() if p.grad is not None}
    return [{name: value.item() for name, value in terms.items()} for terms in losses], found


def evaluated() -> Seen:
    whole, one = pairs(), stage()
    with torch.no_grad():
        images = one.compared_images(one.qformer(one.norm(whole.features))[0])
        texts = one.compared_texts(whole.text_ids, whole.text_mask)
    number = torch.arange(2 * SHARE)
    words = (number, whole.text_ids, whole.text_mask, texts)
    return Seen(number, images, *words, torch.stack([number, number], 1))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Losses, gradients and measures of both processes."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(run, (str(folder),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return [torch.load(folder / f"outcome{rank}") for rank in (0, 1)]


def run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    model.negatives = likeliest  # type: ignore[assignment]
    mine = slice(rank * SHARE, (rank + 1) * SHARE)
    own = Pairs(*(field[mine] for field in pairs()))
    longest = int(own.text_mask.sum(dim=1).max())
    own = own._replace(text_ids=own.text_ids[:, :longest], text_mask=own.text_mask[:, :longest])
    one = stage()
    shared = DistributedDataParallel(one)  # under a name of its own, or it is gone before the backward pass
    losses = shared(own)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in one.named_parameters()}
    measured = measure(one, evaluated(), kept(evaluated(), pairs().features, 2), 3, 2).values
    found = {"losses": {name: value.item() for name, value in losses.items()}, "gradients": gradients}
    torch.save(found | {"measured": measured}, Path(folder) / f"outcome{rank}")
    dist.destroy_process_group()


def test_losses_and_gradients_are_those_of_the_official_gathering(outcome):
    losses, gradients = official(pairs())
    for process, wanted in zip(outcome, losses, strict=True):
        assert process["losses"] == pytest.approx(wanted, abs=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                process["gradients"][name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
            )


def test_an_evaluation_that_is_shared_out_says_the_same(outcome):
    alone = measure(stage(), evaluated(), kept(evaluated(), pairs().features, 4), 3, 2).values
    for process in outcome:
        assert process["measured"] == pytest.approx(alone, abs=1e-5)
