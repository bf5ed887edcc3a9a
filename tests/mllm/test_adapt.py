"""A method of the language side lands where it says, trains that and nothing else, and refuses to land nowhere."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from mllm import adapt
from mllm.language import Language, text_shape
from mllm.placement import placement
from tests.mllm.languages import language, tokenizer
from vpeft.backbones.weights import Weights

LLAMA = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
LLAMA_MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
OPT = ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"]
OPT_NORMS = ["self_attn_layer_norm", "fc1", "fc2", "final_layer_norm"]


def layers(*parts, stem="model.layers"):
    return [f"{stem}.{index}.{part}" for index in range(2) for part in parts]


SNAPSHOTS = [
    ("llama", {"name": "frozen"}, []),
    ("llama", {"name": "lora", "r": 2}, layers(*LLAMA, *LLAMA_MLP)),
    ("llama", {"name": "lora", "r": 2, "targets": ["v", "q"]}, layers("self_attn.q_proj", "self_attn.v_proj")),
    ("llama", {"name": "lora", "r": 2, "targets": r"model\.layers\.1\.mlp\..*"}, layers(*LLAMA_MLP)[3:]),
    ("llama", {"name": "lora", "r": 2, "targets": ["q"], "use_dora": True}, layers("self_attn.q_proj")),
    ("llama", {"name": "ia3"}, layers("self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")),
    ("llama", {"name": "bitfit", "create": True}, layers(LLAMA[0], LLAMA[3], *LLAMA_MLP)),
    (
        "llama",
        {"name": "bitfit", "create": True, "targets": ["o"], "norms": True},
        [*layers("self_attn.o_proj", "input_layernorm", "post_attention_layernorm"), "model.norm"],
    ),
    ("qwen2", {"name": "lora", "r": 2}, layers(*LLAMA, *LLAMA_MLP)),
    ("qwen2", {"name": "bitfit"}, layers(*LLAMA[:3])),
    ("opt", {"name": "lora", "r": 2}, layers(*OPT, "fc1", "fc2", stem="model.decoder.layers")),
    ("opt", {"name": "ia3"}, layers("self_attn.k_proj", "self_attn.v_proj", "fc2", stem="model.decoder.layers")),
    (
        "opt",
        {"name": "bitfit"},
        ["model.decoder.final_layer_norm", *layers(*OPT, *OPT_NORMS, stem="model.decoder.layers")],
    ),
]


@pytest.mark.parametrize(("family", "spec", "names"), SNAPSHOTS)
def test_a_method_lands_on_these_modules_and_no_others(family, spec, names):
    own = language(family)
    adapt.apply(own, spec)
    assert placement(own.model) == names


def test_full_trains_everything_or_all_but_the_words():
    own = language()
    adapt.apply(own, {"name": "full"})
    assert all(p.requires_grad for p in own.model.parameters())
    own = language("llama_tied")
    adapt.apply(own, {"name": "full", "embeddings": False})
    assert {n for n, p in own.model.named_parameters() if not p.requires_grad} == {"model.embed_tokens.weight"}
    own = language()
    adapt.apply(own, {"name": "full", "embeddings": False})
    frozen = {n for n, p in own.model.named_parameters() if not p.requires_grad}
    assert frozen == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "lora", "r": 2},
        {"name": "lora", "r": 2, "use_dora": True},
        {"name": "ia3"},
        {"name": "bitfit", "create": True},
    ],
)
def test_a_method_starts_as_the_model_and_all_of_it_learns(spec):
    ids = torch.arange(3, 13).view(2, 5)
    own = language()
    before = own.model(input_ids=ids).logits
    adapt.apply(own, spec)
    torch.testing.assert_close(own.model(input_ids=ids).logits, before, rtol=1e-5, atol=1e-5)
    learning = {n: p for n, p in own.model.named_parameters() if p.requires_grad}
    for parameter in learning.values():
        parameter.data += 0.1
    own.model(input_ids=ids).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in learning.values())
    assert all(p.grad is None for n, p in own.model.named_parameters() if n not in learning)


def test_what_learns_is_float32_beside_bfloat16():
    for spec in ({"name": "lora", "r": 2}, {"name": "bitfit", "create": True, "norms": True}, {"name": "full"}):
        own = language()
        own.model.bfloat16()
        adapt.apply(own, spec)
        kinds = {p.dtype for p in own.model.parameters() if p.requires_grad}
        assert kinds == {torch.float32}
        assert all(p.dtype == torch.bfloat16 for p in own.model.parameters() if not p.requires_grad)


@pytest.fixture(scope="module")
def seven_b():
    """LLaMA-7B's sizes, without memory."""
    with torch.device("meta"):
        config = LlamaConfig(intermediate_size=11008)
        return lambda: Language(
            (model := AutoModelForCausalLM.from_config(config).requires_grad_(False)),
            tokenizer(),
            "llama-7b",
            Weights("random", "seed 0", ""),
            text_shape(model),
            2048,
        )


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ({"name": "lora", "r": 128}, 319_815_680),
        ({"name": "lora", "r": 16, "targets": ["q", "k", "v", "o"]}, 16_777_216),
        ({"name": "lora", "r": 8, "targets": ["q", "v"]}, 4_194_304),
        ({"name": "ia3"}, 614_400),
        ({"name": "bitfit", "create": True}, 1_097_728),
        ({"name": "bitfit", "create": True, "norms": True}, 1_097_728 + 266_240),
    ],
)
def test_llama_7b_gets_the_published_number_of_parameters(seven_b, spec, count):
    with torch.device("meta"):
        own = seven_b()
        adapt.apply(own, spec)
    assert sum(p.numel() for p in own.model.parameters() if p.requires_grad) == count


