"""Samples that share a row do not see each other, and learn what they learn apart."""

import pytest
import torch

from tests.mllm.batches import batch, pictures
from tests.mllm.models import vlm


@pytest.mark.parametrize("method", [{"name": "frozen"}, {"name": "prefix", "tokens": 3}], ids=["frozen", "prefix"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_packed_samples_have_the_loss_and_gradients_they_have_apart(family, method):
    samples, shown = ["ab#cD$", "efGH$", "#i#jK$"], pictures(3)
    apart, packed = (vlm(family=family, method=method).eval() for _ in range(2))
    one = apart.loss(batch(*samples, images=shown))
    other = packed.loss(batch([samples[0], samples[1]], [samples[2]], images=shown))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    one.backward(), other.backward()
    for (name, a), (_, b) in zip(apart.named_parameters(), packed.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_packed_logits_are_those_of_each_sample_under_eager_attention_too():
    model = vlm().eval()
    shown = pictures(2)
    expected = model(batch("ab#cD$", images=shown[:1]))[0]
    for attention in ("sdpa", "eager"):
        model.language.set_attn_implementation(attention)
        row = model(batch(["efGH$", "ab#cD$", "#K"], images=shown))[0]
        torch.testing.assert_close(row[5 : 5 + len(expected)], expected, rtol=1e-5, atol=1e-5)


def test_the_first_word_of_a_packed_sample_is_not_predicted_from_the_one_before():
    model = vlm().eval()
    torch.testing.assert_close(model.loss(batch(["ab$", "CD$"])), model.loss(batch("ab$", "CD$")))


def test_rows_longer_than_a_sliding_window_are_not_packed():
    model = vlm()
    model.language.config.sliding_window = 8
    with pytest.raises(ValueError, match="attends to the last 8 positions, and the rows of this batch have 22"):
        model.loss(batch(["ab#C", "de$"]))
