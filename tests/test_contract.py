"""What every method must hold on every backbone."""

import copy
import functools
import itertools
import pickle
import re

import pytest
import torch

from tests.counts import COUNTS, FORMULAS, SHAPES
from tests.zoo import CASES, MODELS, PAIRS, REFUSED, backbone, image, shake, tuned
from vpeft.methods import build

STRUCTURAL = [p for p in PAIRS if CASES[p[1]].structural]


@pytest.mark.parametrize(("body", "method"), REFUSED)
def test_impossible_combinations_are_refused_with_the_reason(body, method):
    with pytest.raises(ValueError, match=REFUSED[body, method]):
        tuned(body, method)


@pytest.mark.parametrize(("body", "method"), [p for p in PAIRS if CASES[p[1]].identity])
def test_a_method_starts_as_the_backbone(body, method):
    model = tuned(body, method)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(image()), backbone(body)(image()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("body", "method"), PAIRS)
def test_a_gradient_reaches_all_that_learns_and_nothing_else(body, method):
    model = tuned(body, method)
    optimiser = torch.optim.SGD([p for _, p in model.trainable()], lr=0.1)
    reached = set()
    for step in range(CASES[method].steps):
        optimiser.zero_grad()
        model(image(step)).square().sum().backward()
        reached |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimiser.step()
    # The bias of k shifts every score of a query alike, which softmax does not see.
    unseen = {n for n, _ in model.trainable() if n.endswith("k_proj.bias") or re.search(CASES[method].unseen, n)}
    assert {name for name, _ in model.trainable()} - unseen <= reached
    for prompts in (p for name, p in model.trainable() if ".prompts." in name):
        assert all(layer.any() for layer in prompts.grad), "some block's prompts learn nothing"
    assert reached <= {name for name, _ in model.trainable()}


@pytest.mark.parametrize(("body", "method"), PAIRS)
def test_the_delta_alone_restores_the_model_to_the_bit(body, method):
    model = shake(tuned(body, method))
    again = tuned(body, method)
    again.load_delta({key: value.clone() for key, value in model.delta().items()})
    with torch.no_grad():
        assert torch.equal(again(image()), model(image()))


@pytest.mark.parametrize(("body", "method"), PAIRS)
def test_the_delta_holds_what_learns_and_no_frozen_weight(body, method):
    model = tuned(body, method)
    buffers = {name for name, _ in model.named_buffers() if not name.startswith("backbone.")}
    assert set(model.delta()) == {name for name, _ in model.trainable()} | buffers


@pytest.mark.parametrize(("body", "method"), PAIRS)
def test_keys_of_the_backbone_stay_untouched(body, method):
    plain, model = backbone(body).state_dict(), tuned(body, method)
    moved = set(plain) - set(model.backbone.state_dict())
    # torch reads these tensors and never calls them as modules, so they are parametrized.
    assert moved <= {key for key in plain if body == "open_clip" and CASES[method].merges and ".attn." in key}


@pytest.mark.parametrize(("body", "method"), STRUCTURAL)
def test_a_deepcopy_is_independent(body, method):
    model = shake(tuned(body, method))
    with torch.no_grad():
        before = model(image())
        twin = shake(copy.deepcopy(model), 0.5)
        assert torch.equal(model(image()), before)
        assert not torch.allclose(twin(image()), before, atol=1e-3)


@pytest.mark.parametrize(("body", "method"), [p for p in STRUCTURAL if p[0] != "open_clip"])
def test_a_whole_model_survives_pickle(body, method):
    model = shake(tuned(body, method))
    twin = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(twin(image()), model(image()))


