"""The visual expert: CogVLM's numbers through a language model, its masks and positions."""

import peft
import pytest
import torch

from mllm.connectors.visual_expert import Expert, VisualExpert
from mllm.decoder import Decoder
from mllm.language import text_shape
from mllm.shapes import Layout, TextShape, VisionShape
from tests.golden import golden
from tests.mllm import parity
from tests.mllm.decoders import VISION, attached, batch, language_model, open_up

GLU = {"proj": "linear_proj", "norm": "norm1", "gate": "gate_proj", "up": "dense_h_to_4h", "down": "dense_4h_to_h"}
MLP = {"gate": "gate_proj", "up": "dense_h_to_4h", "down": "dense_4h_to_h"}
TEXT = TextShape(dim=16, layers=4, heads=4, kv_heads=2, head_dim=4, hidden=24, vocab=31)
ENDS = ("boi", "eoi")


def llama(g):
    """The file's language model as transformers has it."""
    options = {"hidden_size": 32, "num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 44, "vocab_size": 30}
    model = language_model(layers=2, rms_norm_eps=1e-5, **options)
    state = {"embed_tokens.weight": g["base/word_embeddings.weight"], "norm.weight": torch.ones(32)}
    for i in range(2):
        base, ours = f"base/layers.{i}", f"layers.{i}"
        qkv = g[f"{base}.attention.query_key_value.weight"].chunk(3)
        state |= {f"{ours}.self_attn.{role}_proj.weight": w for role, w in zip("qkv", qkv, strict=True)}
        state[f"{ours}.self_attn.o_proj.weight"] = g[f"{base}.attention.dense.weight"]
        state |= {f"{ours}.mlp.{role}_proj.weight": g[f"{base}.mlp.{name}.weight"] for role, name in MLP.items()}
        for norm in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            state[f"{ours}.{norm}"] = g[f"{base}.{norm}"]
    model.model.load_state_dict(state)
    return model


def ours(g, part):
    """The file's parameters, or their gradients, under our names."""
    state = {end: g[f"{part}/{end}"][0] for end in ENDS}
    for name, other in GLU.items():
        state |= {
            f"glu.{name}.{kind}": g[f"{part}/linear_proj.{other}.{kind}"]
            for kind in (("weight", "bias") if name == "norm" else ("weight",))
        }
    for i in range(2):
        vision = f"{part}/layers.{i}.vision_"
        qkv = g[f"{vision}query_key_value.weight"].chunk(3)
        state |= {f"layers.{i}.{role}.weight": w for role, w in zip("qkv", qkv, strict=True)}
        state[f"layers.{i}.o.weight"] = g[f"{vision}dense.weight"]
        state |= {f"layers.{i}.{role}.weight": g[f"{vision}{name}.weight"] for role, name in MLP.items()}
    return state


def layout(g):
    image = g["input/image_embed_mask"].bool()
    time = (image & ~image.roll(1, 1)).cumsum(1)
    return Layout(image, time, torch.tensor([0, 1]))


def watched(model):
    outputs = {}

    def keep(name):
        return lambda module, args, out: outputs.update({name: out[0] if isinstance(out, tuple) else out})

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(keep(f"hidden_layer{i}"))
    first = model.model.layers[0]
    first.self_attn.register_forward_hook(keep("attention_out_layer0"))
    first.mlp.register_forward_hook(keep("mlp_out_layer0"))
    return outputs


def test_it_equals_the_official_code():
    g = dict(golden("mllm_visual_expert"))
    g["cotangent/hidden_layer1"] = g.pop("cotangent")
    model = llama(g)
    ids, features = g["input/input_ids"], g["input/image_features"].requires_grad_()
    connector = VisualExpert(VisionShape(12, (2, 2)), text_shape(model))
    text = watched(model)
    model(inputs_embeds=g["output/embeddings"], position_ids=g["input/position_ids"])
    parity.hold_outputs(g, {f"text_path_hidden_layer{i}": text[f"hidden_layer{i}"] for i in range(2)})

    connector.attach(Decoder(model))
    connector.load_state_dict(ours(g, "method"))
    connector.look(features, layout(g))
    image = layout(g).image_mask[..., None]
    x = model.get_input_embeddings()(ids).masked_scatter(image, connector(features))
    parity.hold_outputs(g, {"embeddings": x})
    outputs = watched(model)
    # The official code masks no padding.
    model(inputs_embeds=x, attention_mask=torch.ones_like(ids), position_ids=torch.arange(24).expand(2, -1))
    parity.hold_outputs(g, outputs)
    parity.backward(g, {"hidden_layer1": outputs["hidden_layer1"]})
    found: dict = {name: p.grad for name, p in connector.named_parameters()} | {"input.image_features": features.grad}
    expected = ours(g, "grad") | {"input.image_features": g["grad/input.image_features"]}
    parity.hold_gradients({f"grad/{name}": value for name, value in expected.items()}, found)


def test_masks_and_positions_are_those_of_the_official_code():
    g = golden("mllm_visual_expert")
    connector = VisualExpert(VisionShape(12, (2, 2)), text_shape(llama(g)))
    connector.look(torch.zeros(2, 4, 12), layout(g))
    x, positions = torch.zeros(2, 24, 32), torch.arange(24).expand(2, -1)
    assert torch.equal(connector._seen.get().expert, g["input/vision_expert_mask"].bool())
    assert torch.equal(connector.positions(positions, x, 0), g["input/position_ids"])

    def cut(values):
        return values[1:, :11]

    where = layout(g)
    connector.look(torch.zeros(1, 4, 12), Layout(cut(where.image_mask), cut(where.time), torch.tensor([0])))
    prompt = connector.positions(torch.arange(11)[None], x[1:, :11], 0)
    steps = [connector.positions(torch.tensor([[i]]), x[1:, :1], i) for i in range(11, 14)]
    assert torch.equal(torch.cat([prompt, *steps], dim=1), g["output/generation_position_ids"])
    assert all(connector.rows(x[1:, :1], i) is None for i in range(11, 14))


def test_the_expert_starts_as_the_language_model_and_leaves_it_alone():
    model = language_model("qwen2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    connector = attached("visual_expert", model)
    for expert, layer in zip(connector.layers, model.model.layers, strict=True):
        for role in "qkv":
            theirs = layer.self_attn.get_submodule(f"{role}_proj")
            assert torch.equal(getattr(expert, role).weight, theirs.weight)
            assert torch.equal(getattr(expert, role).bias, theirs.bias)
        assert torch.equal(expert.o.weight, layer.self_attn.o_proj.weight)
        for role in ("gate", "up", "down"):
            assert torch.equal(getattr(expert, role).weight, layer.mlp.get_submodule(f"{role}_proj").weight)
    open_up(connector)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_has_the_activation_of_the_language_model():
    connector = attached("visual_expert", language_model("gemma"))
    x = torch.randn(3, 16)
    torch.testing.assert_close(connector.layers[0].mlp(x), language_model("gemma").model.layers[0].mlp(x))


def test_patches_stand_between_boi_and_eoi_without_prefix_tokens():
    connector = VisualExpert(VISION, TEXT)
    open_up(connector)
    features = torch.randn(2, 5, 6)
    out = connector(features)
    assert out.shape == (2, 6, 16) == (2, connector.tokens, 16)
    assert torch.equal(out[:, 0], connector.boi.expand(2, -1))
    assert torch.equal(out[:, -1], connector.eoi.expand(2, -1))
    torch.testing.assert_close(out[:, 1:-1], connector.glu(features[:, 1:]))


def test_neither_map_computes_the_positions_of_the_other():
    model = language_model()
    connector = attached("visual_expert", model)
    layer, seen = model.model.layers[0], {}
    for name, module in (("theirs", layer.mlp.gate_proj), ("ours", connector.layers[0].gate)):
        module.register_forward_hook(lambda module, args, out, name=name: seen.update({name: len(out)}))
    model(**batch(connector, [[5, "a", 6, 7], [8, 9]]).inputs(model, connector))
    assert seen == {"ours": 5, "theirs": 2 * 9 - 5}


def test_lora_in_the_language_model_acts_on_text_and_is_not_copied():
    config = peft.LoraConfig(target_modules=["v_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(language_model(), config)
    connector = attached("visual_expert", model)
    alone = attached("visual_expert", language_model()).state_dict()
    assert all(torch.equal(value, alone[name]) for name, value in connector.state_dict().items())
    seen = []
    for name, module in model.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    model(**batch(connector, [[5, "a", 6, 7], [8, 9]]).inputs(model, connector))
    assert seen == [2 * 9 - 5] * 6


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_it_has_the_counts_of_cogvlm():
    text = TextShape(dim=4096, layers=32, heads=32, kv_heads=32, head_dim=128, hidden=11008, vocab=32000)
    with torch.device("meta"):
        module = VisualExpert(VisionShape(1792, (35, 35)), text)
    assert count(module.layers) == 6_476_005_376
    assert count(module) - count(module.layers) == 142_622_720
    assert module.tokens == 1225 + 2


@pytest.mark.parametrize(("dv", "d", "heads", "shared"), [(6, 16, 4, 2), (12, 20, 2, 1), (8, 8, 2, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_formula_of_the_docstring_counts_its_parameters(dv, d, heads, shared, bias):
    text = TextShape(dim=d, layers=3, heads=heads, kv_heads=shared, head_dim=5, hidden=24, vocab=31)
    a, g, f = heads * 5, shared * 5, 24
    layer = 2 * d * a + 2 * d * g + 3 * d * f + bias * (a + 2 * g)
    glu = dv * d + 2 * d + 3 * d * f + 2 * d
    assert count(VisualExpert(VisionShape(dv, (2, 2)), text, qkv_bias=bias)) == 3 * layer + glu


def test_what_cannot_be_copied_is_refused():
    with pytest.raises(ValueError, match=r"'q' of the language model has a bias. qkv_bias says whether"):
        attached("visual_expert", language_model("qwen2"), qkv_bias=False)
    with pytest.raises(ValueError, match=r"'q' of the language model has no bias"):
        attached("visual_expert", language_model(), qkv_bias=True)
    model = language_model()
    packed = model.model.layers[0].self_attn.k_proj
    packed.weight = torch.nn.Parameter(torch.zeros(64, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"those of 'k' are stored as torch.uint8 \(64, 1\). Load the model unquantised"
    ):
        attached("visual_expert", model)


def test_images_that_take_other_positions_than_they_should_are_refused():
    connector = VisualExpert(VISION, TEXT)
    b = batch(connector, [[5, "a", 6]])
    b.layout.image_mask[0, 2] = False
    with pytest.raises(ValueError, match="5 positions are of images; 1 images take 6 each"):
        connector.look(b.features, b.layout)


def test_an_expert_computes_what_the_formula_says():
    expert = Expert(TEXT, qkv_bias=False)
    x = torch.randn(3, 16)
    gate, up, down = (getattr(expert, name).weight for name in ("gate", "up", "down"))
    gated = x @ gate.T
    torch.testing.assert_close(expert.mlp(x), (gated * gated.sigmoid() * (x @ up.T)) @ down.T)
