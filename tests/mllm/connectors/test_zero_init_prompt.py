"""Zero-initialised prompts: LLaMA-Adapter's numbers through a language model, and what the image does."""

import pytest
import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mllm.connectors.zero_init_prompt import ZeroInitPrompt
from mllm.decoder import Decoder
from mllm.language import text_shape
from mllm.shapes import Layout, TextShape, VisionShape
from tests.golden import golden
from tests.mllm import parity
from tests.mllm.decoders import ROTARY, VISION, attached, batch, language_model, open_up

MAPS = {"wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj", "wo": "self_attn.o_proj"}
MLP = {"w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj"}
TEXT = TextShape(dim=16, layers=4, heads=4, kv_heads=2, head_dim=4, hidden=24, vocab=31)
NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def half_split(weight):
    """Rows for pairs (i, i + d/2) of a head of 8, from rows for pairs (2 i, 2 i + 1)."""
    return weight.view(4, 4, 2, 32).transpose(1, 2).reshape(32, 32)


def llama(g):
    """The file's language model as transformers has it."""
    options = {"hidden_size": 32, "num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 88, "vocab_size": 23}
    model = language_model(layers=3, rms_norm_eps=1e-5, **options)
    state = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
    for i in range(3):
        state |= {f"model.layers.{i}.{ours}": f"layers.{i}.attention.{name}" for name, ours in MAPS.items()}
        state |= {f"model.layers.{i}.{ours}": f"layers.{i}.feed_forward.{name}" for name, ours in MLP.items()}
        state |= {f"model.layers.{i}.{ours}": f"layers.{i}.{name}" for name, ours in NORMS.items()}
    weights = {f"{ours}.weight": g[f"base/{name}.weight"] for ours, name in state.items()}
    turned = {name: half_split(w) for name, w in weights.items() if name.endswith(("q_proj.weight", "k_proj.weight"))}
    model.load_state_dict(weights | turned)
    return model


def test_it_equals_the_official_code():
    g = golden("mllm_llama_adapter_v1")
    model = llama(g)
    connector = ZeroInitPrompt(VISION, text_shape(model), prompts=5, layers=2, depth=0, dim=8, heads=2)
    for parameter in connector.out_norm.parameters():
        parameter.data.zero_()  # the file has no image
    rows = g["method/adapter_query"].view(2, 5, 32)
    for i, layer in enumerate(connector.layers):
        layer.rows.data.copy_(rows[i])
        layer.gate.data.copy_(g[f"method/layers.{i + 1}.attention.gate"].flatten())
    connector.attach(Decoder(model))
    outputs = {}

    def keep(name):
        return lambda module, args, out: outputs.update({name: out[0] if isinstance(out, tuple) else out})

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(keep(f"hidden_layer{i}"))
        layer.self_attn.register_forward_hook(keep(f"attn_out_layer{i}"))
        layer.input_layernorm.register_forward_hook(keep(f"attn_in_layer{i}"))
    ids, nothing = g["input/examples"], torch.zeros(2, 9, dtype=torch.long)
    connector.look(torch.randn(2, 5, 6), Layout(nothing.bool(), nothing, torch.tensor([0, 1])))
    outputs["logits"] = model(input_ids=ids).logits
    outputs["loss"] = F.cross_entropy(
        outputs["logits"][:, :-1].flatten(0, 1), g["input/labels"][:, 1:].flatten(), ignore_index=0
    )
    parity.hold_outputs(g, outputs)
    parity.backward(g, {name: outputs[name] for name in ("logits", "loss")})
    found = {"adapter_query": torch.cat([layer.rows.grad for layer in connector.layers])}
    for i, layer in enumerate(connector.layers):
        found[f"layers.{i + 1}.attention.gate"] = layer.gate.grad.view(1, 4, 1, 1)
    # The official code makes a gate for layers without prompts, which nothing reads.
    assert not g["grad/layers.0.attention.gate"].any()
    parity.hold_gradients(g, found, others=["layers.0.attention.gate"])


@pytest.mark.parametrize("family", ROTARY)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_is_a_second_softmax_over_the_layers_own_keys_and_values(family, kv_heads, monkeypatch):
    """Written out head by head, with the queries that transformers hands to its attention."""
    seen = {}

    def record(module, query, *args, **options):
        seen.update(query=query)
        return sdpa_attention_forward(module, query, *args, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", record)
    model = language_model(family, num_key_value_heads=kv_heads)
    connector = attached("zero_init_prompt", model, layers=1)
    open_up(connector)
    attention, prompts = model.model.layers[-1].self_attn, connector.layers[0]
    attention.o_proj.register_forward_pre_hook(lambda module, args: seen.update(heads=args[0].view(4, 4, 4)))  # T H c
    b = batch(connector, [[5, 6, "a", 7, 8]])
    inputs = b.inputs(model, connector)
    model(**inputs)
    with_prompts, gate = seen["heads"], prompts.gate.tanh()
    prompts.gate.data.zero_()
    model(**inputs)
    added = with_prompts - seen["heads"]

    rows = prompts.rows + connector.image(b.features)[0]
    k, v = (part(rows).view(3, kv_heads, 4) for part in (attention.k_proj, attention.v_proj))
    if family == "qwen3":
        k = attention.k_norm(k)
    for head in range(4):
        shared = head // (4 // kv_heads)
        weights = (seen["query"][0, head] @ k[:, shared].T * attention.scaling).softmax(dim=-1)
        torch.testing.assert_close(added[:, head], gate[head] * weights @ v[:, shared], atol=1e-5, rtol=1e-4)
    assert added.abs().max() > 0.01


def test_images_of_a_sequence_are_averaged_and_without_one_the_prompts_are_read_alone():
    model = language_model()
    connector = attached("zero_init_prompt", model)
    open_up(connector)
    b = batch(connector, [[5, "a", 6, "b"], [7, 8], [9, "c"]])
    connector.look(b.features, b.layout)
    _, found = connector._seen.get()
    images = connector.image(b.features)
    torch.testing.assert_close(found, torch.stack([images[:2].mean(dim=0), torch.zeros(3, 16), images[2]]))


def test_the_image_takes_no_position_and_the_last_layers_are_read():
    model = language_model(layers=4)
    connector = attached("zero_init_prompt", model)
    assert connector.tokens == 0
    assert connector(torch.randn(3, 5, 6)).shape == (3, 0, 16)
    open_up(connector)
    outputs = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, args, out: outputs.append(out))
    for image in "ab":
        model(**batch(connector, [[5, image, 6]]).inputs(model, connector))
    same = [torch.equal(one, other) for one, other in zip(outputs[:4], outputs[4:], strict=True)]
    assert same == [True, False, False, False]


def test_without_blocks_every_prompt_gets_the_mean_of_the_tokens():
    connector = ZeroInitPrompt(VISION, TEXT, prompts=4, depth=0, dim=8, heads=2)
    features = torch.randn(2, 5, 6)
    image = connector.image(features)
    assert image.shape == (2, 1, 16)
    torch.testing.assert_close(image, connector.image(features.flip(1)))


def test_with_blocks_every_prompt_reads_the_image_by_a_query_of_its_own():
    connector = ZeroInitPrompt(VISION, TEXT, prompts=4, depth=2, dim=8, heads=2)
    features = torch.randn(2, 5, 6)
    image = connector.image(features)
    assert image.shape == (2, 4, 16)
    assert torch.pdist(image[0]).min() > 0.1
    for token in range(5):
        changed = features.clone()
        changed[:, token] += 1
        assert (connector.image(changed) - image).abs().amax(dim=-1).min() > 1e-4


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_it_has_the_counts_of_both_papers():
    text = TextShape(dim=4096, layers=32, heads=32, kv_heads=32, head_dim=128, hidden=11008, vocab=32000)
    vision = VisionShape(768, (16, 16), prefix=1)
    with torch.device("meta"):
        assert count(ZeroInitPrompt(vision, text, layers=30).layers) == 1_229_760
        v2 = ZeroInitPrompt(vision, text)
    assert len(v2.layers) == 31
    assert count(v2) == 61_731_552
    assert count(v2.blocks) == 56_702_976


@pytest.mark.parametrize(("dv", "d", "big"), [(6, 16, 8), (12, 20, 12), (8, 8, 16)])
def test_the_formula_of_the_docstring_counts_its_parameters(dv, d, big):
    text = TextShape(dim=d, layers=4, heads=4, kv_heads=2, head_dim=5, hidden=24, vocab=31)
    image = dv * big + 3 * big + big * d + 3 * d
    for layers, depth in ((1, 0), (2, 1), (3, 2)):
        module = ZeroInitPrompt(VisionShape(dv, (2, 2)), text, prompts=5, layers=layers, depth=depth, dim=big, heads=4)
        blocks = 5 * big + depth * (12 * big * big + 13 * big) if depth else 0
        assert count(module) == layers * (5 * d + 4) + image + blocks


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts": 0}, "prompts is 0; it has to be at least 1"),
        ({"layers": 0}, "layers is 0; the language model has 4, so 1 to that many fit"),
        ({"layers": 5}, "layers is 5; the language model has 4"),
        ({"depth": -1}, "depth is -1; give 0, which reads the mean of the tokens"),
        ({"heads": 5}, "heads is 5, which does not divide dim, 768; give a divisor"),
    ],
)
def test_what_cannot_be_built_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ZeroInitPrompt(VISION, TEXT, **options)
