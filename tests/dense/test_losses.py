"""Cross-entropy over pixels is that of an mmseg head, ignored pixels and all."""

import pytest
import torch
import torch.nn.functional as F

from tests.golden import golden
from vpeft.dense.losses import cross_entropy


@pytest.mark.parametrize(("name", "option"), [("all", False), ("valid", True)])
def test_values_and_gradients_equal_those_of_mmseg(name, option):
    g = golden("mmseg_losses")
    logits = g["loss/logits"].requires_grad_()
    loss = cross_entropy(logits, g["loss/mask"], avg_non_ignore=option)
    loss.backward()
    torch.testing.assert_close(loss, g[f"loss/{name}"], atol=1e-6, rtol=1e-5)
    expected = g[f"loss/{name}_grad"]
    assert (logits.grad - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("name", "option"), [("all", False), ("valid", True)])
def test_a_batch_that_is_all_ignored_gives_zero_and_no_gradient(name, option):
    g = golden("mmseg_losses")
    logits = g["loss/logits"].requires_grad_()
    loss = cross_entropy(logits, torch.full_like(g["loss/mask"], 255), avg_non_ignore=option)
    loss.backward()
    assert loss.item() == g[f"loss/{name}_ignored"].item() == 0
    assert torch.equal(logits.grad, g[f"loss/{name}_ignored_grad"])
    assert not logits.grad.any()


def test_the_mean_over_pixels_that_count_is_torchs():
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    mask[0, :4] = 7
    expected = F.cross_entropy(logits, mask, ignore_index=7)
    torch.testing.assert_close(cross_entropy(logits, mask, avg_non_ignore=True, ignored=7), expected)
    torch.testing.assert_close(cross_entropy(logits, mask, ignored=7), expected * 0.75)
