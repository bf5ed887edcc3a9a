"""The Q-Former: LAVIS's numbers in every mode, and transformers' modules with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from transformers import Blip2QFormerConfig, InstructBlipQFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel

from mllm import qformer_names
from mllm.qformer import QFormer, attention_mask
from tests.golden import golden
from tests.mllm import parity

SIZES = {"dim": 24, "depth": 4, "heads": 3, "hidden": 40}
# A constant added to all scores of a row cancels in the softmax.
NOISE = [f"layers.{i}.attention.k.bias" for i in range(4)] + [f"layers.{i}.cross.k.bias" for i in (0, 2)]
ROUNDING = [qformer_names.lavis(name) for name in NOISE]


def official() -> tuple[QFormer, dict[str, torch.Tensor]]:
    g = golden("mllm_qformer")
    qformer = QFormer(4, 20, **SIZES, vocab=31, positions=12).eval()
    parity.load(qformer, g, qformer_names.lavis)
    return qformer, g


def words(g: dict[str, torch.Tensor], qformer: QFormer, x: torch.Tensor) -> torch.Tensor:
    """Scores of words, by BERT's head, whose last map is the word table."""
    head = {name: g[f"method/Qformer.cls.predictions.{name}"].requires_grad_() for name in HEAD}
    x = F.gelu(F.linear(x, head["transform.dense.weight"], head["transform.dense.bias"]))
    x = F.layer_norm(x, (24,), head["transform.LayerNorm.weight"], head["transform.LayerNorm.bias"], 1e-12)
    assert qformer.words is not None
    return F.linear(x, qformer.words.weight, head["bias"])


HEAD = [
    "transform.dense.weight",
    "transform.dense.bias",
    "transform.LayerNorm.weight",
    "transform.LayerNorm.bias",
    "bias",
]


def test_every_mode_equals_the_official_code():
    qformer, g = official()
    image = g["input/image_embeds"].requires_grad_()
    ids, mask, begun = g["input/input_ids"], g["input/text_mask"], g["input/decoder_ids"]
    hidden = []
    for module in (qformer.norm, *qformer.layers):
        module.register_forward_hook(lambda _, __, y: hidden.append(y[:1] if isinstance(y, torch.Tensor) else y[0][:1]))
    outputs = {}
    outputs["query_only"], past = qformer(image)
    kept = {f"query_only_hidden{i}": x for i, x in enumerate(hidden)}
    outputs["query_only_masked"], _ = qformer(image, context_mask=g["input/image_mask"])
    outputs["text_only"], _ = qformer(None, ids, mask)
    outputs["query_text"], _ = qformer(image, ids, mask)
    proj = {name: g[f"method/llm_proj.{name}"].requires_grad_() for name in ("weight", "bias")}
    outputs["llm_inputs"] = F.linear(outputs["query_text"][:, :4], proj["weight"], proj["bias"])
    written, _ = qformer(None, begun, mask, "causal", past)
    logits = outputs["itg_logits"] = words(g, qformer, written)
    outputs["itg_loss"] = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), g["input/labels"][:, 1:].flatten(), label_smoothing=0.1
    )
    at_once, _ = qformer(image, begun, mask, "causal")
    with torch.no_grad():
        uncached = words(g, qformer, at_once[:, 4:])

    parity.hold_outputs(g, outputs | kept | {"itg_logits_uncached": uncached})
    parity.backward(g, outputs)
    found = parity.gradients(qformer, qformer_names.lavis) | {"input.image_embeds": image.grad}
    found |= {f"llm_proj.{name}": p.grad for name, p in proj.items()}
    found |= {f"Qformer.cls.predictions.{name}": g[f"method/Qformer.cls.predictions.{name}"].grad for name in HEAD}
    parity.hold_gradients(g, found, rounding=ROUNDING)


def test_masks_are_those_of_the_official_code():
    g = golden("mllm_qformer")
    mask, seen = g["input/text_mask"], {name: g[f"output/mask_{name}"] == 0 for name in MASKS}
    assert torch.equal(attention_mask(mask, 0, "bidirectional"), seen["text_only"].expand(-1, -1, 7, -1))
    assert torch.equal(attention_mask(mask, 4, "bidirectional"), seen["query_text"].expand(-1, -1, 11, -1))
    assert torch.equal(attention_mask(mask, 4, "causal")[:, :, 4:], seen["itg"])
    assert torch.equal(attention_mask(mask, 4, "causal"), seen["itg_uncached"])


MASKS = ["text_only", "query_text", "itg", "itg_uncached"]


def test_unimodal_queries_and_text_are_those_of_two_passes():
    qformer, g = official()
    image, ids, mask = g["input/image_embeds"], g["input/input_ids"], g["input/text_mask"]
    queries, text = qformer(image, ids, mask, "unimodal")[0].split([4, 7], dim=1)
    parity.hold_outputs(g, {"query_only": queries, "text_only": text})


