"""Published checkpoints give a connector their weights, in each layout they come in."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from mllm import qformer_names
from mllm.connectors.linear import Linear
from mllm.connectors.mlp import MLP
from mllm.connectors.qformer import QFormerConnector
from mllm.importing import imported
from tests.golden import golden
from tests.mllm.languages import CONFIGS
from tests.mllm.shapes import shapes
from tests.zoo import HF

SIZES: dict[str, Any] = {"tokens": 4, "dim": 24, "depth": 4, "heads": 3, "hidden": 40}
SHAPES = shapes(20, 32, grid=(3, 3))


def mlp(depth=2, vision=20, text=32):
    torch.manual_seed(1)
    return MLP(*shapes(vision, text, grid=(3, 3)), depth=depth)


def qformer(seed=1, **options):
    torch.manual_seed(seed)
    return QFormerConnector(*SHAPES, **{**SIZES, **options}).eval()


def projector_file(path, connector, prefix="model.mm_projector."):
    """As LLaVA's trainer writes it, in half precision."""
    state = {prefix + name.removeprefix("layers."): tensor.half() for name, tensor in connector.state_dict().items()}
    torch.save(state, path)
    return path


def equal(state, connector):
    own = connector.state_dict()
    assert state.keys() == own.keys()
    for name, tensor in own.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-3)  # of half precision
        assert state[name].dtype == torch.float32


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector.", "base_model.model.model.mm_projector."])
@pytest.mark.parametrize("depth", [2, 3])
def test_llavas_projector_becomes_an_mlp(tmp_path, prefix, depth):
    theirs = mlp(depth)
    state, said = imported(projector_file(tmp_path / "mm_projector.bin", theirs, prefix), MLP(*SHAPES, depth=depth))
    equal(state, theirs)
    assert said == "the projector of a LLaVA"


def test_llavas_linear_projector_becomes_a_linear(tmp_path):
    theirs = Linear(*SHAPES)
    torch.save({f"model.mm_projector.{k}": v for k, v in theirs.proj.state_dict().items()}, tmp_path / "p.bin")
    equal(imported(tmp_path / "p.bin", Linear(*SHAPES))[0], theirs)
    state, _ = imported(tmp_path / "p.bin", mlp(1))
    torch.testing.assert_close(state["layers.0.weight"], theirs.proj.weight)


def test_a_folder_of_transformers_llava_gives_its_projector(tmp_path):
    config = LlavaConfig(vision_config=CLIPVisionConfig(**HF), text_config=CONFIGS["llama"](), image_token_index=39)
    theirs = LlavaForConditionalGeneration(config)
    theirs.save_pretrained(tmp_path / "llava")
    own = mlp(vision=32)
    own.load_state_dict(imported(tmp_path / "llava", own)[0])
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(own(x), theirs.model.multi_modal_projector(x), rtol=0, atol=0)


def lavis_state(connector, projection="opt_proj"):
    """As LAVIS names it, with a first stage's heads and text half beside."""
    names = {}
    for name, tensor in connector.state_dict().items():
        part, _, rest = name.partition(".")
        own = {"norm": f"ln_vision.{rest}", "proj": f"{projection}.{rest}"}
        names[own.get(part) or qformer_names.lavis(rest)] = tensor
    beside = ("bert.embeddings.position_ids", "cls.predictions.bias", "bert.encoder.layer.0.intermediate.dense.weight")
    return {f"Qformer.{name}": torch.zeros(3) for name in beside} | {"vision_proj.weight": torch.zeros(3)} | names


@pytest.mark.parametrize("projection", ["opt_proj", "t5_proj", "llm_proj"])
def test_lavis_second_stage_becomes_a_qformer(tmp_path, projection):
    theirs = qformer()
    torch.save({"model": lavis_state(theirs, projection)}, tmp_path / "blip2.pth")
    state, said = imported(tmp_path / "blip2.pth", qformer(seed=2))
    equal(state, theirs)
    assert said == "the Q-Former of LAVIS"


def test_the_official_first_stage_leaves_the_map_to_the_language_model(tmp_path):
    g = golden("mllm_blip2_losses")
    state = {name.removeprefix("method/"): tensor for name, tensor in g.items() if name.startswith("method/")}
    save_file(state, tmp_path / "stage1.safetensors")
    own = qformer(seed=2)
    before = own.proj.weight.clone()
    found, said = imported(tmp_path / "stage1.safetensors", own)
    assert said == "the Q-Former of LAVIS, but for its map to the language model"
    own.load_state_dict(found)
    assert torch.equal(own.proj.weight, before)
    queries, _ = own.qformer(own.norm(g["input/image_tokens"]))
    compared = F.linear(queries, state["vision_proj.weight"], state["vision_proj.bias"])
    torch.testing.assert_close(compared, g["output/vision_proj"], rtol=1e-5, atol=1e-5)


