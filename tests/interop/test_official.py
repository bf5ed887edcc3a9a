"""A file with official names becomes an adapter whose logits are the official ones."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.golden import golden, images
from tests.interop import official_files as files
from tests.interop.models import weights
from vpeft.backbones import create
from vpeft.checkpoint import load_adapter
from vpeft.interop import imported, official
from vpeft.interop.command import classes_of
from vpeft.interop.imported import Preparation

VIT, SWIN, SWIN_VPT = "vpeft_golden_vit", "vpeft_golden_swin", "vpeft_golden_swin_vpt"
BASES = {VIT: "cls_base", SWIN: "swin_base", SWIN_VPT: "swin_vpt_base"}

CASES: dict[str, tuple[str, Callable[[str], Any], str, dict[str, Any]]] = {
    "cls_vpt_shallow": ("vpt", files.vpt, VIT, {}),
    "cls_vpt_deep": ("vpt", files.vpt, VIT, {}),
    "cls_vpt_deep_proj": ("vpt", files.vpt, VIT, {}),
    "swin_vpt_shallow": ("vpt", files.vpt_swin, SWIN_VPT, {}),
    "swin_vpt_deep": ("vpt", files.vpt_swin, SWIN_VPT, {}),
    "cls_adaptformer": ("adaptformer", files.adaptformer, VIT, {}),
    "cls_ssf": ("ssf", files.ssf, VIT, {}),
    "swin_ssf": ("ssf", files.ssf_swin, SWIN, {}),
    "cls_fact_tt": ("fact_tt", files.fact_tt, VIT, {"scale": 0.5}),
    "cls_fact_tk": ("fact_tk", files.fact_tk, VIT, {"scale": 0.5}),
}


def read(kind: str, content: Any, tmp_path: Path, backbone: str = VIT, options: dict[str, Any] | None = None) -> Any:
    torch.save(content, tmp_path / "official.pth")
    file = weights(tmp_path, BASES[backbone])
    body = create(backbone, str(file))
    return official.read(kind, tmp_path / "official.pth", body, options), body, str(file)


def imported_logits(found: Any, body: Any, file: str, tmp_path: Path, asked: Preparation | None = None) -> Any:
    imported.save(found, body, file, tmp_path / "adapter.safetensors", asked)
    tuned, manifest = load_adapter(tmp_path / "adapter.safetensors")
    with torch.no_grad():
        return tuned(images(body.image_size[0])), manifest


@pytest.mark.parametrize("name", CASES)
def test_an_official_file_gives_the_official_logits(name, tmp_path):
    kind, written, backbone, options = CASES[name]
    found, body, file = read(kind, written(name), tmp_path, backbone, options)

    logits, manifest = imported_logits(found, body, file, tmp_path)

    torch.testing.assert_close(logits, golden(name)["output/logits"], atol=1e-5, rtol=1e-5)
    assert manifest["method"][0]["name"] == kind
    assert manifest["classes"] == [f"class {i}" for i in range(5)]
    digest = hashlib.sha256((tmp_path / "official.pth").read_bytes()).hexdigest()
    assert (manifest["source"]["file"], manifest["source"]["sha256"]) == ("official.pth", digest)


def test_what_the_shapes_say_becomes_options(tmp_path):
    shallow, deep = ("cls_vpt_shallow", "cls_vpt_deep_proj")
    spec = read("vpt", files.vpt(shallow), tmp_path)[0].method
    assert (spec["prompts"], spec["deep"], spec["project"]) == (4, False, None)
    spec = read("vpt", files.vpt(deep), tmp_path)[0].method
    assert (spec["prompts"], spec["deep"], spec["project"]) == (4, True, 8)
    assert read("adaptformer", files.adaptformer("cls_adaptformer"), tmp_path)[0].method["bottleneck"] == 8
    assert read("fact_tk", files.fact_tk("cls_fact_tk"), tmp_path, options={"scale": 0.5})[0].method["rank"] == 4


def test_an_option_that_is_given_stands_over_the_official_one(tmp_path):
    content = files.adaptformer("cls_adaptformer")
    assert read("adaptformer", content, tmp_path)[0].method["scale"] == 0.1
    assert read("adaptformer", content, tmp_path, options={"scale": 0.2})[0].method["scale"] == 0.2


def test_prompts_alone_are_read_and_the_missing_head_is_said(tmp_path):
    found, body, file = read("vpt", files.vpt_prompts("cls_vpt_deep"), tmp_path)
    with pytest.raises(ValueError, match=r"official.pth holds no head and says nothing of classes; give --classes"):
        imported.save(found, body, file, tmp_path / "adapter.safetensors")
    found, body, file = read("vpt", files.vpt_prompts("cls_vpt_deep"), tmp_path)
    notes = imported.save(found, body, file, tmp_path / "a.safetensors", Preparation(classes=["cat", "dog"]))
    assert any("the head is not in the file" in note for note in notes)
    assert any("holds nothing of the backbone" in note for note in notes)
    tuned, _ = load_adapter(tmp_path / "a.safetensors")
    with torch.no_grad():
        features = tuned.backbone(images())
        assert tuned(images()).abs().max() == 0
    torch.testing.assert_close(features, golden("cls_vpt_deep")["output/features"], atol=1e-5, rtol=1e-5)


def test_adaptformers_batch_norm_head_is_taken_with_its_statistics(tmp_path):
    content = files.adaptformer("cls_adaptformer", batch_norm=True)
    found, body, file = read("adaptformer", content, tmp_path)
    logits, manifest = imported_logits(found, body, file, tmp_path)
    state, features = content["model"], golden("cls_adaptformer")["output/features"]
    normed = (features - state["head.0.running_mean"]) / (state["head.0.running_var"] + 1e-6).sqrt()
    expected = normed @ state["head.1.weight"].T + state["head.1.bias"]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert manifest["head"]["batch_norm"] is True


def test_safetensors_and_a_running_average_are_read(tmp_path):
    file = weights(tmp_path)
    save_file(files.fact_tt("cls_fact_tt"), tmp_path / "fact.safetensors")
    body = create(VIT, str(file))
    found = official.read("fact_tt", tmp_path / "fact.safetensors", body, {"scale": 0.5})
    logits, _ = imported_logits(found, body, str(file), tmp_path)
    torch.testing.assert_close(logits, golden("cls_fact_tt")["output/logits"], atol=1e-5, rtol=1e-5)
    content = files.ssf("cls_ssf")
    average = {key: value + 1e-7 for key, value in content["state_dict"].items()}
    live = {key: value + 1 if "ssf_" in key else value for key, value in content["state_dict"].items()}
    found, _, _ = read("ssf", content | {"state_dict": live, "state_dict_ema": average}, tmp_path)
    torch.testing.assert_close(found.state["pairs.0.gamma"], golden("cls_ssf")["method/patch_embed.scale"])


def test_the_backbone_in_the_file_is_compared(tmp_path):
    found, _, _ = read("vpt", files.vpt("cls_vpt_deep"), tmp_path)
    assert found.notes == ["42 of the backbone's 42 tensors are in the file and equal"]
    content = files.ssf("cls_ssf")
    content["state_dict"]["blocks.1.mlp.fc1.weight"] = content["state_dict"]["blocks.1.mlp.fc1.weight"] + 1e-2
    with pytest.raises(ValueError, match=r"other weights than those of vpeft_golden_vit here: 1 of 42 tensors differ"):
        read("ssf", content, tmp_path)


def test_tensors_that_nobody_asked_for_are_counted(tmp_path):
    content = files.ssf("cls_ssf")
    content["state_dict"]["pre_logits.fc.weight"] = torch.zeros(2)
    found, _, _ = read("ssf", content, tmp_path)
    assert "1 tensors of the file were not used: pre_logits.fc.weight" in found.notes


def broken(kind: str, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    content = {
        "vpt": lambda: files.vpt("cls_vpt_deep")["model"],
        "adaptformer": lambda: files.adaptformer("cls_adaptformer")["model"],
        "ssf": lambda: files.ssf("cls_ssf")["state_dict"],
        "fact_tt": lambda: files.fact_tt("cls_fact_tt"),
    }[kind]()
    change(content)
    return content


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("adaptformer", lambda s: s.pop("blocks.1.adaptmlp.up_proj.bias"), "lacks blocks.1.adaptmlp.up_proj.bias"),
        ("adaptformer", lambda s: s.pop("blocks.0.adaptmlp.down_proj.weight"), "it is not a file of this method"),
        ("adaptformer", lambda s: s.update({"embeddings.0": torch.zeros(1, 2, 32)}), "holds embeddings.0, for which"),
        ("adaptformer", lambda s: s.pop("head.bias"), "lacks head.bias"),
        ("ssf", lambda s: s.update({"ssf_scale_1": torch.ones(33)}), r"ssf_scale_1 as \[33\], and .* need \[32\]"),
        ("ssf", lambda s: s.update({"blocks.3.ssf_scale_1": torch.ones(32)}), "holds blocks.3.ssf_scale_1, for which"),
        ("vpt", lambda s: s.update({"head.projection.0.weight": torch.ones(2)}), "holds head.projection.0.weight"),
        (
            "vpt",
            lambda s: s.update({"enc.transformer.deep_prompt_embeddings": torch.zeros(2, 5, 32)}),
            r"do not fit each other: prompt_embeddings \[1, 4, 32\], deep_prompt_embeddings \[2, 5, 32\]",
        ),
        ("fact_tt", lambda s: s.update({"FacTc": torch.zeros(4, 4, 4)}), "holds FacTc, for which"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_words(kind, change, said, tmp_path):
    options = {"scale": 0.5} if kind == "fact_tt" else {}
    with pytest.raises(ValueError, match=said):
        read(kind, broken(kind, change), tmp_path, options=options)


def test_the_scale_of_fact_has_to_be_given(tmp_path):
    with pytest.raises(ValueError, match=r"does not hold the scale of fact_tt; it is `scale` in configs/tt/TASK.yaml"):
        read("fact_tt", files.fact_tt("cls_fact_tt"), tmp_path)


class Runs:
    def __reduce__(self) -> Any:
        return (print, ("this must not run",))


def test_a_pickle_that_asks_for_code_is_not_opened(tmp_path, capsys):
    for content in ({"model": Runs()}, files.fact_tt("cls_fact_tt") | {"more": Runs()}):
        with pytest.raises(ValueError, match="is not opened: its pickle is not plain tensors"):
            read("fact_tt", content, tmp_path, options={"scale": 0.5})
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(ValueError, match=r"plain\.pth is (not opened|damaged)"):
        official.read("fact_tt", tmp_path / "plain.pth", create(VIT, str(weights(tmp_path))), {"scale": 0.5})
    assert "this must not run" not in capsys.readouterr().out


def test_a_backbone_that_pools_its_patches_cannot_take_prompts_of_the_official_code(tmp_path):
    file = weights(tmp_path)
    body: Any = create(VIT, str(file))
    body.model.global_pool = "avg"
    torch.save(files.vpt("cls_vpt_deep"), tmp_path / "official.pth")
    with pytest.raises(ValueError, match="averages its patches"):
        official.read("vpt", tmp_path / "official.pth", body)


def test_classes_that_do_not_fit_the_head_are_refused(tmp_path):
    for asked, said in (
        (Preparation(classes=["a", "b"]), "has 5 classes, and 2 were named"),
        (Preparation(classes=["a", "b", "c", "d", "a"]), "Two classes are named 'a'"),
        (Preparation(task="cifar100"), "has 5 classes, and 100 were named"),
    ):
        found, body, file = read("ssf", files.ssf("cls_ssf"), tmp_path)
        with pytest.raises(ValueError, match=said):
            imported.save(found, body, file, tmp_path / "adapter.safetensors", asked)
    assert not (tmp_path / "adapter.safetensors").exists()


def test_a_head_of_another_width_is_refused(tmp_path):
    content = files.ssf("cls_ssf")
    content["state_dict"]["head.weight"] = torch.zeros(5, 16)
    found, body, file = read("ssf", content, tmp_path)
    with pytest.raises(ValueError, match="reads 16 features; vpeft_golden_vit has 32"):
        imported.save(found, body, file, tmp_path / "adapter.safetensors")


def test_a_backbone_that_the_official_code_does_not_know_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no fact_tt for a backbone like vpeft_golden_swin: it has no name for"):
        read("fact_tt", files.fact_tt("cls_fact_tt"), tmp_path, SWIN, {"scale": 0.5})


def test_a_hundred_classes_on_the_command_line_are_no_name_of_a_file(tmp_path):
    assert classes_of(", ".join(f"class {i}" for i in range(100)))[99] == "class 99"
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n")
    assert classes_of(str(tmp_path / "classes.txt")) == ["cat", "dog"]