def test_a_prefix_on_llama_7b_has_the_published_number_of_parameters(seven_b):
    with torch.device("meta"):
        own = seven_b()
        adapt.apply(own, {"name": "prefix"})
    assert sum(p.numel() for p in own.prefix.parameters() if p.requires_grad) == 5_242_880
    assert not any(p.requires_grad for p in own.model.parameters())


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("project", [None, 8])
def test_a_prefix_is_a_cache_in_front_of_every_layer(family, project):
    own = language(family)
    adapt.apply(own, {"name": "prefix", "tokens": 3, "project": project})
    cache = own.prefix(5)
    assert cache.get_seq_length() == 3
    assert len(cache.layers) == 2
    assert cache.layers[1].keys.shape == (5, own.shape.kv_heads, 3, own.shape.head_dim)


@pytest.mark.parametrize(
    ("family", "spec", "said"),
    [
        ("llama", {"name": "lora", "targets": ["query"]}, "targets names 'query', which is no role"),
        (
            "opt",
            {"name": "lora", "targets": ["q", "gate"]},
            "targets names 'gate', and OPTForCausalLM has no such map; ",
        ),
        (
            "llama",
            {"name": "lora", "targets": "q_proj"},
            "'q_proj' matches no map of LlamaForCausalLM. A whole name is",
        ),
        ("llama", {"name": "lora", "targets": "(q_proj"}, "is no regular expression"),
        ("llama", {"name": "lora", "targets": []}, "there is no map to act on"),
        ("llama", {"name": "lora", "r": 0}, "r is 0; give 1 or more"),
        ("llama", {"name": "prefix", "tokens": 0}, "tokens is 0; give 1 or more"),
        ("llama", {"name": "bitfit"}, "bitfit found no bias in llama: models of its kind have none. Set create"),
        ("llama", {"name": "lora", "rank": 4}, "language_method lora has no 'rank'"),
        ("llama", {"name": "lorra"}, "no language_method 'lorra'; did you mean lora"),
        ("llama", {"name": "lora", "r": "four"}, "r is 'four', which is not a whole number"),
    ],
)
def test_a_wrong_entry_is_refused_with_the_reason(family, spec, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        adapt.apply(language(family), spec)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what a machine without a GPU says")
def test_qlora_without_a_gpu_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"computes on a GPU only, and there is none here\. Use lora"):
        adapt.apply(language(), {"name": "qlora"})


def test_every_option_can_be_written_out():
    written = adapt.resolve({"name": "lora", "r": 4})
    assert written == {"name": "lora", "r": 4, "alpha": 32.0, "dropout": 0.0, "targets": None, "use_dora": False}
    assert adapt.resolve({"name": "frozen"}) == {"name": "frozen"}