@pytest.mark.parametrize("method", [name for name, case in CASES.items() if case.structural])
@pytest.mark.parametrize("body", ["timm_vit", "timm_dinov3", "timm_swin", "open_clip", "hf_clip", "hf_dinov2"])
def test_compiles_without_graph_breaks(body, method):
    if (body, method) in REFUSED:
        return
    torch._dynamo.reset()
    model = shake(tuned(body, method))
    backend = "aot_eager" if body == "timm_vit" else "eager"  # breaks are Dynamo's; the backward graph takes seconds
    out = torch.compile(model, fullgraph=True, backend=backend)(image())
    torch.testing.assert_close(out, model(image()), rtol=1e-4, atol=1e-4)
    out.sum().backward()


@pytest.mark.parametrize(("body", "method"), STRUCTURAL)
def test_runs_in_bf16_autocast(body, method):
    model = shake(tuned(body, method))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(image())
    torch.testing.assert_close(out.float(), model(image()), rtol=0.1, atol=0.1)
    out.float().sum().backward()


@pytest.mark.parametrize("method", [name for name, case in CASES.items() if case.structural])
@pytest.mark.parametrize("body", ["timm_vit", "timm_dinov3", "open_clip", "hf_dinov2"])
def test_activation_checkpointing_gives_the_same_gradients(body, method):
    from torch.utils.checkpoint import checkpoint

    if (body, method) in REFUSED:
        return

    gradients = []
    for checkpointed in (False, True):
        model = shake(tuned(body, method))
        if checkpointed:
            for block in model.backbone.blocks:
                block.module.forward = functools.partial(checkpoint, block.module.forward, use_reentrant=False)
        model(image()).square().sum().backward()
        gradients.append([p.grad for _, p in model.trainable()])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", MODELS)
