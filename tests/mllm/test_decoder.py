"""Each place of a language model that a connector may touch, held by the smallest thing that needs it."""

import copy
import pickle
from dataclasses import dataclass, field

import peft
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from mllm.decoder import FAMILIES as KNOWN
from mllm.decoder import Decoder
from mllm.language import text_shape
from mllm.window import Rows
from tests.mllm.decoders import FAMILIES, ROTARY, language_model

IDS = torch.tensor([[5, 6, 7, 8], [9, 3, 4, 11]])


@dataclass
class Doubled:
    """Twice the tokens, and how many columns came before them."""

    calls: list = field(default_factory=list)

    def __call__(self, x, first):
        self.calls.append((first, x.shape[1]))
        return 2 * x


@dataclass
class Zeros:
    """Position 1 of every sequence takes a path that gives zeros."""

    size: int
    seen: list = field(default_factory=list)

    def rows(self, x, first):
        go = torch.zeros(x.shape[:2], dtype=torch.bool)
        go[:, 1] = True
        return Rows.of(go)

    def __call__(self, x):
        self.seen.append(x)
        return x.new_zeros(len(x), self.size)


@dataclass
class Stay(Zeros):
    def rows(self, x, first):
        return None


@dataclass
class Nothing:
    """Reads nothing, and keeps what it was asked with."""

    asked: list = field(default_factory=list)

    def __call__(self, q, layer):
        self.asked.append((q, layer))
        return torch.zeros_like(q)


@dataclass
class Shifted:
    by: int

    def __call__(self, positions, x, first):
        assert positions.shape[-1] == x.shape[1]
        return positions + self.by


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_entering_a_layer_are_edited_before_it(family):
    model = language_model(family)
    decoder = Decoder(model)
    assert len(decoder.layers) == text_shape(model).layers == 3
    seen = []
    decoder.layers[0].module.register_forward_hook(lambda module, args, out: seen.append(out))
    decoder.layers[1].before(edit := Doubled())
    decoder.layers[1].module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(input_ids=IDS)
    assert torch.equal(seen[1], 2 * seen[0])
    assert edit.calls == [(0, 4)]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_known_how_many_columns_the_cache_holds(family):
    model = language_model(family)
    Decoder(model).layers[2].before(edit := Doubled())
    cache = model(input_ids=IDS, use_cache=True).past_key_values
    model(input_ids=IDS[:, :2], past_key_values=cache)
    model(input_ids=IDS[:, :1], past_key_values=cache)
    model(input_ids=IDS)
    assert edit.calls == [(0, 4), (4, 2), (6, 1), (0, 4)]


@pytest.mark.parametrize("family", ROTARY)
@pytest.mark.parametrize("role", ["q", "k", "v", "o", "gate", "up", "down", "mlp"])
def test_some_positions_take_another_path_and_the_map_never_sees_them(family, role):
    model = language_model(family)
    layer = Decoder(model).layers[1]
    inner = {"q": 16, "k": 8, "v": 8, "gate": 24, "up": 24}.get(role, 16)
    part, seen = layer.part(role), {}
    keep = part.register_forward_hook(lambda module, args, out: seen.update(x=args[0], y=out))
    model(input_ids=IDS)
    keep.remove()
    x, y = seen["x"], seen["y"]
    part.register_forward_pre_hook(lambda module, args: seen.update(given=args[0]))
    layer.reroute(role, path := Zeros(inner))
    rows = part.register_forward_hook(lambda module, args, out: seen.update(out=out))
    if role in ("gate", "up", "down"):  # inside of the MLP
        part(x)
    else:
        model(input_ids=IDS)
    rows.remove()
    assert seen["given"].shape == x.shape
    torch.testing.assert_close(path.seen[0], x[:, 1])
    assert not seen["out"][:, 1].any()
    others = [0, 2, 3]
    torch.testing.assert_close(seen["out"][:, others], y[:, others], atol=1e-5, rtol=1e-5)


def test_a_map_is_called_with_the_rows_that_stay():
    model = language_model()
    layer, seen = Decoder(model).layers[0], []
    layer.reroute("mlp", Zeros(16))
    layer.part("mlp").register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    layer.reroute("q", stay := Stay(16))
    layer.part("q").register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    model(input_ids=IDS)
    assert seen == [(2, 4, 16), (6, 16)]
    assert not stay.seen


@pytest.mark.parametrize("family", ROTARY)
def test_positions_of_the_rotation_are_changed_and_nothing_else_is(family):
    model = language_model(family)
    expected = model(input_ids=IDS, position_ids=torch.arange(4)[None] + 3, output_hidden_states=True).hidden_states[1]
    plain = model(input_ids=IDS).logits
    decoder, seen = Decoder(model), []
    decoder.rotate_by(Shifted(3))
    decoder.layers[0].module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    found = model(input_ids=IDS, output_hidden_states=True)
    torch.testing.assert_close(found.hidden_states[1], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.logits, plain, atol=1e-4, rtol=1e-4)  # rotation knows differences alone
    assert torch.equal(seen[0].expand(2, -1), torch.arange(4).expand(2, -1))


