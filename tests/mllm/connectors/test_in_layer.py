"""What connectors that act inside the language model have in common."""

import copy

import peft
import pytest
import torch
from torch import nn

from mllm.connectors import InLayer
from mllm.decoder import Decoder
from mllm.shapes import Layout
from tests.mllm.decoders import FAMILIES, IN_LAYER, ROTARY, attached, batch, language_model, open_up

NAMES = list(IN_LAYER)
ROWS = [[5, "a", 6, 7, "b", 8, 9], [4, 3, "c", 9], [11, 12]]
PLACES = [(name, family) for name in NAMES for family in (FAMILIES if name == "gated_xattn" else ROTARY)]


def opened(name, model, **options):
    connector = attached(name, model, **options)
    open_up(connector)
    return connector


def logits(model, connector, b):
    return model(**b.inputs(model, connector)).logits


@pytest.mark.parametrize(("name", "family"), PLACES)
def test_the_language_model_is_what_it_was_until_something_is_learned(name, family):
    model = language_model(family)
    connector = attached(name, model)
    assert isinstance(connector, InLayer)
    b = batch(connector, ROWS)
    inputs = b.inputs(model, connector)
    found = model(**inputs).logits
    if name == "visual_expert":
        inputs["position_ids"] = b.positions - connector._seen.get().nearer
    expected = language_model(family)(**inputs).logits
    if name == "visual_expert":  # its rows pass other matrix products, which may round otherwise
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(found, expected)
    open_up(connector)
    assert not torch.allclose(logits(model, connector, b), expected, atol=0.01)


