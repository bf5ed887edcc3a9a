"""CLIP's text as a head: it says what the whole CLIP says, in open_clip and in transformers, with nothing trained."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel

from tests.zoo import backbone
from vpeft import backbones, heads
from vpeft.backbones import create
from vpeft.backbones.beside import Joint, linear_map
from vpeft.heads import TextHead
from vpeft.heads.text import expand, spoken

NAMES = ["Maple_Tree", "apple", "semi-trailer"]
TEXT = {"kind": "text", "templates": ["This is a photo of a {}"]}
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny(tmp_path):
    """An architecture of open_clip that is small enough for a test."""
    path = tmp_path / "vpeft-tiny.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    yield "vpeft-tiny"
    open_clip.factory._MODEL_CONFIGS.pop("vpeft-tiny")


def images(side=32):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def said(names=NAMES, sentence="This is a photo of a {}"):
    return [sentence.replace("{}", name.lower().replace("_", " ").replace("-", " ")) for name in names]


def test_the_head_says_what_the_whole_open_clip_says(tiny, tmp_path):
    torch.manual_seed(1)
    theirs = open_clip.create_model(tiny).eval()
    save_file(
        {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, tmp_path / "clip.safetensors"
    )
    body = create(f"open_clip:{tiny}", str(tmp_path / "clip.safetensors"))
    head = heads.build(TEXT, body, body.dim, NAMES)
    with torch.no_grad():
        text = theirs.encode_text(open_clip.get_tokenizer(tiny)(said()), normalize=True)
        expected = theirs.logit_scale.exp() * theirs.encode_image(images(), normalize=True) @ text.T
        torch.testing.assert_close(head(body(images())), expected, rtol=1e-5, atol=1e-5)
    assert not head.state_dict()
    assert not list(head.parameters())


def test_several_templates_are_averaged_or_kept_apart(tiny):
    body = create(f"open_clip:{tiny}", "none")
    theirs = backbones.joint(body)
    templates = ["a photo of a {}.", "{} indeed"]
    one, two = (nn.functional.normalize(theirs.encode(said(sentence=sentence)), dim=-1) for sentence in templates)
    features = torch.randn(2, body.dim, generator=torch.Generator().manual_seed(0))
    x = nn.functional.normalize(features @ theirs.weight.T, dim=-1)
    mean = heads.build({"kind": "text", "templates": templates}, body, body.dim, NAMES)
    torch.testing.assert_close(mean(features), theirs.scale * x @ nn.functional.normalize(one + two, dim=-1).T)
    mapped = heads.build({"kind": "label_mapping", "source": "text", "templates": templates}, body, body.dim, NAMES)
    torch.testing.assert_close(mapped.source(features), theirs.scale * x @ torch.cat([one, two]).T)
    assert mapped(features).shape == (2, 3)


@pytest.mark.parametrize("given", ["folder", "file"])
def test_the_head_says_what_the_whole_clip_of_transformers_says(tmp_path, given):
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    theirs = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)).eval()
    theirs.save_pretrained(tmp_path)
    body = create(f"hf:{tmp_path}", "auto" if given == "folder" else str(tmp_path / "model.safetensors"))
    head = heads.build(TEXT, body, body.dim, NAMES)
    tokens = open_clip.get_tokenizer("ViT-B-32")(said())
    with torch.no_grad():
        expected = theirs(input_ids=tokens, pixel_values=images()).logits_per_image
        torch.testing.assert_close(head(body(images())), expected, rtol=1e-4, atol=1e-4)


def test_a_backbone_without_text_is_refused_by_name(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"^text: timm_vit has no text tower. Take a CLIP"):
        heads.build(TEXT, backbone("timm_vit"), 32, NAMES)
    visual = open_clip.create_model(tiny).visual.state_dict()
    save_file({f"visual.{name}": tensor.contiguous() for name, tensor in visual.items()}, tmp_path / "v.safetensors")
    body = create(f"open_clip:{tiny}", str(tmp_path / "v.safetensors"))
    with pytest.raises(ValueError, match=r"v.safetensors holds no text tower"):
        heads.build(TEXT, body, body.dim, NAMES)


def test_names_and_templates_are_read_as_the_official_codes_do():
    assert [spoken(name) for name in NAMES] == ["maple tree", "apple", "semi trailer"]
    every = expand(["This is a photo of a {}.", "openai"])
    assert len(every) == 81
    assert every[1] == "a bad photo of a {}."
    with pytest.raises(ValueError, match=r"'a photo' without \{\}"):
        expand(["a photo"])
    with pytest.raises(ValueError, match=r"head.templates is empty"):
        TextHead(Joint(torch.eye(2), lambda texts: torch.eye(2), 1.0), ["a"], [])


def test_a_projection_that_is_no_matrix_is_refused():
    layer = nn.Linear(3, 2, bias=False)
    torch.testing.assert_close(linear_map(nn.Sequential(nn.Dropout(0.5), layer), 3), layer.weight)
    with pytest.raises(ValueError, match="not one linear map"):
        linear_map(nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2)), 3)