@pytest.mark.parametrize("family", ROTARY)
def test_keys_and_values_of_further_tokens_are_the_layers_own(family):
    model = language_model(family)
    layer = Decoder(model).layers[1]
    x = torch.randn(2, 5, 16)
    k, v = layer.keys_values(x)
    attention = model.model.layers[1].self_attn
    expected = attention.k_proj(x).view(2, 5, 2, 4)
    expected = attention.k_norm(expected) if family == "qwen3" else expected
    torch.testing.assert_close(k, expected.transpose(1, 2))
    torch.testing.assert_close(v, attention.v_proj(x).view(2, 5, 2, 4).transpose(1, 2))
    assert layer.scale == attention.scaling


def test_what_is_added_to_the_heads_passes_the_map_o():
    model = language_model()
    layer, seen = Decoder(model).layers[1], []
    layer.part("o").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(input_ids=IDS)

    @dataclass
    class One:
        def __call__(self, q, layer):
            return torch.ones_like(q) * torch.arange(4)[:, None, None]  # a number for each head

    layer.attend_also(One())
    layer.part("o").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(input_ids=IDS)
    torch.testing.assert_close(seen[-1] - seen[0], torch.arange(4.0).repeat_interleave(4).expand(2, 4, 16))


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_parts_are_found_inside_of_what_peft_wraps(kind):
    maps = ["q_proj", "v_proj", "down_proj"]
    if kind == "ia3":
        config = peft.IA3Config(target_modules=maps, feedforward_modules=["down_proj"])
    else:
        config = peft.LoraConfig(target_modules=maps, use_dora=kind == "dora")
    plain = language_model()
    model = peft.get_peft_model(language_model(), config)
    decoder = Decoder(model)
    assert decoder.body is model.get_base_model().model
    layer = decoder.layers[0]
    assert torch.equal(layer.plain("q").weight, plain.model.layers[0].self_attn.q_proj.weight)
    assert layer.plain("k") is layer.part("k")
    for role, size in (("q", 16), ("v", 8), ("mlp", 16)):
        layer.reroute(role, Zeros(size))
    Decoder(plain).layers[0].reroute("mlp", Zeros(16))
    for role, size in (("q", 16), ("v", 8)):
        Decoder(plain).layers[0].reroute(role, Zeros(size))
    torch.testing.assert_close(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_a_copy_of_the_model_has_its_own_hooks():
    model = language_model()
    Decoder(model).layers[0].before(edit := Doubled())
    expected = model(input_ids=IDS).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        calls = len(edit.calls)
        assert torch.equal(twin(input_ids=IDS).logits, expected)
        assert len(edit.calls) == calls


def test_lora_that_is_unloaded_takes_no_hook_away_unseen():
    model = peft.get_peft_model(language_model(), peft.LoraConfig(target_modules=["o_proj"]))
    Decoder(model).layers[1].attend_also(Nothing())
    model(input_ids=IDS)
    model.merge_adapter()
    model(input_ids=IDS)
    merged = model.merge_and_unload()
    with pytest.raises(RuntimeError, match=r"self_attn.o_proj of a LlamaDecoderLayer was replaced after a connector"):
        merged(input_ids=IDS)


def test_layers_that_are_not_known_are_refused_by_name():
    config = AutoConfig.for_model("bloom", hidden_size=16, n_layer=1, n_head=2, vocab_size=31)
    with pytest.raises(
        ValueError,
        match=r"Layers of type BloomBlock are not known. Choose a language model of one of these: LlamaDecoderLayer",
    ):
        Decoder(AutoModelForCausalLM.from_config(config))
    with pytest.raises(
        ValueError,
        match=r"Linear has no list of decoder layers. Choose a language model of one of these: LlamaDecoderLayer",
    ):
        Decoder(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("call", "role"),
    [
        (lambda decoder: decoder.layers[0].reroute("mlp", Zeros(16)), "mlp"),
        (lambda decoder: decoder.layers[0].attend_also(Nothing()), "attention"),
        (lambda decoder: decoder.layers[0].keys_values(torch.zeros(1, 1, 16)), "k"),
        (lambda decoder: decoder.rotate_by(Shifted(1)), "attention"),
    ],
)
@pytest.mark.parametrize("family", ["opt", "gpt2", "gpt_neox"])
def test_what_is_inside_of_a_layer_is_refused_where_it_is_not_known(call, role, family):
    decoder = Decoder(language_model(family))
    kind = type(decoder.layers[0].module).__name__
    with pytest.raises(
        ValueError, match=f"'{role}' of a {kind} is not known here. It is known of LlamaDecoderLayer, M"
    ):
        call(decoder)


def test_every_family_that_is_known_is_tried_here():
    kinds = {name: type(Decoder(language_model(name, layers=1)).layers[0].module).__name__ for name in FAMILIES}
    assert set(kinds.values()) == set(KNOWN)
    assert {kinds[name] for name in ROTARY} == {name for name, parts in KNOWN.items() if parts}
