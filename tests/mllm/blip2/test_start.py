"""The second stage begins with what the first has learned."""

import pytest
import torch

from mllm.blip2.adapter import build_stage, load, read, save
from mllm.blip2.model import Blip2, Pairs
from mllm.blip2.start import connector_state
from mllm.connectors import build, resolve
from mllm.language import tokenizer_hash
from mllm.vision import tower, vision_shape
from tests.mllm.blip2.runs import QFORMER, VOCABULARY, bert
from tests.mllm.shapes import shapes
from vpeft import backbones

LOSS = {"terms": ["itc", "itm", "itg"], "embed": 16, "temperature": 0.1, "smoothing": 0.1, "gather_grad": False}
TOWER = {"layer": -1, "prefix": True, "norm": True}
ENTRY = resolve(QFORMER)


def made(method=None):
    torch.manual_seed(0)
    vision = tower(backbones.create("test_vit.r160_in1k", "none", 32, 0), method, -1, True, True)
    connector = resolve(QFORMER) | {"vocab": len(VOCABULARY) + 1}
    model = Blip2(vision, build_stage(connector, LOSS, vision_shape(vision)))
    for _, parameter in (pair for named in model.components().values() for pair in named):
        parameter.data.normal_(std=0.1)
    return model, connector


def write(folder, method=None):
    model, connector = made(method)
    bert().save_pretrained(folder / "bert")
    mean, std = model.vision.backbone.normalization
    size = list(model.vision.backbone.image_size)
    backbone = {"name": "test_vit.r160_in1k", "pretrained": "none", "image_size": size, **TOWER}
    manifest = {
        "kind": "blip2",
        "seed": 0,
        "backbone": backbone | {"normalization": {"name": "auto", "mean": mean, "std": std}},
        "method": method or {"name": "linear"},
        "connector": connector,
        "loss": LOSS,
        "tokenizer": {"name": f"hf:{folder / 'bert'}", "sha256": tokenizer_hash(bert())},
        "preparation": {"max_length": 8},
    }
    save(folder / "adapter.safetensors", model, manifest)
    return folder / "adapter.safetensors", model


@pytest.mark.parametrize("method", [None, {"name": "lora", "rank": 2}])
def test_a_first_stage_that_is_loaded_has_the_same_losses(tmp_path, method):
    path, model = write(tmp_path, method)
    again, words, _ = load(path)
    ids, mask = words.batch(["a red thing", "a dark blue thing", "grey"])
    number = torch.arange(3)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    one, two = (
        m(Pairs(m.features(images), ids, mask, number, number))
        for m in (model.eval(), again)
        if torch.manual_seed(0)  # of the negatives
    )
    assert {name: value.item() for name, value in one.items()} == {name: value.item() for name, value in two.items()}
    assert all(value.isfinite() for value in one.values())


def connector(**options):
    vision, text = shapes(64, 48, (2, 2), prefix=1)
    return build({**QFORMER, **options}, vision, text)


def test_a_connector_takes_over_queries_qformer_and_norm_and_keeps_its_projection(tmp_path):
    path, model = write(tmp_path)
    own = connector()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    own.load_state_dict(connector_state(path, own))
    features = torch.randn(2, 5, 64)
    stage = model.connector.eval()
    reference, _ = stage.qformer(stage.norm(features))
    torch.testing.assert_close(own.eval()(features), torch.nn.functional.linear(reference, *before_projection(before)))


def before_projection(state):
    return state["proj.weight"], state["proj.bias"]


def test_a_connector_that_reads_instructions_takes_the_half_for_text_too(tmp_path):
    path, model = write(tmp_path)
    own = connector(instructed=True, vocab=len(VOCABULARY) + 1)
    own.load_state_dict(connector_state(path, own))
    ids = torch.randint(1, 8, (2, 3))
    features, stage = torch.randn(2, 5, 64), model.connector.eval()
    reference, _ = stage.qformer(stage.norm(features), ids)
    found, _ = own.eval().qformer(own.norm(features), ids)  # type: ignore[operator]
    torch.testing.assert_close(found, reference)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "mlp"}, r"holds a Q-Former, and the connector is MLP\. Give connector \{name: qformer\}"),
        ({**QFORMER, "tokens": 5}, r"qformer\.queries is \[1, 4, 32\] in .* and \[1, 5, 32\] in the connector"),
        ({**QFORMER, "depth": 1}, r"qformer\.layers\.1\.\S+ and \d+ more are only in one of"),
        ({**QFORMER, "depth": 3}, r"qformer\.layers\.2\.\S+ and \d+ more are only in one of"),
        ({**QFORMER, "cross_every": 1}, r"qformer\.layers\.1\.cross\.\S+ and \d+ more are only in one of"),
        (
            {**QFORMER, "instructed": True},
            r"qformer\.words\.weight is \[15, 32\] in .* and \[31, 32\] in the connector",
        ),
    ],
)
def test_a_connector_of_another_form_is_refused(tmp_path, entry, message):
    path, _ = write(tmp_path)
    vision, text = shapes(64, 48, (2, 2), prefix=1)
    with pytest.raises(ValueError, match=message):
        connector_state(path, build(entry, vision, text))


def test_another_tokenizer_is_refused(tmp_path):
    path, _ = write(tmp_path)
    bert([*VOCABULARY[:-1], "pale"]).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="was trained with another tokenizer"):
        load(path)


def test_the_file_holds_what_was_trained_and_nothing_frozen(tmp_path):
    path, model = write(tmp_path, {"name": "lora", "rank": 2})
    _, tensors = read(path)
    trained = {name for named in model.components().values() for name, _ in named}
    assert set(tensors) == trained
