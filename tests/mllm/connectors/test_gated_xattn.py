"""Gated cross-attention: OpenFlamingo's numbers through a language model, and what a position reads."""

import pytest
import torch
from torch import nn

from mllm.connectors.gated_xattn import Block, GatedXAttn
from mllm.decoder import Decoder
from mllm.language import text_shape
from mllm.shapes import Layout, TextShape, VisionShape
from tests.golden import golden
from tests.mllm import parity
from tests.mllm.decoders import VISION, attached, batch, language_model, open_up

PLACES = {
    "attn_gate": "attn_gate",
    "mlp_gate": "ff_gate",
    "norm": "attn.norm",
    "q": "attn.to_q",
    "kv": "attn.to_kv",
    "out": "attn.to_out",
    "mlp": "ff",
}
TEXT = TextShape(dim=16, layers=4, heads=4, kv_heads=2, head_dim=4, hidden=24, vocab=31)


def theirs(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{PLACES[first]}.{rest}".removesuffix(".")


class Given(nn.Module):
    """In place of the resampler: the file's media."""

    def forward(self, media):
        return media[:, :, 0]


def idle_model():
    """A language model of one layer that changes nothing, so that what leaves it is what the block gave."""
    model = language_model(layers=1)
    for part in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
        part.weight.data.zero_()
    model.model.layers[0].register_forward_hook(lambda module, args, out: setattr(model, "hidden", out))
    return model


class Wired:
    """The golden block in a language model."""

    def __init__(self, block: nn.Module | None = None, **options):
        self.model = idle_model()
        self.connector = GatedXAttn(
            VisionShape(12, (2, 2)), text_shape(self.model), latents=4, depth=1, heads=2, head_dim=8, **options
        )
        self.connector.resampler = Given()
        if block is not None:
            self.connector.blocks[0] = block
        self.connector.attach(Decoder(self.model))

    def __call__(self, x, media, locations, more):
        """What x gives, and what more gives with x in the cache."""
        rows = torch.arange(len(x)).repeat_interleave(media.shape[1])
        self.connector.look(media.flatten(0, 1), Layout(locations, locations.cumsum(1), rows))
        cache = self.model(inputs_embeds=x, use_cache=True).past_key_values
        first = self.model.hidden
        self.model(inputs_embeds=more, past_key_values=cache)
        return first, self.model.hidden


def test_it_equals_the_official_code_where_there_is_something_to_read():
    g = golden("mllm_gated_xattn")
    immediate = Wired()
    block = immediate.connector.blocks[0]
    previous = Wired(block, immediate=False)
    parity.load(block, g, theirs)
    x, media = g["input/x"].requires_grad_(), g["input/media"].requires_grad_()
    locations, more = g["input/media_locations"].bool(), g["input/x_new"]
    outputs = dict(zip(("immediate", "cached_immediate"), immediate(x, media, locations, more), strict=True))
    ours = dict(zip(("all_previous", "cached_all_previous"), previous(x, media, locations, more), strict=True))

    k, v = block.keys_values(media.flatten(1, 2))
    uniform = block.out(v.mean(dim=2, keepdim=True).transpose(1, 2).flatten(2))  # where official scores are all masked

    def behind(tokens, read):
        tokens = tokens + block.attn_gate.tanh() * read
        return tokens + block.mlp_gate.tanh() * block.mlp(tokens)

    time = locations.cumsum(1)
    for name, tokens, begun in (("all_previous", x, time > 0), ("cached_all_previous", more, time[:, -1:] > 0)):
        outputs[name] = torch.where(begun[..., None], ours[name], behind(tokens, uniform))
        nothing = behind(tokens, torch.zeros_like(tokens))
        idle = (~begun).expand(tokens.shape[:2])
        torch.testing.assert_close(ours[name][idle], nothing[idle])  # the official code reads all images here
        assert (ours[name] - g[f"output/{name}"])[idle].abs().max() > 0.1
    everything = torch.ones(4, 9, 8, dtype=torch.bool)
    outputs["no_locations"] = block(x, k, v, everything)

    parity.hold_outputs(g, outputs)
    image = torch.arange(1, 3).repeat_interleave(4)
    read = block.attend(x, k, v, image == time[..., None])
    parity.hold_outputs(g, {"attn_only_immediate": read})
    assert not read[time == 0].any()
    read = block.attend(x, k, v, image <= time[..., None])
    torch.testing.assert_close(read[time > 0], g["output/attn_only_all_previous"][time > 0], atol=1e-5, rtol=1e-5)
    parity.backward(g, outputs)
    parity.hold_gradients(g, parity.gradients(block, theirs) | {"input.x": x.grad, "input.media": media.grad})


def test_a_marker_without_an_image_reads_nothing():
    wired = Wired()
    block = wired.connector.blocks[0]
    block.attn_gate.data.fill_(1.0)
    x, media = torch.randn(1, 6, 16), torch.randn(1, 1, 4, 12)
    locations = torch.tensor([[False, True, False, True, False, False]])
    out, more = wired(x, media, locations, torch.randn(1, 2, 16))
    assert torch.equal(out[0, [0, 3, 4, 5]], x[0, [0, 3, 4, 5]])
    assert not torch.allclose(out[0, 1:3], x[0, 1:3], atol=1e-3)
    out, more = wired(x, media.repeat(1, 2, 1, 1), locations, x[:, :2])
    assert not torch.allclose(more, x[:, :2], atol=1e-3)  # as in the official code, if there is one


@pytest.mark.parametrize(
    ("immediate", "read"), [(True, [set(), {"a"}, {"a"}, {"b"}]), (False, [set(), *"a", *"a", "ab"])]
)
def test_a_position_reads_the_last_image_begun_or_all_of_them(immediate, read):
    def out(first, second):
        model = idle_model()
        connector = attached("gated_xattn", model, every=1, immediate=immediate)
        open_up(connector)
        model(**batch(connector, [[5, first, 6, second]]).inputs(model, connector))
        return model.hidden[0]

    plain, first, second = out("a", "b"), out("c", "b"), out("a", "c")
    for position, images in enumerate(read):
        assert torch.equal(plain[position], first[position]) == ("a" not in images)
        assert torch.equal(plain[position], second[position]) == ("b" not in images)


def test_blocks_stand_before_every_nth_layer_counted_from_one():
    seen = []
    model = language_model(layers=5)
    connector = attached("gated_xattn", model, every=2)
    for index, block in enumerate(connector.blocks):
        block.register_forward_pre_hook(lambda module, args, i=index: seen.append(f"block {i}"))
    for index, layer in enumerate(model.model.layers):
        layer.input_layernorm.register_forward_pre_hook(lambda module, args, i=index: seen.append(f"layer {i}"))
    model(**batch(connector, [[5, "a", 6]]).inputs(model, connector))
    assert seen == ["layer 0", "block 0", "layer 1", "layer 2", "block 1", "layer 3", "layer 4"]


def test_an_image_is_one_marker_in_the_sequence_the_same_for_all():
    connector = GatedXAttn(VISION, TEXT, depth=1)
    out = connector(torch.randn(3, 5, 6))
    assert out.shape == (3, connector.tokens, 16)
    assert torch.equal(out[0], connector.marker)
    assert torch.equal(out[0], out[2])


@pytest.mark.parametrize(
    ("dim", "count", "layers", "every"),
    [(2048, 36_708_354, 24, 1), (2560, 56_109_058, 32, 2), (4096, 139_476_994, 32, 4)],
)
def test_blocks_have_the_counts_of_openflamingo(dim, count, layers, every):
    text = TextShape(dim=dim, layers=layers, heads=32, kv_heads=32, head_dim=dim // 32, hidden=8, vocab=31)
    with torch.device("meta"):
        block = Block(dim, 1024, heads=8, head_dim=64, ratio=4)
        whole = GatedXAttn(VisionShape(1024, (16, 16)), text, every)
    assert sum(p.numel() for p in block.parameters()) == count
    assert sum(p.numel() for p in whole.parameters()) == layers // every * count + 63_019_008 + dim


@pytest.mark.parametrize(("dv", "d", "every"), [(6, 16, 1), (12, 20, 2), (8, 8, 3)])
def test_the_formula_of_the_docstring_counts_its_parameters(dv, d, every):
    text = TextShape(dim=d, layers=4, heads=4, kv_heads=2, head_dim=4, hidden=24, vocab=31)
    module = GatedXAttn(VisionShape(dv, (2, 2)), text, every, latents=5, depth=2, heads=3, head_dim=7, ratio=2)
    a = 21
    block = a * (2 * d + 2 * dv) + 2 * 2 * d * d + 4 * d + 2
    resampler = 5 * dv + 2 * (4 * a * dv + 2 * 2 * dv * dv + 6 * dv) + 2 * dv
    assert sum(p.numel() for p in module.parameters()) == 4 // every * block + d + resampler


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every is 0; the language model has 4 layers, so 1 to that many fit"),
        ({"every": 5}, "every is 5; the language model has 4 layers"),
        ({"latents": 0}, "latents is 0; it has to be at least 1"),
        ({"heads": 0}, "heads is 0; it has to be at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        GatedXAttn(VISION, TEXT, **options)
