"""What transformers loads from an exported folder computes what the model does; what no container holds is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm import adapt, connectors
from mllm.adapter import save_adapter
from mllm.assistant import Assistant
from mllm.caption import Caption, caption
from mllm.connectors import CONNECTORS
from mllm.export import REFUSED, export, to_container
from mllm.generate import Decoding
from mllm.importing import imported
from mllm.vision import tower, vision_shape
from mllm.vlm import VLM
from tests.mllm.adapters import built, saved
from tests.mllm.batches import batch, pictures
from tests.mllm.languages import language, tokenizer
from tests.mllm.models import CONNECTORS as SMALL
from tests.mllm.models import NAMES, stored
from tests.zoo import MODELS, TIMM
from vpeft.backbones import wrap
from vpeft.tasks.learning import normalise

LORA = {"name": "lora", "r": 2}
QFORMER = SMALL[NAMES.index("qformer")]
VITS: dict[str, dict[str, Any]] = {
    "timm_scaled": {"init_values": 0.5},
    "timm_clip": {"pre_norm": True, "act_layer": nn.GELU},
    "timm_registers_plain": {"reg_tokens": 3, "no_embed_class": True},
    "timm_registers_placed": {"reg_tokens": 3},
    "timm_siglip": {"class_token": False, "global_pool": "map"},
    "timm_no_bias": {"qkv_bias": False},
}


def made(
    connector: dict[str, Any], method: Any = None, family: str = "llama", vision: str = "timm_vit", **reads: Any
) -> VLM:
    """A model of which everything is random, nothing zero."""
    torch.manual_seed(0)
    kind = "timm_vit" if vision.startswith("timm") else vision
    model: Any = VisionTransformer(**TIMM, **VITS[vision]) if vision in VITS else MODELS[vision]()
    adapted = reads.pop("adapted", None)
    seen = tower(wrap(model, kind), adapted, **reads)
    own = language(family)
    adapt.apply(own, method or {"name": "frozen"})
    found = VLM(seen, connectors.build(connector, vision_shape(seen), own.shape), own).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in found.named_parameters():
        # Not the language model's own, which are random already, nor what norms divide by.
        if parameter.ndim == 1 or not name.startswith("language.model") or "lora" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return found


def held(model: VLM, container: Any) -> None:
    """Logits of both, at mixed texts with images: 1e-4, for three models in a row whose norms differ in rounding."""
    tokens: Any = model.connector.tokens
    inputs = batch("ab#cD$", "#e#fghIJ$", tokens=tokens, images=pictures(3))
    pixels = normalise(inputs["images"], model.mean, model.std)
    image = container.config.image_token_id
    with torch.no_grad():
        expected = model(inputs)
        found = container(
            input_ids=inputs["input_ids"].masked_fill(inputs["image_mask"], image),
            pixel_values=pixels,
            attention_mask=inputs["attention_mask"],
        ).logits
    real = inputs["attention_mask"].bool()
    assert expected[real].std() > 0.1
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)


def loaded(model: VLM, folder: Path) -> Any:
    """The container, written by transformers and read by it again."""
    container = to_container(model)
    container.config.image_token_id = 39
    container.save_pretrained(folder)
    both: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    found, info = both
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return found.eval()


@pytest.mark.parametrize("connector", [{"name": "linear"}, {"name": "mlp"}, {"name": "mlp", "depth": 1}], ids=str)
@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2"])
def test_linear_maps_and_mlps_are_a_llava(tmp_path, connector, family):
    model = made(connector, LORA, family)
    container = loaded(model, tmp_path)
    assert type(container).__name__ == "LlavaForConditionalGeneration"
    held(model, container)


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize(
    ("vision", "kind", "prefix"),
    [
        ("timm_vit", "Dinov2Model", False),
        ("timm_vit", "Dinov2Model", True),
        ("timm_scaled", "Dinov2Model", False),
        ("timm_no_bias", "Dinov2Model", False),
        ("timm_clip", "CLIPVisionModel", False),
        ("timm_siglip", "SiglipVisionModel", False),
        ("timm_registers_plain", "Dinov2WithRegistersModel", True),
        ("timm_registers_placed", "Dinov2WithRegistersModel", True),
        ("hf_vit", "ViTModel", False),
        ("hf_dinov2", "Dinov2Model", False),
        ("hf_registers", "Dinov2WithRegistersModel", True),
        ("hf_clip", "CLIPVisionModel", False),
        ("hf_siglip", "SiglipVisionModel", False),
    ],
)
def test_every_tower_that_transformers_has_is_held_by_llava(tmp_path, vision, kind, prefix, layer):
    model = made({"name": "mlp"}, vision=vision, prefix=prefix, layer=layer)
    container = loaded(model, tmp_path)
    assert type(container.model.vision_tower).__name__ == kind
    held(model, container)


@pytest.mark.parametrize("adapted", [{"name": "lora", "rank": 2}, {"name": "full"}, {"name": "bitfit"}], ids=str)
def test_what_was_trained_in_the_tower_is_in_its_weights(tmp_path, adapted):
    model = made({"name": "mlp"}, {"name": "ia3"}, adapted=adapted)
    held(model, loaded(model, tmp_path))


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gemma2", "opt"])
@pytest.mark.parametrize("vision", ["timm_vit", "timm_scaled"])
def test_qformers_are_a_blip2(tmp_path, vision, family):
    model = made(QFORMER, LORA, family, vision, prefix=True, layer=-2)
    container = loaded(model, tmp_path)
    assert type(container).__name__ == "Blip2ForConditionalGeneration"
    held(model, container)


def test_a_qformer_that_reads_the_image_in_other_layers_is_a_blip2(tmp_path):
    for every in (1, 3):
        connector = QFORMER | {"depth": 4, "cross_every": every}
        model = made(connector, prefix=True, layer=-1, adapted={"name": "lora", "rank": 2})
        held(model, loaded(model, tmp_path / str(every)))


@pytest.mark.parametrize("aspect", ["pad", "squash", "crop"])
@pytest.mark.parametrize("connector", ["mlp", "qformer"])
def test_a_folder_answers_as_the_adapter_does(tmp_path, monkeypatch, connector, aspect):
    """By the processor and `generate` of transformers, from an image file and a text."""
    monkeypatch.setitem(saved.__globals__["PREPARATION"], "aspect", aspect)
    monkeypatch.setitem(saved.__globals__["PREPARATION"], "template", "bare" if connector == "qformer" else "llava_v1")
    adapter = saved(tmp_path, SMALL[NAMES.index(connector)], LORA, prefix=connector == "qformer")
    (folder,), how = export(adapter, tmp_path / "out")
    assert f"from_pretrained('{folder}')" in how
    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    size = (64, 64)  # nothing is resized, which Pillow and torchvision round differently
    path = tmp_path / "image.png"
    Image.effect_noise(size, 90).convert("RGB").save(path)
    assistant = Assistant(adapter, device="cpu")
    assistant.model.language.float()
    (expected,) = caption(assistant, [path], Decoding(max_new_tokens=6), "a b c ?")
    assert isinstance(expected, Caption)
    prompt = how.splitlines()[-1].strip("'").replace("What is this?", "a b c ?").replace("\\n", "\n")
    text = prompt if connector == "mlp" else prompt.replace("<image>", "")
    inputs = processor(images=Image.open(path), text=text, return_tensors="pt")
    count = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert count == assistant.writing.tokens_per_image
    pixels = (assistant.look(Image.open(path))[None].float() / 255 - assistant.model.mean) / assistant.model.std
    torch.testing.assert_close(inputs["pixel_values"], pixels, rtol=1e-4, atol=1e-4)
    generated = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
    generated = generated[inputs["input_ids"].shape[1] :] if generated[0] == inputs["input_ids"][0, 0] else generated
    assert processor.decode(generated, skip_special_tokens=True).strip() == expected.text


def test_an_export_can_be_begun_with(tmp_path):
    adapter = saved(tmp_path)
    export(adapter, tmp_path / "out")
    model = Assistant(adapter, device="cpu").model
    for name, tensor in imported(tmp_path / "out", model.connector)[0].items():
        assert torch.equal(tensor, model.connector.state_dict()[name])


def test_a_chat_template_that_training_did_not_use_is_left_out(tmp_path):
    name, words = stored(tmp_path / "language"), tokenizer()
    words.chat_template = "{{ messages }}"
    words.save_pretrained(tmp_path / "language")
    model, manifest = built(name)
    save_adapter(tmp_path / "adapter.safetensors", model, manifest)
    assert model.about.tokenizer.chat_template
    export(tmp_path / "adapter.safetensors", tmp_path / "out")
    assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.chat_template is None
    modes = {file.stat().st_mode for file in (tmp_path / "out").iterdir()}
    assert len(modes) == 1, "who may read the config may read the weights"


def test_bfloat16_weights_are_exported_in_float32(tmp_path):
    adapter = saved(tmp_path, method=LORA, dtype="bfloat16")
    _, how = export(adapter, tmp_path / "out")
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out").dtype == torch.float32
    assert "its logits differ by at most" in how


@pytest.mark.parametrize("name", sorted(set(CONNECTORS) - {"linear", "mlp", "qformer"}))
def test_a_connector_without_a_container_is_refused_with_the_reason(tmp_path, name):
    adapter = saved(tmp_path, SMALL[NAMES.index(name)])
    with pytest.raises(ValueError, match=f"a model with the connector {name} cannot be exported: {REFUSED[name][:30]}"):
        export(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"connector": {"name": "mlp", "depth": 3}}, "an MLP of 2 maps, and this one has 3"),
        ({"norm": True}, "vision.norm puts the tower's last norm behind it. Train with vision.norm false"),
        ({"vision": "timm_registers_plain"}, "a class token and 3 registers, of which none is read here"),
        ({"vision": "timm_registers"}, "it has norms or gates inside its attention"),
        ({"vision": "timm_dinov3"}, "is a Eva, which is neither a tower of transformers nor a plain ViT"),
        ({"vision": "timm_swin", "layer": -1}, "is a SwinTransformer, which is neither"),
        ({"vision": "open_clip"}, "so no container of transformers can hold it"),
        ({"norm": True, "layer": -1}, "vision.norm puts the tower's last norm behind it"),
        ({"family": "opt"}, "ties the words of its output to `embed_tokens` of the language model"),
        ({"family": "gemma2"}, "Gemma2ForCausalLM scales, bounds or shifts them"),
        ({"method": {"name": "prefix", "tokens": 2}}, "The prefix of llama cannot be merged"),
        ({"adapted": {"name": "vpt"}}, "VPT cannot be merged"),
        ({"connector": QFORMER}, "this one reads no tokens before them. Use a tower with a class token"),
        ({"connector": QFORMER, "vision": "timm_clip", "prefix": True}, "no norm before its blocks"),
        ({"connector": QFORMER, "vision": "hf_dinov2", "prefix": True}, "is one of transformers"),
        ({"connector": QFORMER, "prefix": True, "norm": True}, "Train with vision.norm false"),
        ({"connector": QFORMER, "prefix": True, "vision": "timm_registers_placed"}, "reads 4 tokens before them"),
        ({"connector": QFORMER | {"instructed": True}, "prefix": True}, "reads no instruction, and this one does"),
    ],
    ids=str,
)
def test_what_a_container_has_no_place_for_is_refused_with_the_reason(options, said):
    options = {"connector": {"name": "mlp"}, **options}
    if options.get("vision") in ("timm_registers", "timm_dinov3", "timm_swin", "open_clip"):
        torch.manual_seed(0)
        seen = tower(wrap(MODELS[options["vision"]](), options["vision"]), layer=options.get("layer", -2))
        own = language()
        model = VLM(seen, connectors.build(options["connector"], vision_shape(seen), own.shape), own)
    else:
        model = made(**options)
    with pytest.raises(ValueError, match=said):
        to_container(model)


def test_an_adapter_that_cannot_be_exported_is_used_as_it_is(tmp_path):
    path = saved(tmp_path, {"name": "mlp", "depth": 3})
    with pytest.raises(ValueError, match=rf"^{path} cannot be exported: .* Use the adapter as it is, with tools/chat"):
        export(path, tmp_path / "out")


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"out is there already; give the name of a new folder"):
        export(saved(tmp_path), tmp_path / "out")


def test_a_container_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    from mllm import export as module

    whole = module.to_container

    def other(model: VLM) -> Any:
        found = whole(model)
        found.model.multi_modal_projector.linear_1.weight.data += 0.1
        return found

    monkeypatch.setattr(module, "to_container", other)
    with pytest.raises(RuntimeError, match=r"differ from the model's by .*, more than rounding, so nothing is written"):
        export(saved(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_connector_is_exported_or_refused():
    assert set(REFUSED) | {"linear", "mlp", "qformer"} == set(CONNECTORS)
