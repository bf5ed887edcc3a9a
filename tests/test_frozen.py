"""Frozen weights stored in bfloat16 change no bit under autocast."""

from typing import Any, cast

import pytest
import torch

from tests.zoo import CASES, PAIRS, image, shake, tuned
from vpeft import frozen

OTHERS = [pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS if not CASES[pair[1]].structural]


@pytest.mark.parametrize(("body", "method"), [p for p in PAIRS if CASES[p[1]].structural] + OTHERS)
def test_outputs_and_gradients_are_those_of_autocast_to_the_bit(body, method):
    model = shake(tuned(body, method))
    before = [*_step(model), _evaluated(model)]
    stored = frozen.to_bf16(model)
    for was, now in zip(before, [*_step(model), _evaluated(model)], strict=True):
        assert was is None or torch.equal(was, now)
    assert stored or method in ("full", "fishmask") or body == "open_clip"
    assert all(tensor.dtype != torch.bfloat16 for tensor in model.delta().values())


def _step(model):
    """What a step computes: logits, the gradient of the images, and those of all that is trained."""
    model.train().zero_grad()
    torch.manual_seed(3)
    images = image().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
    logits.float().square().sum().backward()
    return [logits.detach(), images.grad, *(p.grad for _, p in model.trainable())]


def _evaluated(model):
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        return model.eval()(image())


@pytest.mark.parametrize(
    ("body", "method", "kept"),
    [
        ("timm_vit", "lora_qv", []),
        ("timm_vit", "dora", ["qkv"]),  # its norms are those of the weights in single precision
        ("timm_vit", "fishmask", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]),  # adds to entries of the weights
        ("timm_vit", "bitfit", []),
        ("timm_vit", "partial", ["blocks.1.attn.qkv", "blocks.1.attn.proj", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]),
        # torch's fast path for attention in evaluation on a CPU does not see autocast.
        ("open_clip", "adaptformer", ["attn.in_proj", "attn.out_proj"]),
    ],
)
def test_only_weights_that_autocast_alone_reads_are_stored(body, method, kept):
    model = tuned(body, method)
    stored = frozen.to_bf16(model)
    matrices = {n: p for n, p in model.backbone.model.named_parameters() if p.ndim > 1 and "embed" not in n.split(".")}
    single = {name for name, p in matrices.items() if p.dtype == torch.float32}
    tables = {name for name in matrices if "token" in name or name.endswith(("pos_embed", "positional_embedding"))}
    tables |= matrices.keys() & {"proj"}  # CLIP's way into the joint space, of no module
    assert single == {name for name in matrices if any(part in name for part in kept)} | tables
    for name, p in model.named_parameters():
        assert not (p.requires_grad or "norm" in name or "ln_" in name) or p.dtype == torch.float32, name
    assert stored == frozen.count(model) == sum(p.numel() for p in model.parameters() if p.dtype == torch.bfloat16)


def test_what_is_tied_is_stored_once_and_stays_tied():
    model = tuned("timm_vit", "lora_qv")
    one, two = (cast(Any, block.module).mlp for block in model.backbone.blocks)
    two.fc1.weight = one.fc1.weight
    frozen.to_bf16(model)
    assert two.fc1.weight is one.fc1.weight
    assert one.fc1.weight.dtype == torch.bfloat16


def test_such_a_model_is_not_merged():
    model = tuned("timm_vit", "lora_qv")
    frozen.to_bf16(model)
    with pytest.raises(ValueError, match="49,760 of the backbone's numbers are stored in bfloat16"):
        model.merge()


def test_a_map_that_computes_with_its_weight_in_another_way_keeps_it():
    model = tuned("timm_vit", "linear")
    model.backbone.model.blocks[0].mlp.fc1.__class__ = type("Halved", (torch.nn.Linear,), {"forward": _halved})
    frozen.to_bf16(model)
    first, second = (block.mlp.fc1.weight.dtype for block in model.backbone.model.blocks[:2])
    assert (first, second) == (torch.float32, torch.bfloat16)


def _halved(self, x):
    return torch.nn.functional.linear(x, self.weight / 2, self.bias)