@pytest.mark.parametrize("rows", [ROWS, [[5, 6, 7], [8, 9]]], ids=["images", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient_and_with_images_it_is_not_zero(name, rows):
    model = language_model()
    connector = opened(name, model)
    b = batch(connector, rows)
    marks = connector(b.features).sum() * 0  # of the embeddings: a batch without images has none
    out = logits(model, connector, b) * b.attention[..., None]
    (out.square().sum() + marks).backward()
    for key, parameter in connector.named_parameters():
        assert parameter.grad is not None, key
        assert rows is not ROWS or parameter.grad.any(), key
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("rows", [ROWS[:2], ROWS])
@pytest.mark.parametrize("name", NAMES)
def test_generation_with_a_cache_equals_running_everything_again(name, rows):
    model = language_model()
    connector = opened(name, model)
    for row in rows:
        b = batch(connector, [row])
        found = generate(model, connector, b)[0].tolist()
        for step in range(len(found)):
            again = batch(connector, [[*row, *found[:step]]])
            assert int(logits(model, connector, again)[0, -1].argmax()) == found[step]
    assert len({*found}) > 1


def generate(model, connector, b, new=6, **options):
    inputs = b.inputs(model, connector) | {"do_sample": False, "min_new_tokens": new, "max_new_tokens": new}
    return model.generate(**(inputs | options))


@pytest.mark.parametrize("name", NAMES)
def test_sequences_padded_on_the_left_generate_what_they_do_alone(name):
    model = language_model()
    connector = opened(name, model)
    together = generate(model, connector, batch(connector, ROWS, left=True))
    for row, found in zip(ROWS, together, strict=True):
        assert torch.equal(generate(model, connector, batch(connector, [row]))[0], found)


@pytest.mark.parametrize("name", NAMES)
def test_beams_of_a_batch_are_those_of_each_sequence_alone(name):
    model = language_model()
    connector = opened(name, model)
    together = generate(model, connector, batch(connector, ROWS, left=True), num_beams=3)
    for row, found in zip(ROWS, together, strict=True):
        assert torch.equal(generate(model, connector, batch(connector, [row]), num_beams=3)[0], found)
    uncached = generate(model, connector, batch(connector, ROWS, left=True), num_beams=3, use_cache=False)
    assert torch.equal(uncached, together)


@pytest.mark.parametrize("name", NAMES)
def test_a_static_cache_gives_the_same_text(name):
    model = language_model()
    connector = opened(name, model)
    b = batch(connector, ROWS, left=True)
    found = generate(model, connector, b, cache_implementation="static", disable_compile=True)
    assert torch.equal(found, generate(model, connector, b))


@pytest.mark.parametrize("name", NAMES)
def test_padding_on_the_right_changes_nothing(name):
    model = language_model()
    connector = opened(name, model)
    together = logits(model, connector, batch(connector, ROWS))
    for row, found in zip(ROWS, together, strict=True):
        alone = logits(model, connector, batch(connector, [row]))[0]
        torch.testing.assert_close(found[: len(alone)], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_changes_what_follows_and_nothing_before(name):
    model = language_model()
    connector = opened(name, model)
    one, other = (logits(model, connector, batch(connector, [[5, 6, image, 7, 8]]))[0] for image in "ab")
    assert not torch.allclose(one[-1], other[-1], atol=1e-3)
    if name != "zero_init_prompt":  # its prompts are read everywhere
        assert torch.equal(one[:2], other[:2])


@pytest.mark.parametrize("name", NAMES)
def test_layers_may_be_recomputed_in_the_backward_pass(name):
    gradients = []
    for recompute in (False, True):
        model = language_model()
        connector = opened(name, model)
        model.train()
        if recompute:
            model.gradient_checkpointing_enable()
        logits(model, connector, batch(connector, ROWS)).square().sum().backward()
        gradients.append([parameter.grad for parameter in connector.parameters()])
        copy.deepcopy(connector)  # nothing of the graph is left in it
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_wired_to_its_own_connector(name):
    model = language_model()
    whole = nn.ModuleList([model, opened(name, model)])
    b = batch(whole[1], ROWS)
    before = logits(whole[0], whole[1], b)
    twin = copy.deepcopy(whole)
    for parameter in whole[1].parameters():
        parameter.data.zero_()
    assert torch.equal(logits(twin[0], twin[1], b), before)
    with pytest.raises(RuntimeError, match="call look\\(\\) before the language model runs"):
        copy.deepcopy(whole)[0](torch.tensor([[5, 6]]))


@pytest.mark.parametrize("name", NAMES)
def test_lora_of_peft_learns_beside_it(name):
    plain = language_model()
    expected = logits(plain, connector := opened(name, plain), batch(connector, ROWS))
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"])
    model = peft.get_peft_model(language_model(), config)
    connector = opened(name, model)
    b = batch(connector, ROWS)
    assert torch.equal(logits(model, connector, b), expected)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data += 0.3 * torch.randn_like(parameter)
    logits(model, connector, b).square().sum().backward()
    learned = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    assert learned
    assert all(gradient is not None and gradient.any() for gradient in learned.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_virtual_tokens_of_peft_stand_before_the_sequences(name, kind):
    task = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    config = peft.PrefixTuningConfig(**task) if kind == "prefix" else peft.PromptTuningConfig(**task)
    model = peft.get_peft_model(language_model(), config)
    connector = opened(name, model)
    b = batch(connector, ROWS)
    inputs = b.inputs(model, connector)
    del inputs["position_ids"]  # peft counts virtual tokens itself
    found = model(**inputs).logits[:, -b.ids.shape[1] :]
    for row, together in zip(ROWS, found, strict=True):
        inputs = (one := batch(connector, [row])).inputs(model, connector)
        del inputs["position_ids"]
        alone = model(**inputs).logits[0, -one.ids.shape[1] :]
        torch.testing.assert_close(together[: len(alone)], alone, atol=1e-5, rtol=1e-5)
    changed = logits_of_other_image(model, connector, ROWS)[:, -b.ids.shape[1] :]
    before = torch.arange(b.ids.shape[1]) < (2 if name == "visual_expert" else 1)  # a word, and boi
    if name != "zero_init_prompt":
        assert torch.equal(changed[0, before], found[0, before])
    assert (changed[0, ~before] - found[0, ~before]).abs().amax(dim=-1).min() > 0


def logits_of_other_image(model, connector, rows):
    inputs = batch(connector, [["z" if part == "a" else part for part in row] for row in rows]).inputs(model, connector)
    del inputs["position_ids"]
    return model(**inputs).logits


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["autocast", "weights"])
def test_it_runs_in_bfloat16(name, where):
    model = language_model()
    connector = opened(name, model)
    exact = logits(model, connector, batch(connector, ROWS))
    if where == "weights":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "autocast"):
        b = batch(connector, ROWS)
        inputs = b.inputs(model, connector)
        found = model(**inputs).logits
        found.float().square().sum().backward()
    assert (found.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in connector.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_language_model_compiles_without_graph_breaks(name):
    model = language_model(layers=2)
    connector = opened(name, model)
    b = batch(connector, ROWS[:2])
    inputs = b.inputs(model, connector)
    expected = model(**inputs).logits
    found = torch.compile(model, backend="eager", fullgraph=True)(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_refused(name):
    model = language_model()
    with pytest.raises(RuntimeError, match="call look\\(\\) before the language model runs"):
        attached(name, model)(torch.zeros(1, 5, 6)), model(torch.tensor([[5, 6]]))
    with pytest.raises(ValueError, match=r"The connector was built for TextShape.*layers=3.*this language model is"):
        attached(name, language_model()).attach(Decoder(language_model(layers=4)))
    if name != "gated_xattn":
        with pytest.raises(
            ValueError, match=r"of a OPTDecoderLayer is not known here\. It is known of LlamaDecoderLayer"
        ):
            attached(name, language_model("opt"))
    connector = attached(name, model := language_model())
    b = batch(connector, ROWS)
    inputs = b.inputs(model, connector)
    with pytest.raises(ValueError, match="runs 2 sequences, and a connector looked at 3"):
        model(**{key: value[:2] for key, value in inputs.items()})
    with pytest.raises(ValueError, match="2 features of images and a layout of 3"):
        connector.look(b.features[:2], b.layout)


@pytest.mark.parametrize("name", ["zero_init_prompt", "visual_expert"])
def test_maps_that_are_replaced_behind_its_back_are_noticed(name):
    connector = attached(name, model := language_model())
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(RuntimeError, match=r"self_attn.q_proj of a LlamaDecoderLayer was replaced .* Add LoRA before"):
        logits(wrapped, connector, batch(connector, ROWS))


def test_several_samples_share_a_row_only_where_positions_are_all_that_counts():
    assert {name: kind.packable for name, (kind, _) in IN_LAYER.items()} == {
        "gated_xattn": False,
        "zero_init_prompt": False,
        "visual_expert": True,
    }


def test_packed_samples_are_what_they_are_alone():
    model = language_model()
    connector = opened("visual_expert", model)
    rows = ROWS[:2]
    parts = [batch(connector, [row]) for row in rows]
    alone = [logits(model, connector, part) for part in parts]
    ids = torch.cat([part.ids for part in parts], dim=1)
    joined = [torch.cat([getattr(part.layout, key) for part in parts], dim=1) for key in ("image_mask", "time")]
    positions = torch.cat([part.positions for part in parts], dim=1)
    features = torch.cat([part.features for part in parts])
    connector.look(features, Layout(*joined, torch.zeros(len(features), dtype=torch.long)))
    x = model.get_input_embeddings()(ids).masked_scatter(joined[0][..., None], connector(features))
    segments = torch.cat([torch.full_like(part.ids, index) for index, part in enumerate(parts)], dim=1)
    mask = (segments[:, None] == segments[..., None]).tril()[:, None]
    found = model(inputs_embeds=x, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(found, torch.cat(alone, dim=1), atol=1e-5, rtol=1e-5)
