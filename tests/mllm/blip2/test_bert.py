"""A first stage that begins with BERT computes what that BERT computes, on text and on queries in its place."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from mllm import run
from mllm.blip2.bert import begin_with_bert
from mllm.blip2.model import FirstStage
from mllm.qformer import QFormer
from tests.mllm.blip2.runs import VOCABULARY, config, write

SIZES: dict[str, Any] = {"dim": 24, "depth": 4, "heads": 3, "hidden": 40}


def bert(folder, vocab=30, positions=12, depth=4, kind=BertForMaskedLM):
    torch.manual_seed(5)
    sizes = BertConfig(
        vocab_size=vocab,
        hidden_size=24,
        num_hidden_layers=depth,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=positions,
    )
    made = kind(sizes).eval()
    for parameter in made.parameters():
        parameter.data.normal_(std=0.2)
    made.save_pretrained(folder)
    return made


def stage(vocab=31, positions=12, **options):
    torch.manual_seed(0)
    return FirstStage(QFormer(4, 20, **{**SIZES, **options}, vocab=vocab, positions=positions), 20, embed=14).eval()


IDS = torch.randint(1, 30, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(7) < torch.tensor([[7], [5], [3]])).long()


def without_types(made):
    """BLIP-2 has no token types: BERT's first is added to every position, and the Q-Former's table lacks it."""
    made.get_input_embeddings()
    made.base_model.embeddings.token_type_embeddings.weight.data.zero_()
    return made


def test_text_reads_as_in_bert(tmp_path):
    reference: Any = without_types(bert(tmp_path))
    own = stage()
    assert "its head" in begin_with_bert(f"hf:{tmp_path}", own)
    with torch.no_grad():
        hidden, _ = own.qformer(None, IDS, MASK)
        theirs = reference.bert(input_ids=IDS, attention_mask=MASK).last_hidden_state
        torch.testing.assert_close(hidden[MASK.bool()], theirs[MASK.bool()], atol=1e-5, rtol=1e-5)
        told = own.word_head(hidden, own.qformer.words.weight)  # type: ignore[misc, union-attr]
        logits = reference(input_ids=IDS, attention_mask=MASK).logits
    torch.testing.assert_close(told[..., :30][MASK.bool()], logits[MASK.bool()], atol=1e-5, rtol=1e-5)


def test_queries_pass_through_berts_layers_too(tmp_path):
    reference: Any = bert(tmp_path)
    own = stage(cross_every=9)
    begin_with_bert(str(tmp_path), own)
    own.qformer.layers[0].cross = None  # the only layer that reads the image
    with torch.no_grad():
        hidden, _ = own.qformer(torch.zeros(2, 5, 20))
        embedded = reference.bert.embeddings.LayerNorm(own.qformer.queries.expand(2, -1, -1))
        theirs = reference.bert.encoder(embedded).last_hidden_state
    torch.testing.assert_close(hidden, theirs, atol=1e-5, rtol=1e-5)


def test_what_is_not_berts_starts_as_it_would_without_it(tmp_path):
    bert(tmp_path)
    fresh, own = stage().state_dict(), stage()
    begin_with_bert(str(tmp_path), own)
    after = own.state_dict()
    kept = [name for name in after if torch.equal(after[name], fresh[name])]
    assert all(
        name.startswith(("norm.", "image_proj", "text_proj", "temperature", "itm_head", "qformer.queries"))
        or ".cross." in name
        for name in kept
    )
    assert {"qformer.queries", "qformer.layers.0.cross.q.weight", "itm_head.weight"} <= set(kept)
    words = "qformer.words.weight"
    assert torch.equal(after[words][30], fresh[words][30])  # [DEC]
    assert not torch.equal(after[words][:30], fresh[words][:30])


def test_old_names_of_norms_and_a_bert_without_a_head_are_read(tmp_path):
    bert(tmp_path / "new")
    own, old, bare = stage(), stage(), stage()
    begin_with_bert(str(tmp_path / "new"), own)
    tensors = load_file(tmp_path / "new/model.safetensors")
    names = {
        name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for name in tensors
    }
    save_file({names[name]: tensor for name, tensor in tensors.items()}, tmp_path / "old.safetensors")
    begin_with_bert(str(tmp_path / "old.safetensors"), old)
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in old.state_dict().items())
    bert(tmp_path / "bare", kind=BertModel)
    assert "head is not there" in begin_with_bert(str(tmp_path / "bare"), bare)
    assert torch.equal(bare.state_dict()["word_head.bias"], torch.zeros(31))


def test_fewer_positions_are_the_first_ones(tmp_path):
    reference = bert(tmp_path)
    own = stage(positions=8)
    begin_with_bert(str(tmp_path), own)
    table: Any = own.qformer.positions
    assert torch.equal(table.weight, reference.bert.embeddings.position_embeddings.weight[:8])


@pytest.mark.parametrize(
    ("given", "own", "message"),
    [
        ({"depth": 3}, {}, r"lacks encoder\.layer\.3\S+; give connector the depth of this BERT \(3\)"),
        ({"depth": 5}, {}, r"has encoder\.layer\.4\S+; give connector the depth of this BERT \(5\)"),
        ({}, {"hidden": 44}, r"fc1\.weight is \[40, 24\] in .* and \[44, 24\] in the Q-Former"),
        ({"vocab": 40}, {}, r"has 40 words, and the tokenizer 31 with \[DEC\]; give the tokenizer of this BERT"),
    ],
)
def test_a_bert_of_other_sizes_is_refused(tmp_path, given, own, message):
    bert(tmp_path, **given)
    with pytest.raises(ValueError, match=message):
        begin_with_bert(str(tmp_path), stage(**own))


def test_other_weights_are_refused(tmp_path):
    save_file({"a.b": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"is no BERT: it has no embeddings\.word_embeddings\.weight, but a\.b"):
        begin_with_bert(str(tmp_path / "other.safetensors"), stage())
    with pytest.raises(RuntimeError, match="no model hub delivered it"):
        begin_with_bert("hf:nobody/nothing", stage())


def test_a_run_begins_with_it(tmp_path, capsys):
    settings = config(write(tmp_path / "colours"), tmp_path, steps=1)
    settings.connector |= {"dim": 24, "depth": 4, "heads": 3, "hidden": 40, "positions": 12}
    settings.start = f"hf:{tmp_path / 'bert'}"
    settings.optim.lr = 1e-9
    reference = bert(tmp_path / "bert", vocab=len(VOCABULARY))
    row = run.train(settings)
    assert row["start"] == settings.start
    assert f"start: {settings.start}: took tables" in capsys.readouterr().out
    held = load_file(tmp_path / "run/adapter.safetensors")["connector.qformer.layers.3.query_mlp.fc1.weight"]
    torch.testing.assert_close(held, reference.bert.encoder.layer[3].intermediate.dense.weight.detach())
