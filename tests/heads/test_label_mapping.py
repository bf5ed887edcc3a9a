"""Pretrained classes answer for new ones: the mapping of the official code, and where the classes come from."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.backbones.test_weights import google_npz
from tests.golden import golden
from tests.zoo import TIMM, backbone, image
from vpeft import backbones, heads
from vpeft.backbones import create, wrap
from vpeft.heads import Classifier, LabelMapping
from vpeft.heads.label_mapping import frequency, greedy
from vpeft.methods import build, feature_dim
from vpeft.tuned import Tuned

MAPPING = {"kind": "label_mapping"}


def mapping(there, classes, **options):
    return LabelMapping(Classifier(torch.eye(there), torch.zeros(there)), classes, **options)


def test_frequencies_and_mappings_equal_the_official_code():
    g = golden("map_frequency")
    counts = frequency(g["input/logits"], g["input/targets"], 4)
    assert torch.equal(counts, g["output/frequency"])
    assert torch.equal(greedy(counts, 1)[:, 0], g["output/mapping"])
    assert torch.equal(greedy(counts, 2), g["output/mapping_two"])
    head = mapping(12, 4)
    head.mapping.copy_(g["output/mapping"][:, None])
    assert torch.equal(head(g["input/logits"]), g["output/mapped_logits"])


def test_several_sources_of_a_target_are_averaged():
    head = mapping(4, 2, sources=2)
    assert head(torch.tensor([[1.0, 2.0, 3.0, 5.0]])).tolist() == [[1.5, 4.0]]


class Shown(nn.Module):
    """A model whose features are its images: what it is shown is what it says."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Identity()


@pytest.mark.parametrize(
    ("every", "follows"), [(1, [True, True, True]), (2, [True, False, True]), (0, [True, False, False])]
)
def test_targets_are_mapped_anew_every_so_many_epochs(every, follows):
    head, model = mapping(6, 2, every=every), Shown()
    for epoch, expected in enumerate(follows):
        wanted = [[5 - epoch], [epoch]]
        logits = torch.eye(6)[[5 - epoch, epoch]]
        head.prepare(model, [(logits[:1], torch.tensor([0])), (logits[1:], torch.tensor([1]))], epoch)
        assert (head.mapping.tolist() == wanted) == expected


def classes_of(model):
    head = model.get_classifier()
    return head.weight, head.bias


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_mapped_backbone_says_what_the_model_with_its_classifier_says(name):
    body = create(name, "none", seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = timm.create_model(name).eval()
    weight, bias = backbones.classifier(body)
    assert len(weight) == 1000
    theirs.load_state_dict(body.model.state_dict(), strict=False)
    with torch.no_grad():
        theirs.get_classifier().weight.copy_(weight)
        theirs.get_classifier().bias.copy_(bias)
        images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        head = heads.build(MAPPING | {"sources": 2}, body, body.dim, list("abc"))
        expected = theirs(images)[:, :6].view(1, 3, 2).mean(dim=2)
        torch.testing.assert_close(head(body(images)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
def test_the_classes_come_from_the_file_of_the_backbone(tmp_path, suffix):
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    nn.init.normal_(theirs.head.weight)
    nn.init.normal_(theirs.head.bias)
    path = tmp_path / f"vit{suffix}"
    if suffix == ".safetensors":
        save_file(theirs.state_dict(), path)
    elif suffix == ".pth":
        torch.save(theirs.state_dict(), path)
    else:
        google_npz(theirs, path)
    weight, bias = backbones.classifier(create("vit_tiny_patch16_224", str(path)))
    assert torch.equal(weight, theirs.head.weight)
    assert torch.equal(bias, theirs.head.bias)


def test_a_file_without_classes_is_refused(tmp_path):
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "vit.safetensors")
    body = create("vit_tiny_patch16_224", str(tmp_path / "vit.safetensors"))
    with pytest.raises(
        ValueError, match=r"^label_mapping: .*vit.safetensors holds no classifier for this backbone .no head"
    ):
        heads.build(MAPPING, body, body.dim, ["a"])


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_base_patch16_clip_224.openai", "open_clip:ViT-B-32"])
def test_a_backbone_without_classes_is_refused_by_name(name, monkeypatch):
    body = backbone("timm_vit")
    library, _, rest = name.rpartition(":")
    body.name = name
    body.recipe = backbones.backbone.Recipe(library or "timm", rest, "none", 0)
    with pytest.raises(ValueError, match=rf"^label_mapping: {name} has no classifier .*linear"):
        heads.build(MAPPING, body, body.dim, ["a"])


def test_the_embedded_backbone_is_refused_by_name():
    body = backbone("timm_vit")
    body.recipe = backbones.backbone.Recipe("timm", "vit_small_patch14_saliency", "auto", 0)
    with pytest.raises(ValueError, match="saliency has no classifier of its own: it was trained without"):
        heads.build(MAPPING, body, body.dim, ["a"])
    with pytest.raises(ValueError, match="timm_vit was given without a classifier"):
        heads.build(MAPPING, backbone("timm_vit"), 32, ["a"])


def test_more_classes_than_the_pretrained_ones_are_refused():
    with pytest.raises(ValueError, match=r"4 classes with 3 sources each need 12 pretrained classes, .* has 10"):
        mapping(10, 4, sources=3)


def test_features_that_methods_have_widened_are_refused():
    with pytest.raises(ValueError, match="reads the 32 features of the backbone, and the methods make 40"):
        heads.build(MAPPING, backbone("timm_vit"), 40, ["a"])


def prompted():
    """A program around the images and a mapping, on a tiny model with six classes."""
    torch.manual_seed(0)
    model = VisionTransformer(**TIMM | {"num_classes": 6})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    body = wrap(model)
    methods = build({"name": "ilm_vp", "inner": 48}, body)
    return Tuned(body, methods, heads.build(MAPPING, body, feature_dim(body, methods), ["a", "b", "c"])).eval()


def test_only_the_prompt_is_trained_and_only_the_mapping_is_saved_with_it():
    model = prompted()
    keys = set(model.backbone.state_dict())
    assert [name for name, _ in model.trainable()] == ["methods.0.program"]
    assert {name for name in model.delta() if name.startswith("head.")} == {"head.mapping"}
    model.head.prepare(model, [(image(), torch.tensor([2, 0]))], 0)
    predicted = model.backbone.model.head(model.backbone(image())).argmax(dim=1)
    assert model.head.mapping[[2, 0], 0].tolist() == predicted.tolist()
    again = prompted()
    again.load_delta(model.delta())
    with torch.no_grad():
        assert torch.equal(again(image()), model(image()))
    assert set(model.backbone.state_dict()) == keys
    model(image()).sum().backward()
    assert model.methods[0].program.grad.any()