def test_padding_changes_nothing():
    qformer, g = official()
    image, ids = g["input/image_embeds"], g["input/input_ids"]
    mask = g["input/text_mask"].clone()
    mask[:, 3:] = 0
    cut, _ = qformer(image, ids[:, :3])
    torch.testing.assert_close(qformer(image, ids, mask)[0][:, :7], cut, atol=1e-5, rtol=1e-5)


def test_a_word_is_written_without_seeing_what_follows():
    qformer, g = official()
    image, ids = g["input/image_embeds"], g["input/decoder_ids"].clone()
    before, _ = qformer(image, ids, None, "causal")
    ids[:, 4:] = 17
    after, _ = qformer(image, ids, None, "causal")
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_queries_equal_those_of_transformers_blip2():
    config = Blip2QFormerConfig(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=40,
        encoder_hidden_size=20,
        vocab_size=31,
    )
    theirs, ours = Blip2QFormerModel(config).eval(), QFormer(4, 20, **SIZES).eval()
    copy(ours, theirs.state_dict())
    image = torch.randn(2, 9, 20)
    reference = theirs(query_embeds=ours.queries.expand(2, -1, -1), encoder_hidden_states=image).last_hidden_state
    torch.testing.assert_close(ours(image)[0], reference, atol=1e-5, rtol=1e-5)


def test_an_instruction_is_read_as_by_transformers_instructblip():
    config = InstructBlipQFormerConfig(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=40,
        encoder_hidden_size=20,
        vocab_size=31,
        max_position_embeddings=12,
    )
    theirs = InstructBlipQFormerModel(config).eval()
    ours = QFormer(4, 20, **SIZES, vocab=31, positions=12).eval()
    copy(ours, theirs.state_dict())
    g = golden("mllm_qformer")
    image, ids, mask = (g[f"input/{name}"] for name in ("image_embeds", "input_ids", "text_mask"))
    reference = theirs(
        input_ids=ids,
        attention_mask=F.pad(mask, (4, 0), value=1),
        query_embeds=ours.queries.expand(4, -1, -1),
        encoder_hidden_states=image,
    ).last_hidden_state
    torch.testing.assert_close(ours(image, ids, mask)[0], reference, atol=1e-5, rtol=1e-5)


def copy(ours: QFormer, theirs: dict[str, torch.Tensor]) -> None:
    """Every parameter but the queries, which transformers keeps elsewhere; none of theirs may be left."""
    text = ours.words is not None
    names = {name: qformer_names.transformers(name, text) for name in ours.state_dict() if name != "queries"}
    assert set(names.values()) == set(theirs)
    ours.load_state_dict({name: theirs[their] for name, their in names.items()} | {"queries": ours.queries})


def test_the_stream_between_layers_stays_in_float32_under_autocast():
    qformer, types = QFormer(4, 20, **SIZES, vocab=31), set()
    for module in qformer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda _, x, y: types.update((x[0].dtype, y.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        x, _ = qformer(torch.randn(2, 9, 20).bfloat16(), torch.ones(2, 3, dtype=torch.long))
    assert types == {torch.float32}
    assert x.dtype == torch.float32


def test_dropout_acts_in_training_alone():
    qformer = QFormer(4, 20, **SIZES, dropout=0.5)
    image = torch.randn(1, 9, 20)
    assert not torch.equal(qformer(image)[0], qformer(image)[0])
    qformer.eval()
    assert torch.equal(qformer(image)[0], qformer(image)[0])


def test_it_starts_as_bert_with_different_queries():
    torch.manual_seed(0)
    qformer = QFormer(32, 64, dim=64, depth=2, heads=4, hidden=64, vocab=100)
    for name, parameter in qformer.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert (parameter == 1).all()
        else:
            assert abs(parameter.std() - 0.02) < 0.002, name
    assert torch.pdist(qformer.queries[0]).min() > 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 5}, "heads is 5, which does not divide dim, 24"),
        ({"depth": 0}, "depth is 0; it has to be at least 1"),
        ({"cross_every": 0}, "cross_every is 0; it has to be at least 1"),
        ({"vocab": 0}, "vocab is 0; it has to be at least 1"),
        ({"heads": 0}, "heads is 0; it has to be at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        QFormer(4, 20, **{**SIZES, **options})


def test_what_it_cannot_read_is_refused():
    ids, image = torch.ones(1, 3, dtype=torch.long), torch.randn(1, 9, 20)
    blind, reading = QFormer(4, 20, **SIZES), QFormer(4, 20, **SIZES, vocab=31, positions=2)
    with pytest.raises(ValueError, match="reads no text and was given one; build it with a vocab"):
        blind(image, ids)
    with pytest.raises(ValueError, match="neither an image nor a text"):
        blind(None)
    with pytest.raises(ValueError, match="text of 3 tokens was given to a Q-Former with 2 positions"):
        reading(image, ids)
    _, past = reading(image)
    with pytest.raises(ValueError, match="past stands for the image"):
        reading(image, ids, past=past)
