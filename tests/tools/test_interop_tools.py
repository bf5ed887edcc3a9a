import json

import pytest
import torch
from safetensors.torch import load_file

from tests.adapters import NAME, images, save
from tests.interop import official_files as files
from tests.interop.models import weights
from tests.runs import write_images
from vpeft.checkpoint import load_adapter, read_manifest

LETTERS = "a,b,c,d,e"


@pytest.fixture
def fact(tmp_path):
    torch.save(files.fact_tt("cls_fact_tt"), tmp_path / "fact.pt")
    words = ("fact_tt", tmp_path / "fact.pt", "--backbone", "vpeft_golden_vit", "--pretrained", weights(tmp_path))
    return *words, "-o", tmp_path / "adapter.safetensors"


def test_an_official_file_becomes_an_adapter_that_predicts(tool, fact, tmp_path):
    ended = tool("import", *fact, "--method.scale", "0.5", "--classes", LETTERS, "--task", "mine")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == [
        f"wrote {tmp_path / 'adapter.safetensors'}",
        "the file holds nothing of the backbone, so nobody can tell whether it is the right one",
        "images are prepared as: normalization imagenet, resize squash, bicubic",
    ]
    manifest = read_manifest(tmp_path / "adapter.safetensors")
    assert manifest["method"] == [{"name": "fact_tt", "rank": 4, "scale": 0.5, "dropout": 0.1}]
    assert (manifest["classes"], manifest["task"]) == (["a", "b", "c", "d", "e"], "mine")
    assert manifest["normalization"]["mean"] == [0.485, 0.456, 0.406]
    assert manifest["source"]["repository"] == "JieShibo/PETL-ViT @ 026e4f1"
    image = write_images(tmp_path / "images", 1) / "red" / "0.png"
    ended = tool("predict", tmp_path / "adapter.safetensors", image, "--top", "1")
    assert ended.code == 0, ended.err
    assert "0.png" in ended.out


def test_an_imported_adapter_is_tested_and_merged(tool, tmp_path):
    content = files.ssf("cls_ssf")
    for part in ("weight", "bias"):
        content["state_dict"][f"head.{part}"] = content["state_dict"][f"head.{part}"][:3]
    torch.save(content, tmp_path / "ssf.pth.tar")
    (tmp_path / "names.txt").write_text("blue\ngreen\nred\n")
    words = ("--backbone", "vpeft_golden_vit", "--pretrained", weights(tmp_path), "--classes", tmp_path / "names.txt")
    adapter = tmp_path / "a.safetensors"
    ended = tool("import", "ssf", tmp_path / "ssf.pth.tar", *words, "-o", adapter)
    assert ended.code == 0, ended.err
    assert "42 of the backbone's 42 tensors are in the file and equal" in ended.out
    for part in ("train", "test"):
        write_images(tmp_path / "data" / part, 2)
    ended = tool("test", adapter, "--data.root", tmp_path / "data", "--data.format", "folder")
    assert ended.code == 0, ended.err
    assert "top-1" in ended.out
    ended = tool("merge", adapter, "-o", tmp_path / "merged.safetensors")
    assert ended.code == 0, ended.err
    assert "timm.create_model('vpeft_golden_vit', num_classes=3, img_size=(224, 224))" in ended.out
    assert not [key for key in load_file(tmp_path / "merged.safetensors") if "ssf" in key]


def test_peft_goes_out_and_comes_in(tool, adapter, tmp_path):
    tuned = save(adapter)
    ended = tool("export", adapter, "--format", "peft", "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert f"wrote {tmp_path / 'out'}" in ended.out
    assert f"load it with peft.PeftModel.from_pretrained(model, '{tmp_path / 'out'}')" in ended.out
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 4
    words = ("--backbone", NAME, "--pretrained", "none", "--image_size", "32", "--classes", "blue,green,red")
    ended = tool("import", "peft", tmp_path / "out", *words, "-o", tmp_path / "again.safetensors")
    assert ended.code == 0, ended.err
    again, _ = load_adapter(tmp_path / "again.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(again(images()), tuned(images()), rtol=1e-5, atol=1e-5)


def test_wrong_input_is_one_sentence(tool, fact, adapter, tmp_path):
    words = fact[1:]
    assert tool("import", "fact", *words).err.startswith("error: There is no kind of file 'fact'; did you mean 'fact_t")
    assert "does not hold the scale of fact_tt" in tool("import", *fact).err
    assert tool("import", *fact, "--method.scal", "1").err.count("\n") == 1
    assert (
        "there is no --scale; options of the method are --method.NAME VALUE"
        in tool("import", *fact, "--scale", "1").err
    )
    assert "--method.scale is not valid YAML: [" in tool("import", *fact, "--method.scale", "[").err
    assert "one file is expected, and 'more' is left over" in tool("import", *fact, "more").err
    named = tool("import", "fact_tt", *words[:-1], tmp_path / "adapter.pt", "--method.scale", "0.5")
    assert "adapter.pt is not a name for an adapter; it has to end in .safetensors" in named.err
    lost = tool("import", "ssf", tmp_path / "lost.pth", "--backbone", NAME, "--pretrained", "none", "-o", adapter)
    assert (lost.code, "There is no weights file" in lost.err) == (2, True)
    given = ("--backbone", NAME, "--pretrained", "none", "-o", adapter, "--method.rank", "2")
    assert "a folder of peft holds every option itself" in tool("import", "peft", tmp_path, *given).err
    assert tool("export", adapter, "-o", tmp_path / "out", "--format", "loha").code == 2
