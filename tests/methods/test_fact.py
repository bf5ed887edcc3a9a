"""FacT-TT and FacT-TK equal their dense change of every weight, written out block by block."""

import math

import pytest
import torch
from timm.layers.mlp import SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from tests.zoo import HF, MODELS, TIMM, backbone, image
from vpeft.backbones import Backbone, wrap
from vpeft.methods import build
from vpeft.tuned import Tuned

D, R = 32, 3
ROTARY = {"use_abs_pos_emb": False, "use_rot_pos_emb": True}
# Widths of the MLP that are no multiple of d, gates fused and apart.
UNEVEN = {
    "ratio 2.5": lambda: VisionTransformer(**TIMM, mlp_ratio=2.5),
    "ratio below 1": lambda: VisionTransformer(**TIMM, mlp_ratio=0.75),
    "swiglu packed": lambda: VisionTransformer(**TIMM, mlp_ratio=5.25, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU),
    "swiglu apart": lambda: Eva(**TIMM, mlp_ratio=8 / 3, swiglu_mlp=True, **ROTARY),
    "hf swiglu": lambda: Dinov2Model(Dinov2Config(**HF, use_swiglu_ffn=True)),
}
BODIES = {"timm_vit": MODELS["timm_vit"], "hf_vit": MODELS["hf_vit"], "open_clip": MODELS["open_clip"], **UNEVEN}


def attached(body: Backbone, name: str, **options) -> Tuned:
    torch.manual_seed(3)
    (method,) = build({"name": name, "rank": R, "scale": 0.5, "dropout": 0.0, **options}, body)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.4)
    return Tuned(body, [method], nn.Identity()).eval()


def maps(body: Backbone) -> list[tuple[str, nn.Parameter]]:
    """Role and weight of every map, in the order of the network."""
    return [
        (role, getattr(affine.owner, affine.weight))
        for block in body.blocks
        for role in ("qkv", "proj", "fc1", "fc2")
        for affine, _ in block.find(role)
    ]


def blocks(weight: Tensor) -> tuple[int, int]:
    return math.ceil(weight.shape[0] / D), math.ceil(weight.shape[1] / D)


def cores_tt(method: nn.Module, weights: list[tuple[str, nn.Parameter]]) -> list[Tensor]:
    return [update.core.s for update in method.updates]


def cores_tk(method: nn.Module, weights: list[tuple[str, nn.Parameter]]) -> list[Tensor]:
    """S of every map entry by entry: the official layout, where j is the fastest axis of fc1 and fc2."""
    c, p = method.tensors[str(D)].c, method.tensors[str(D)].p
    cores, at = [], 0
    for role, weight in weights:
        count = max(blocks(weight))
        each = [torch.einsum("acp,p->ac", c, p[:, at + j]) for j in range(count)]
        at += count
        if role == "fc1":
            s = torch.stack([each[j][:, i] for i in range(R) for j in range(count)])
        elif role == "fc2":
            s = torch.stack([each[j][:, i] for i in range(R) for j in range(count)], dim=1)
        else:
            s = torch.cat([core.T for core in each])
        cores.append(s)
    assert at == p.shape[1]
    return cores


def dense(s: Tensor, u: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    gives, takes = blocks(weight)
    rows = [[v @ s[o * R : o * R + R, i * R : i * R + R] @ u for i in range(takes)] for o in range(gives)]
    return 0.5 * torch.cat([torch.cat(row, dim=1) for row in rows])[: weight.shape[0], : weight.shape[1]]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("name", "cores"), [("fact_tt", cores_tt), ("fact_tk", cores_tk)])
def test_outputs_gradients_and_merged_weights_equal_the_dense_change(name, cores, body):
    torch.manual_seed(0)
    tuned = attached(wrap(BODIES[body]()), name)
    torch.manual_seed(0)
    plain = wrap(BODIES[body]()).eval()
    merged = wrap(BODIES[body]())
    method = tuned.methods[0]
    factors = method.factors[str(D)]
    weights = maps(plain)
    with torch.no_grad():
        for (_, w), s in zip(weights, cores(method, weights), strict=True):
            w += dense(s, factors.u, factors.v, w)
    out, wanted = tuned(image()), plain(image())
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    merged.model.load_state_dict(tuned.merge(), strict=True)
    for (_, ours), (_, theirs) in zip(maps(merged), weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    # Gradients of the dense weights, through the dense statement, are those of the factors.
    cotangent = torch.randn_like(out)
    (out * cotangent).sum().backward()
    (wanted * cotangent).sum().backward()
    statement = sum(
        (dense(s, factors.u, factors.v, w) * w.grad).sum()
        for (_, w), s in zip(weights, cores(method, weights), strict=True)
    )
    assert isinstance(statement, Tensor)
    for p, b in zip(method.parameters(), torch.autograd.grad(statement, list(method.parameters())), strict=True):
        assert p.grad is not None
        assert (p.grad - b).abs().max() < 1e-4 * b.abs().max()


@pytest.mark.parametrize("name", ["fact_tt", "fact_tk"])
def test_swin_shares_its_factors_within_a_stage(name):
    tuned = attached(backbone("timm_swin"), name)
    factors = tuned.methods[0].factors
    assert {dim: (f.u.shape, f.v.shape) for dim, f in factors.items()} == {
        "32": ((R, 32), (32, R)),
        "64": ((R, 64), (64, R)),
    }
    used = [update.shared[0] for update in tuned.methods[0].updates]
    assert used == [factors["32"]] * 8 + [factors["64"]] * 8


@pytest.mark.parametrize("name", ["fact_tt", "fact_tk"])
def test_dropout_is_between_the_core_and_v(name):
    update = attached(backbone("timm_vit"), name, dropout=0.5).methods[0].updates[1].train()
    x, y = torch.randn(2, 17, D), torch.randn(2, 17, D)
    torch.manual_seed(5)
    out = update.output(x, y)
    torch.manual_seed(5)
    z = nn.functional.dropout(x @ update.shared[0].u.T @ update.core().T, 0.5)
    torch.testing.assert_close(out, y + 0.5 * z @ update.shared[0].v.T)


@pytest.mark.parametrize("name", ["fact_tt", "fact_tk"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0; at least 1 is needed"),
        ({"scale": 0.0}, "scale is 0.0; a number above 0 is needed"),
        ({"scale": math.nan}, "scale is nan; a number above 0 is needed"),
        ({"dropout": 5.0}, "dropout probability has to be between 0 and 1"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        build({"name": name, **options}, backbone("timm_vit"))
