"""Images stand where they should, every sample is alone in its row, and what learns gets its gradient in any batch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from mllm.connectors import build
from mllm.language import Language, text_shape
from mllm.vision import tower, vision_shape
from mllm.vlm import VLM
from tests.mllm.batches import batch, pictures
from tests.mllm.languages import CONFIGS, language, tokenizer
from tests.mllm.models import CONNECTORS, NAMES, vlm
from tests.zoo import HF
from vpeft.backbones import wrap
from vpeft.backbones.weights import Weights

LORA = {"name": "lora", "r": 2}
by_connector = pytest.mark.parametrize("connector", CONNECTORS, ids=NAMES)


def llava():
    """transformers' own LLaVA, tiny, in float64."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**HF), text_config=CONFIGS["llama"](), image_token_index=39, image_seq_length=16
    )
    return LlavaForConditionalGeneration(config).double().eval()


def ours(theirs):
    """The same weights in this project's model."""
    inner = theirs.model
    seen = tower(wrap(inner.vision_tower, "clip"))
    text = copy.deepcopy(language("llama").model).double()
    text.model.load_state_dict(inner.language_model.state_dict())
    text.lm_head.load_state_dict(theirs.lm_head.state_dict())
    own = Language(text, tokenizer(), "llama", Weights("given", "", ""), text_shape(text), 128)
    connector = build({"name": "mlp"}, vision_shape(seen), own.shape).double()
    projector = inner.multi_modal_projector
    connector.layers[0].load_state_dict(projector.linear_1.state_dict())
    connector.layers[2].load_state_dict(projector.linear_2.state_dict())
    return VLM(seen, connector, own).double().eval()


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_are_those_of_transformers_llava_with_the_same_weights(side):
    theirs = llava()
    model = ours(theirs)
    inputs = batch("ab#cD$", "#e#fghIJ$", "klM$", side=side)
    pixels = (inputs["images"].double() / 255 - model.mean) / model.std
    expected = theirs(
        input_ids=inputs["input_ids"].masked_fill(inputs["image_mask"], 39),
        pixel_values=pixels,
        attention_mask=inputs["attention_mask"],
        position_ids=inputs["position_ids"],
    ).logits
    found = model(inputs)
    real = inputs["attention_mask"].bool()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[real], expected[real].float(), rtol=1e-5, atol=1e-5)


@by_connector
def test_an_image_changes_what_is_behind_it_and_nothing_before(connector):
    model = vlm(connector).eval()
    tokens = model.connector.tokens
    first, second = (batch("ab#cde", tokens=tokens, images=pictures(count)[:1]) for count in (1, 2))
    before, after = (model(one) for one in (first, second))
    if connector["name"] != "zero_init_prompt":  # its images act at every position
        torch.testing.assert_close(before[:, :2], after[:, :2], rtol=0, atol=0)
    assert not torch.allclose(before[:, -3:], after[:, -3:], atol=1e-4)


@by_connector
def test_a_sample_does_not_depend_on_what_else_is_in_the_batch(connector):
    model = vlm(connector).eval()
    tokens = model.connector.tokens
    texts, shown = ["ab#cD$", "efG$", "#h#ijKL$"], pictures(3)
    together = model(batch(*texts, tokens=tokens, images=shown))
    taken = 0
    for row, text in enumerate(texts):
        count = text.count("#")
        alone = model(batch(text, tokens=tokens, images=shown[taken : taken + count]))[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-4, atol=1e-4)
        taken += count


def test_the_loss_is_the_mean_over_trained_words_each_from_the_position_before_it():
    model = vlm().eval()
    inputs = batch("ab#cD$", "#efGHi$")
    logits, labels = model(inputs), inputs["labels"]
    picked = [
        F.cross_entropy(logits[row, at - 1], labels[row, at])
        for row in range(2)
        for at in range(1, labels.shape[1])
        if labels[row, at] != -100
    ]
    assert len(picked) == 5
    torch.testing.assert_close(model.loss(inputs), torch.stack(picked).mean())


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "opt"])
def test_logits_of_some_positions_are_those_of_all(family):
    model = vlm(family=family).eval()
    assert model.plain_head
    inputs = batch("ab#cD$", "#efGHi$")
    quick = model.loss(inputs)
    model.plain_head = False
    torch.testing.assert_close(model.loss(inputs), quick)


def test_a_family_that_bounds_its_logits_is_noticed():
    model = vlm(family="gemma2").eval()
    assert not model.plain_head
    inputs = batch("ab#cD$")
    logits, labels = model(inputs)[:, :-1], inputs["labels"][:, 1:]
    torch.testing.assert_close(model.loss(inputs), F.cross_entropy(logits[labels != -100], labels[labels != -100]))


@by_connector
@pytest.mark.parametrize("texts", [("abC$", "dE$"), ("abC$", "d#E$")], ids=["text only", "mixed"])
def test_every_process_has_the_same_gradients_to_wait_for(connector, texts):
    """DDP hangs or fails where a parameter has no gradient in one process and has one in another."""
    model = vlm(connector, LORA, adapted={"name": "lora", "rank": 2})
    model.loss(batch(*texts, tokens=model.connector.tokens)).backward()
    named = [entry for part in model.components().values() for entry in part]
    assert not [name for name, parameter in named if parameter.grad is None]
    assert any(p.grad.any() for name, p in named if name.startswith("language."))
    if texts[1] == "dE$":
        assert not any(p.grad.any() for name, p in named if name.startswith("vision."))
    else:
        assert any(p.grad.any() for name, p in named if name.startswith("connector."))


