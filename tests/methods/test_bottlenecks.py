"""Bottleneck adapters: every position of one block as in the official code, and what they start as."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.golden import golden
from tests.zoo import backbone, image, shake
from vpeft.backbones import wrap
from vpeft.heads import LinearHead
from vpeft.methods import build
from vpeft.tuned import Tuned

STREAM = {"name": "pfeiffer", "activation": "gelu", "dropout": 0.0, "reads": "stream"}
# position of the official code -> our method there
POSITIONS = {
    "pre": {"name": "adapter_plus", "position": "pre"},
    "post": {"name": "adapter_plus"},
    "pfeiffer": STREAM,
    "pfeiffer_norm": {**STREAM, "norm": True},
    "intermediate": {**STREAM, "reads": "branch"},
    "parallel": {"name": "parallel", "bottleneck": 8, "scale": 0.5, "pre_norm": False, "activation": "gelu"},
    "houlsby": {"name": "houlsby"},
}


def one_block(g: dict[str, Tensor]):
    """The block of the file in a ViT of ten tokens."""
    model = VisionTransformer(img_size=48, patch_size=16, embed_dim=32, depth=1, num_heads=4, num_classes=0)
    model.blocks[0].load_state_dict({k.removeprefix("base/"): v for k, v in g.items() if k.startswith("base/")})
    return wrap(model)


def official_name(ours: str) -> str:
    """`mlp.0.bottleneck.down.weight` -> `adapter.down.weight`"""
    place, _, *_, part, kind = ours.split(".")
    return f"{'adapter_attn' if place == 'attn' else 'adapter'}.{part}.{kind}"


def test_all_six_positions_of_a_block_equal_the_official_code():
    g = golden("blk_adapter_positions")
    x = g["input/x"].clone().requires_grad_()
    found: dict[str, Tensor] = {}
    for position, spec in POSITIONS.items():
        body = one_block(g)
        (method,) = build(spec, body)
        # The file has a fixed scale of 0.5; where a method has none it is part of `up`, exactly.
        own = position in ("pre", "post", "parallel")
        factor = {name: 0.5 if ".up." in name and not own else 1.0 for name, _ in method.named_parameters()}
        for name, parameter in method.named_parameters():
            scale = name.endswith(".scale")
            parameter.data = torch.full((32,), 0.5) if scale else factor[name] * g[f"method/{official_name(name)}"]
        tuned = Tuned(body, [method], nn.Identity()).eval()
        y = tuned.backbone.blocks[0](x)
        torch.testing.assert_close(y, g[f"output/{position}"], atol=1e-5, rtol=1e-5)
        (y * g[f"cotangent/{position}"]).sum().backward()
        for name, parameter in method.named_parameters():
            if not name.endswith(".scale"):
                key = official_name(name)
                found[key] = found.get(key, torch.zeros(())) + factor[name] * parameter.grad
    found["input.x"] = x.grad
    assert {f"grad/{name}" for name in found} == {name for name in g if name.startswith("grad/")}
    for name, gradient in found.items():
        wanted = g[f"grad/{name}"]
        assert (gradient - wanted).abs().max() / wanted.abs().max() < 1e-4, name


@pytest.mark.parametrize("position", POSITIONS)
def test_both_matrices_of_every_position_learn(position):
    body = backbone("timm_vit")
    (method,) = build(POSITIONS[position], body)
    model = Tuned(body, [method], LinearHead(body.dim, 3))
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimiser = torch.optim.SGD(method.parameters(), lr=1.0)
    for step in range(4):
        optimiser.zero_grad()
        model(image(step)).square().sum().backward()
        optimiser.step()
    still = [name for name, p in method.named_parameters() if name.endswith("weight") and torch.equal(p, before[name])]
    assert not still


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer"])
def test_a_start_at_which_nothing_learns_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name}: init_std is 0.0; it must be above 0"):
        build({"name": name, "init_std": 0.0}, backbone("timm_vit"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "houlsby", "bottleneck": 0}, "^houlsby: bottleneck is 0; at least 1"),
        ({"name": "pfeiffer", "bottleneck": 0}, "^pfeiffer: bottleneck is 0; at least 1"),
        ({"name": "adapter_plus", "bottleneck": 0}, "^adapter_plus: bottleneck is 0; at least 1"),
        ({"name": "parallel", "bottleneck": 0}, "^parallel: bottleneck is 0; at least 1"),
        ({"name": "compacter", "bottleneck": 0}, "^compacter: bottleneck is 0; at least 1"),
        ({"name": "adapter_plus", "drop_path": 1.0}, "^adapter_plus: drop_path is 1.0; at least 0 and below 1"),
        ({"name": "houlsby", "drop_path": -0.1}, "^houlsby: drop_path is -0.1; at least 0 and below 1"),
        ({"name": "parallel", "scale": 0.0}, "^parallel: scale is 0.0; anything but 0"),
        ({"name": "adaptformer", "scale": 0.0}, "^adaptformer: scale is 0.0; anything but 0"),
        ({"name": "pfeiffer", "reads": "norm"}, "method pfeiffer: reads is 'norm', which is not"),
        ({"name": "pfeiffer", "activation": "swish"}, "method pfeiffer: activation is 'swish', which is not"),
        ({"name": "pfeiffer", "dropout": 2.0}, "^pfeiffer: dropout probability has to be between 0 and 1"),
        ({"name": "compacter", "products": 0}, "^compacter: products is 0 and rank 1; at least 1"),
        ({"name": "compacter", "rank": 0}, "^compacter: products is 4 and rank 0; at least 1"),
        ({"name": "compacter", "bottleneck": 10}, "^compacter: products is 4, which does not divide 10"),
        ({"name": "compacter", "bottleneck": 6, "products": 3}, "^compacter: products is 3, which does not divide 32"),
    ],
)
def test_a_wrong_option_is_refused_with_the_reason(spec, message):
    with pytest.raises(ValueError, match=message):
        build(spec, backbone("timm_vit"))


@pytest.mark.parametrize("name", ["houlsby", "adapter_plus"])
def test_drop_path_leaves_out_the_adapter_for_whole_images_while_training_only(name):
    body = backbone("timm_vit")
    model = Tuned(body, build({"name": name, "drop_path": 0.999}, body), nn.Identity())
    shake(model)
    with torch.no_grad():
        plain = backbone("timm_vit")(image())
        torch.manual_seed(0)
        torch.testing.assert_close(model.train()(image()), plain)
        assert not torch.allclose(model.eval()(image()), plain, atol=1e-3)


def test_parallel_that_reads_the_stream_is_adaptformer():
    options = {"bottleneck": 8, "scale": 0.1, "dropout": 0.1}
    ours, theirs = backbone("timm_swin"), backbone("timm_swin")
    (parallel,) = build({"name": "parallel", "pre_norm": False, **options}, ours)
    (adaptformer,) = build({"name": "adaptformer", **options}, theirs)
    one, other = (Tuned(b, [m], nn.Identity()).eval() for b, m in ((ours, parallel), (theirs, adaptformer)))
    shake(one)
    for a, b in zip(parallel.parameters(), adaptformer.parameters(), strict=True):
        b.data = a.data
    with torch.no_grad():
        torch.testing.assert_close(one(image()), other(image()))


def test_houlsby_with_the_norms_of_the_original_is_a_list():
    body = backbone("timm_vit")
    both = Tuned(body, build([{"name": "houlsby"}, {"name": "layernorm"}], body), nn.Identity())
    adapters = sum(p.numel() for p in both.methods[0].parameters())
    assert sum(p.numel() for _, p in both.trainable()) == adapters + 2 * 32 * (2 * 2 + 1)
