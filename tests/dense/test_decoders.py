"""A head and its auxiliary ones: losses by name, weighted; predictions are the head's alone."""

import torch

from vpeft.dense.decoders import Decoders
from vpeft.dense.losses import cross_entropy
from vpeft.heads.setr import SETRHead


def test_every_auxiliary_head_adds_its_weighted_loss_and_none_predicts():
    torch.manual_seed(0)
    heads = [SETRHead([4, 6], 3, width=4, convs=1, index=index) for index in (1, 0, 1)]
    both = Decoders(heads[0], heads[1:], 0.4, False, 255).eval()
    maps, mask = [torch.randn(2, 4, 4, 4), torch.randn(2, 6, 4, 4)], torch.randint(0, 3, (2, 16, 16))
    losses = both(maps, mask)
    alone = [cross_entropy(head(maps), mask) for head in heads]
    assert set(losses) == {"head", "auxiliary"}
    torch.testing.assert_close(losses["head"], alone[0])
    torch.testing.assert_close(losses["auxiliary"], 0.4 * (alone[1] + alone[2]))
    assert torch.equal(both(maps), heads[0](maps))
    assert set(Decoders(heads[0], [], 0.4, False, 255)(maps, mask)) == {"head"}