@by_connector
def test_text_alone_is_answered_as_by_the_language_model(connector):
    model = vlm(connector).eval()
    if connector["name"] == "zero_init_prompt":  # its prompts act on text too
        for prompts in model.connector.layers:
            prompts.gate.data.zero_()
    if connector["name"] == "gated_xattn":  # as its MLPs do
        for block in model.connector.blocks:
            block.mlp_gate.data.zero_()
    inputs = batch("abC$", "dE$", tokens=model.connector.tokens)
    plain = language("llama").model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(inputs)[real], plain[real], rtol=1e-5, atol=1e-5)


def test_features_of_earlier_stand_for_images():
    model = vlm().eval()
    inputs = batch("ab#cD$", "#e#fG$")
    features = model.see(inputs["images"])
    expected = model.loss(inputs)
    del inputs["images"]
    torch.testing.assert_close(model.loss({**inputs, "features": features}), expected, rtol=0, atol=0)
    text = batch("abC$")
    blank = model.loss(text)
    del text["images"]
    torch.testing.assert_close(model.loss({**text, "features": features[:0]}), blank, rtol=0, atol=0)


def test_a_batch_that_trains_nothing_has_the_loss_zero():
    model = vlm()
    loss = model.loss(batch("ab#cd"))
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None for p in model.connector.parameters())


def test_other_places_than_the_images_need_are_refused():
    with pytest.raises(ValueError, match="The batch has 9 image positions for 1 images of 16 tokens"):
        vlm()(batch("ab#c", tokens=9))


@pytest.mark.parametrize(
    ("connector", "method"),
    [
        ("mlp", LORA),
        ("mlp", {"name": "frozen"}),
        ("mlp", {"name": "full"}),
        ("gated_xattn", LORA),
        ("zero_init_prompt", LORA),
        ("visual_expert", LORA),
    ],
    ids=str,
)
def test_recomputing_layers_changes_nothing(connector, method):
    entry = CONNECTORS[NAMES.index(connector)]
    kept, recomputed = (vlm(entry, method, checkpointing=c, adapted={"name": "bitfit"}) for c in (False, True))
    inputs = batch("ab#cD$", "eF$", tokens=kept.connector.tokens)
    kept.loss(inputs).backward()
    calls = []
    recomputed.language.model.layers[1].self_attn.register_forward_hook(lambda *_: calls.append(1))
    recomputed.loss(inputs).backward()
    assert len(calls) == 2, "once forward and once more in the backward pass"
    for (name, a), (_, b) in zip(kept.named_parameters(), recomputed.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)


def test_recomputing_with_a_prefix_is_refused():
    with pytest.raises(ValueError, match="checkpointing recomputes layers without the cache that a prefix stands in"):
        vlm(method={"name": "prefix", "tokens": 2}, checkpointing=True)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_prefix_is_what_peft_computes(family):
    from peft import PrefixTuningConfig, get_peft_model

    model = vlm(family=family, method={"name": "prefix", "tokens": 3}).eval()
    theirs = get_peft_model(language(family).model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    theirs.prompt_encoder["default"].load_state_dict(model.prefix.encoder.state_dict())
    inputs = batch("abcD$", "eF$")
    expected = theirs.eval()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(inputs)[real], expected[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    [LORA, {"name": "bitfit", "create": True, "norms": True}, {"name": "full"}, {"name": "prefix", "tokens": 2}],
    ids=["lora", "bitfit", "full", "prefix"],
)
def test_bfloat16_weights_train_float32_parameters(method):
    model = vlm(method=method, half=True)
    inputs = batch("ab#cD$", "#eF$")
    exact = vlm(method=method).loss(inputs)
    loss = model.loss(inputs)
    loss.backward()
    assert loss.dtype == model(inputs).dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)
    for named in model.components().values():
        for name, parameter in named:
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32, name


def test_an_autocast_around_it_stays_on():
    model = vlm().eval()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(batch("ab#c"))
    assert not torch.equal(mixed, model(batch("ab#c")))


def test_what_is_trained_where_is_told_by_component():
    model = vlm({"name": "linear"}, {"name": "full"}, "llama_tied", adapted={"name": "lora", "rank": 2})
    parts = {name: {one for one, _ in named} for name, named in model.components().items()}
    assert parts["vision"] == {name for name, _ in model.named_parameters() if name.startswith("vision.methods.")}
    assert parts["connector"] == {"connector.proj.weight", "connector.proj.bias"}
    assert parts["embeddings"] == {"language.model.embed_tokens.weight"}
    assert all(name.startswith("language.model.") for name in parts["language"])
    assert sum(map(len, parts.values())) == sum(p.requires_grad for p in model.parameters())
    totals = model.totals()
    assert totals["embeddings"] == 40 * 32
    assert totals["connector"] == 32 * 32 + 32
    assert sum(totals.values()) == sum(p.numel() for p in model.parameters())
    model.connector.requires_grad_(False)
    assert model.components()["connector"] == []


def test_a_prefix_counts_as_the_language_models():
    model = vlm(method={"name": "prefix", "tokens": 2})
    assert [name for name, _ in model.components()["language"]] == ["prefix.encoder.embedding.weight"]


def test_methods_land_on_these_modules_in_every_component():
    model = vlm(
        {"name": "mlp"},
        {"name": "lora", "r": 2, "targets": ["q"]},
        adapted={"name": "lora", "rank": 2, "targets": ["qkv"]},
    )
    assert model.placement() == {
        "vision": ["methods.0.down.0", "methods.0.updates.0.up"],
        "connector": ["layers.0", "layers.2"],
        "language": ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"],
    }


@by_connector
def test_a_copy_computes_the_same_and_is_independent(connector):
    model = vlm(connector, LORA).eval()
    inputs = batch("ab#cD$", "#e#F$", tokens=model.connector.tokens)
    expected = model(inputs)
    twin = copy.deepcopy(model)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(twin(inputs), expected, rtol=0, atol=0)