@pytest.mark.parametrize("method", [name for name, case in CASES.items() if case.merges])
def test_merging_leaves_a_plain_backbone_with_the_same_outputs(body, method):
    if (body, method) in REFUSED:
        return
    model = shake(tuned(body, method))
    merged = model.merge()
    plain = backbone(body)
    plain.model.load_state_dict(merged, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(image()), model.backbone(image()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [name for name, case in CASES.items() if not case.merges])
def test_what_cannot_be_merged_refuses_by_name(method):
    model = tuned("timm_vit", method)
    with pytest.raises(ValueError, match=f"{type(model.methods[0]).__name__} cannot be merged"):
        model.merge()


@pytest.mark.parametrize("body", ["timm_registers", "timm_swin", "open_clip", "hf_clip"])
def test_methods_stack_in_any_order(body):
    for first, second in itertools.permutations(("vpt_deep", "lora_qv", "adaptformer", "bitfit"), 2):
        if {(body, first), (body, second)} & set(REFUSED):
            continue
        model = shake(tuned(body, first, second), 0.05)
        model(image()).square().sum().backward()
        assert all(p.grad is not None for _, p in model.trainable()), (first, second)


@pytest.mark.parametrize("body", ["timm_vit", "timm_swin"])
def test_the_frozen_backbone_stays_in_eval_mode(body):
    model = tuned(body, "lora_qv").train()
    assert not any(module.training for module in model.backbone.modules())
    assert model.methods.training
    assert model.head.training


def test_drop_path_acts_while_training_only_and_on_whole_images():
    model = tuned("timm_vit", "linear", drop_path=0.9)
    plain = tuned("timm_vit", "linear")
    with torch.no_grad():
        assert torch.equal(model(image()), plain(image()))
        torch.manual_seed(0)
        assert not torch.allclose(model.train()(image()), plain(image()))


def test_a_linear_probe_keeps_no_activation_of_the_backbone():
    model = tuned("timm_vit", "linear")
    assert not model.backbone(image()).requires_grad


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "adaptfomer"}, "no method 'adaptfomer'; did you mean adaptformer"),
        ({"name": "vpt", "promts": 3}, "method vpt has no 'promts'; did you mean 'prompts'"),
        ({"name": "vpt", "prompts": "many"}, "prompts is 'many', which is not a whole number"),
        ({"name": "vpt", "prompts": 0}, "prompts is 0; at least 1"),
        ({"name": "lora", "targets": ["query"]}, "no affine map 'query'"),
        ({"name": "lora", "targets": ["q", "qkv"]}, "name the same map twice"),
        ({"name": "lora", "rank": 0}, "rank is 0"),
        ({"name": "lora", "targets": ["norm1"]}, "target norm1 is a norm"),
        ({"name": "lora", "dropout": 5.0}, "^lora: dropout probability has to be between 0 and 1"),
        ({"name": "adaptformer", "bottleneck": 0}, "bottleneck is 0"),
        ({"name": "vpt", "project": 0}, "project is 0"),
        ({"name": "partial", "blocks": 9}, "has 2 blocks"),
        ({"name": "linear", "rank": 1}, "method linear has no 'rank'; it has no options"),
        ({"name": "bitfit", "position_tables": True}, "^bitfit: position_tables is true, but timm_vit has no relative"),
        ([], "it is written {name: vpt, prompts: 10}"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_reason(spec, message):
    with pytest.raises(ValueError, match=message):
        build(spec, backbone("timm_vit"))


def test_an_adapter_of_other_methods_is_refused():
    model = tuned("timm_vit", "lora_qv")
    with pytest.raises(ValueError, match=r"it lacks .* it holds"):
        model.load_delta(tuned("timm_vit", "adaptformer").delta())
    other = {key: value[:1] for key, value in model.delta().items()}
    with pytest.raises(ValueError, match=r"is \[1, 32\] in the adapter and \[4, 32\] in the model"):
        model.load_delta(other)


def test_the_zoo_covers_every_method():
    from vpeft.methods import METHODS

    assert {case.spec["name"] for case in CASES.values()} == set(METHODS)


def test_two_vpts_are_one_with_the_prompts_of_both():
    from vpeft.heads import LinearHead
    from vpeft.tuned import Tuned

    def model(*specs):
        body = backbone("timm_registers")
        methods = build(list(specs), body)
        torch.manual_seed(1)
        return Tuned(body, methods, LinearHead(body.dim, 3)).eval()

    both = model({"name": "vpt", "prompts": 2}, {"name": "vpt", "prompts": 3})
    one = model({"name": "vpt", "prompts": 5})
    with torch.no_grad():
        one.methods[0].prompts[0].copy_(torch.cat([method.prompts[0] for method in both.methods], dim=1))
        torch.testing.assert_close(both(image()), one(image()))


@pytest.mark.parametrize(("spec", "count"), COUNTS, ids=str)
def test_counts_on_vit_b_16_are_the_published_ones(spec, count):
    import timm

    from vpeft.backbones import wrap
    from vpeft.backbones.weights import Weights
    from vpeft.tuned import Tuned

    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", num_classes=0)
        body = wrap(vit, weights=Weights("random", "meta", ""))
        model = Tuned(body, build(spec, body), torch.nn.Identity())
    assert sum(p.numel() for _, p in model.trainable()) == count


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("spec", "formula"), FORMULAS, ids=lambda entry: str(entry) if isinstance(entry, dict) else "")
def test_counts_follow_the_formula_of_the_docstring(spec, formula, shape):
    from timm.models.vision_transformer import VisionTransformer

    from vpeft.backbones import wrap
    from vpeft.tuned import Tuned

    vit = VisionTransformer(
        img_size=shape.side,
        patch_size=shape.patch,
        embed_dim=shape.dim,
        depth=shape.depth,
        num_heads=2,
        mlp_ratio=shape.hidden / shape.dim,
        num_classes=0,
    )
    body = wrap(vit)
    model = Tuned(body, build(spec, body), torch.nn.Identity())
    assert sum(p.numel() for _, p in model.trainable()) == formula(shape)


def test_every_method_has_a_formula_and_a_count():
    from vpeft.methods import METHODS

    assert {spec["name"] for spec, _ in COUNTS} == set(METHODS)
    assert {spec["name"] for spec, _ in FORMULAS} | {"full", "partial"} == set(METHODS)