def test_another_language_model_keeps_its_own_map(tmp_path):
    theirs = QFormerConnector(*shapes(20, 48, grid=(3, 3)), **SIZES)
    torch.save(lavis_state(theirs), tmp_path / "blip2.pth")
    own = qformer(seed=2)
    state, said = imported(tmp_path / "blip2.pth", own)
    assert "but for its map" in said
    assert torch.equal(state["proj.weight"], own.proj.weight)
    assert torch.equal(state["qformer.queries"], theirs.qformer.queries)


def test_an_instructed_qformer_takes_the_half_that_reads_too(tmp_path):
    theirs = qformer(instructed=True, vocab=31, positions=12)
    torch.save({"model": lavis_state(theirs, "llm_proj")}, tmp_path / "instruct.pth")
    equal(imported(tmp_path / "instruct.pth", qformer(seed=2, instructed=True, vocab=31, positions=12))[0], theirs)


def test_a_folder_of_transformers_blip2_gives_its_qformer(tmp_path):
    config = Blip2Config(
        vision_config={**HF, "hidden_size": 20, "num_attention_heads": 2},
        qformer_config={
            "hidden_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "intermediate_size": 40,
            "encoder_hidden_size": 20,
        },
        text_config=CONFIGS["opt"](),
        num_query_tokens=4,
        image_token_index=39,
    )
    theirs = Blip2ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(theirs.query_tokens)
    torch.nn.init.normal_(theirs.vision_model.post_layernorm.weight)
    theirs.save_pretrained(tmp_path / "blip2")
    own = qformer()
    state, said = imported(tmp_path / "blip2", own)
    own.load_state_dict(state)
    assert said == "the Q-Former of transformers"
    x = torch.randn(2, 9, 20)
    seen = theirs.vision_model.post_layernorm(x)
    queries = theirs.qformer(query_embeds=theirs.query_tokens.expand(2, -1, -1), encoder_hidden_states=seen)[0]
    torch.testing.assert_close(own(x), theirs.language_projection(queries), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (mlp(3), "holds an MLP of 2 maps, and the connector is MLP; give connector {name: mlp, depth: 2}"),
        (Linear(*SHAPES), "and the connector is Linear; give connector {name: mlp, depth: 2}"),
        (mlp(vision=24), "layers.0.weight is [32, 20] in"),
        (mlp(text=40), "and [40, 20] in the connector; read the vision tower and give the language model"),
    ],
    ids=["depth", "linear", "vision", "text"],
)
def test_a_projector_of_another_kind_or_size_is_refused(tmp_path, own, said):
    path = projector_file(tmp_path / "mm_projector.bin", mlp())
    with pytest.raises(ValueError, match=re.escape(said)):
        imported(path, own)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"depth": 2}, "more that the connector has no place for; give it the depth and the cross_every"),
        ({"cross_every": 4}, "more that the connector has no place for"),
        ({"depth": 6}, "lacks qformer.layers.4"),
        ({"cross_every": 1}, "lacks qformer.layers.1.cross"),
        ({"tokens": 5}, "qformer.queries is [1, 4, 24] in"),
        ({"instructed": True}, "lacks qformer.words.weight"),
    ],
    ids=str,
)
def test_a_qformer_of_other_sizes_is_refused(tmp_path, options, said):
    state = {k: v for k, v in lavis_state(qformer()).items() if "intermediate.dense" not in k}
    torch.save(state, tmp_path / "blip2.pth")
    with pytest.raises(ValueError, match=re.escape(said)):
        imported(tmp_path / "blip2.pth", qformer(**options))


def test_what_is_no_connector_is_refused(tmp_path):
    save_file({"model.embed.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"holds no connector that is known: .* but model\.embed\.weight, \.\.\. Give"):
        imported(tmp_path / "a.safetensors", mlp())
    torch.save(lavis_state(qformer()), tmp_path / "blip2.pth")
    with pytest.raises(ValueError, match=r"holds a Q-Former, and the connector is MLP; give connector \{name: qformer"):
        imported(tmp_path / "blip2.pth", mlp())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors"):
        imported(tmp_path / "empty", mlp())


def test_a_pickle_that_runs_code_is_not_opened(tmp_path):
    torch.save({"mm_projector.0.weight": torch.ones(1), "more": pytest}, tmp_path / "p.bin", pickle_module=_Pickle)
    with pytest.raises(ValueError, match="is not opened"):
        imported(tmp_path / "p.bin", mlp())


class _Pickle:
    """torch.save with an object that only a call makes again."""

    import pickle

    @staticmethod
    def dumps(obj, protocol):
        return _Pickle.pickle.dumps(obj, protocol)

    class Pickler(pickle.Pickler):
        def reducer_override(self, obj):
            return (print, ("run",)) if obj is pytest else NotImplemented
