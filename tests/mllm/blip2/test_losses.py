"""The losses alone: which pairs are compared, and which are drawn as negatives."""

import pytest
import torch
import torch.nn.functional as F

from mllm.blip2.losses import contrastive, matching, negatives, next_tokens, similarity, weights
from mllm.sequence import IGNORED


def test_a_text_is_compared_with_the_query_that_is_most_like_it():
    images, texts = torch.randn(3, 5, 8), torch.randn(4, 8)
    scores = similarity(images, texts)
    for i in range(3):
        for t in range(4):
            torch.testing.assert_close(scores[i, t], max(query @ texts[t] for query in images[i]))


def test_different_pairs_are_told_apart_by_cross_entropy_with_smoothing():
    scores = torch.randn(4, 4)
    reference = F.cross_entropy(scores, torch.arange(4), label_smoothing=0.1)
    torch.testing.assert_close(contrastive(scores, torch.eye(4).bool(), 0.1), reference)


def test_pairs_that_belong_together_share_the_target():
    scores = torch.randn(3, 4)
    same = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]).bool()
    target = torch.tensor([[0.5, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0]]) * 0.9 + 0.1 / 4
    reference = -(scores.log_softmax(dim=1) * target).sum(dim=1).mean()
    torch.testing.assert_close(contrastive(scores, same, 0.1), reference)


def test_the_likelier_a_wrong_pair_the_oftener_it_is_drawn():
    scores = torch.tensor([[9.0, 0.0, 1.0, 2.0], [0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 9.0]])
    same = torch.eye(4).bool()
    same[2, 3] = same[3, 2] = True
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([negatives(scores, same, generator) for _ in range(4000)])
    frequency = torch.stack([(drawn == column).float().mean(dim=0) for column in range(4)], dim=1)
    assert not frequency[same].any()
    torch.testing.assert_close(frequency, weights(scores, same), atol=0.03, rtol=0)
    torch.testing.assert_close(frequency[0, 3] / frequency[0, 2], torch.tensor(torch.e), atol=0.3, rtol=0)


def test_negatives_follow_the_seed():
    scores, same = torch.zeros(64, 64), torch.eye(64).bool()
    first, second, third = (negatives(scores, same, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("same", [torch.ones(1, 1), torch.ones(3, 3)])
def test_a_batch_without_a_negative_is_refused(same):
    with pytest.raises(ValueError, match=rf"A batch of {len(same)} pairs leaves no negative.*Raise data\.batch_size"):
        negatives(torch.zeros(same.shape), same.bool())


def test_a_row_without_a_negative_counts_as_a_pair_alone():
    logits = torch.randn(9, 2)
    same = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 1]]).bool()
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0])
    reference = F.cross_entropy(logits[[0, 1, 2, 4, 5, 7, 8]], labels)
    torch.testing.assert_close(matching(logits, same), reference)


def test_each_token_is_told_the_next_and_nothing_behind_the_last():
    ids, mask = torch.tensor([[5, 6, 7, 8], [5, 9, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    there = [[6, 7, 8, IGNORED], [9, IGNORED, IGNORED, IGNORED]]
    assert next_tokens(ids, mask).tolist() == there
