"""The Q-Former as a connector: what it adds to the transformer, instructions, and queries that stay different."""

import pytest
import torch
import torch.nn.functional as F

from mllm.connectors import Instructed
from mllm.connectors.qformer import QFormerConnector
from tests.mllm.diversity import apart
from tests.mllm.shapes import shapes

SIZES = {"tokens": 4, "dim": 24, "depth": 2, "heads": 3, "hidden": 40}


def small(**options) -> QFormerConnector:
    torch.manual_seed(0)
    return QFormerConnector(*shapes(20, 18, grid=(3, 3)), **{**SIZES, **options}).eval()


def test_it_norms_the_features_and_maps_the_queries():
    connector, x = small(), torch.randn(2, 9, 20) * 5 + 3
    queries, _ = connector.qformer(F.layer_norm(x, (20,)))
    assert torch.equal(connector(x), connector.proj(queries))
    assert not isinstance(connector, Instructed)


def test_an_instruction_changes_the_tokens_and_its_padding_does_not():
    connector, x = small(instructed=True), torch.randn(2, 9, 20)
    assert isinstance(connector, Instructed)
    assert connector.reads_text
    ids, mask = torch.tensor([[5, 6, 0], [7, 8, 9]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    tokens = connector(x, ids, mask)
    assert tokens.shape == (2, 4, 18)
    assert not torch.allclose(tokens, connector(x, ids.flip(0), mask.flip(0)), atol=1e-3)
    alone = connector(x[:1], ids[:1, :2], mask[:1, :2])
    torch.testing.assert_close(tokens[:1], alone, atol=1e-5, rtol=1e-5)


def test_its_words_are_the_language_models_or_as_many_as_said():
    assert len(small(instructed=True).qformer.words.weight) == 31
    assert len(small(instructed=True, vocab=50).qformer.words.weight) == 50
    assert small(vocab=50).qformer.words is None


def test_a_missing_instruction_is_refused():
    with pytest.raises(ValueError, match="was given no instruction; give text_ids and text_mask"):
        small(instructed=True)(torch.randn(2, 9, 20))


def test_tokens_start_different_and_stay_so_while_training():
    torch.manual_seed(0)
    connector = small(tokens=6, depth=4).train()
    x, y = torch.randn(8, 9, 20), torch.randn(8, 6, 18)
    optimizer = torch.optim.Adam(connector.parameters(), lr=1e-2)
    assert apart(connector(x)) > 0.05
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(connector(x), y).backward()
        optimizer.step()
    assert apart(connector(x)) > 0.05


def test_equal_queries_would_stay_equal():
    connector = small()
    torch.nn.init.zeros_(connector.qformer.queries)
    assert apart(connector(torch.randn(8, 9, 20))) < 1e-5
