"""Several models under autocast compute what each computes alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.packed.test_joint import features, images, models, seeded
from vpeft.packed.casts import Autocast

X = torch.randn(3, 4, 6, 8, 8, generator=torch.Generator().manual_seed(0))


def attend(x):
    return F.scaled_dot_product_attention(x, x.double().float(), x.bfloat16())


@pytest.mark.parametrize(
    "part", [nn.Linear(8, 5), nn.Conv2d(6, 4, 2), nn.Conv1d(8, 3, 2), attend], ids=lambda part: str(part)[:9]
)
def test_a_part_gives_the_bits_and_the_type_that_it_gives_alone(part):
    x = X[..., 0] if isinstance(part, nn.Conv1d) else X
    x = x.transpose(2, 3) if isinstance(part, nn.Conv1d) else x
    with torch.autocast("cpu", torch.bfloat16):
        alone = torch.stack([part(one) for one in x])
        with Autocast("cpu"):
            together = torch.vmap(part)(x)
    assert alone.dtype == together.dtype == torch.bfloat16
    torch.testing.assert_close(together, alone, rtol=1e-2, atol=1e-2)


def test_without_autocast_nothing_is_cast():
    layer = nn.Linear(8, 5)
    with Autocast("cpu"):
        assert torch.equal(torch.vmap(layer)(X), layer(X))


@pytest.mark.parametrize(
    ("family", "case"), [("timm_vit", "ssf"), ("timm_registers", "bitfit"), ("timm_swin", "lora_qv")]
)
def test_features_have_the_type_that_they_have_alone(family, case):
    found = models(family, case)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        alone = found[0].backbone(images(0))
        together = features(found, [images(n) for n in range(3)], [seeded(n) for n in range(3)])
    assert together.dtype == alone.dtype
    torch.testing.assert_close(together[0], alone, rtol=5e-2, atol=5e-2)  # bf16 has 8 bits
