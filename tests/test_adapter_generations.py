"""Adapters that earlier states of the project saved are loaded, and their models say what they said then.

tests/golden/make_adapters.py made them; what it needs to be an adapter of another time is in tests/golden/adapters.
"""

from __future__ import annotations

import csv
import functools
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import mllm.adapter
from tests.golden import adapters, make_adapters
from tests.golden.adapters import FILES, SIDE, found, load, outputs, pixels, prepared, said
from vpeft import adapter_file, checkpoint
from vpeft.backbones import create
from vpeft.methods import METHODS
from vpeft.record import parameter_counts

TOOLS = Path(__file__).parents[1] / "tools"
FOUND = {f"{path.parent.name}/{path.stem}": path for path in found()}
# Kinds of methods that a merged file can hold, by the README.
MERGED = {"bitfit", "difffit", "dora", "fact_tk", "fact_tt", "fishmask", "full", "ia3", "krona", "layernorm", "linear"}
MERGED |= {"adalora", "lora", "lora_fa", "mtlora", "partial", "repadapter", "ssf"}


def written(path: Path) -> dict[str, Any]:
    """The manifest as it stands in the file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    (key,) = metadata.keys() - {"format"}
    return json.loads(metadata[key])


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(path, id=name) for name, path in FOUND.items() if written(path)["kind"] == kind]


def merged() -> list[Any]:
    return [one for one in of_kind("classification") if methods_of(one.values[0]) <= MERGED]


def methods_of(path: Path) -> set[str]:
    return {spec["name"] for spec in written(path)["method"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the models that the adapters stand beside, and the two images."""
    folder = tmp_path_factory.mktemp("generations")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with prepared(folder):
            for index, image in enumerate(pixels()):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
            yield folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def loaded(place):
    """What loads an adapter, once for all tests that change nothing of it."""
    return functools.cache(load)


def tool(name: str, *words: object) -> Any:
    return runpy.run_path(str(TOOLS / f"{name}.py"))["main"]([str(word) for word in words])


def same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", FOUND.values(), ids=FOUND.keys())
def test_a_model_says_what_it_said_when_its_adapter_was_saved(path, loaded):
    model, manifest = loaded(path)
    assert not model.training
    same(outputs(model, manifest), load_file(said(path)))


@pytest.mark.parametrize("path", FOUND.values(), ids=FOUND.keys())
def test_a_loaded_adapter_is_saved_again_with_the_same_tensors(path, loaded, tmp_path):
    """Those too that no output follows from: statistics of training, heads that only training uses."""
    model, manifest = loaded(path)
    save = mllm.adapter.save_adapter if manifest["kind"] == "mllm" else checkpoint.save_adapter
    save(tmp_path / "again.safetensors", model, manifest)
    torch.testing.assert_close(load_file(tmp_path / "again.safetensors"), load_file(path), rtol=0, atol=0)


@pytest.mark.parametrize("path", FOUND.values(), ids=FOUND.keys())
def test_what_an_adapter_says_of_itself_is_read_as_it_was_written_and_is_true(path, loaded):
    model, manifest = loaded(path)
    then = written(path)
    assert manifest.items() >= then.items()
    tower = model.vision.backbone if then["kind"] == "mllm" else model.backbone
    assert tower.weights.sha256 == then["backbone"]["weights"]["sha256"]
    assert tower.name == then["backbone"]["name"]
    counts = parameter_counts(model) if then["kind"] != "mllm" else counted(model)
    assert {name: counts.get(name) for name in then["parameters"]} == then["parameters"]


def counted(model: Any) -> dict[str, int]:
    """Trained parameters of each component of a multimodal model, frozen ones and all."""
    counts = {name: sum(parameter.numel() for _, parameter in of) for name, of in model.components().items()}
    total = sum(parameter.numel() for parameter in model.parameters())
    return counts | {"frozen": total - sum(counts.values()), "total": total}


@pytest.mark.parametrize("path", of_kind("classification"))
def test_predict_gives_the_probabilities_of_then(path, tmp_path):
    assert tool("predict", path, "0.png", "1.png", "--device", "cpu", "--csv", tmp_path / "top.csv") == 0
    classes = written(path)["classes"]
    given = torch.full((2, len(classes)), torch.nan)
    for row in csv.DictReader((tmp_path / "top.csv").open()):
        given[int(Path(row["path"]).stem), classes.index(row["class"])] = float(row["probability"])
    same(given, load_file(said(path))["logits"].softmax(dim=1))


def test_a_backbone_that_has_moved_is_given_to_a_tool(tmp_path, monkeypatch, place):
    path = FOUND["1/lora"]
    monkeypatch.chdir(tmp_path)
    weights = place / FILES[written(path)["backbone"]["name"]]
    words = ["--weights", weights, "--device", "cpu", "--csv", "top.csv"]
    assert tool("predict", path, place / "0.png", *words) == 0
    likeliest = Path("top.csv").read_text().splitlines()[1].split(",")[-1]
    expected = load_file(said(path))["logits"][0].softmax(dim=0).max().item()
    assert float(likeliest) == pytest.approx(expected, rel=0, abs=1e-5)


@pytest.mark.parametrize("path", merged())
def test_a_merged_model_says_what_the_adapter_said(path, tmp_path):
    file = tmp_path / "merged.safetensors"
    tool("merge", path, "-o", file)
    then, state = written(path), load_file(file)
    mean, std = (torch.tensor(then["normalization"][name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    seen = (pixels() / 255 - mean) / std
    name = then["backbone"]["name"]
    with torch.no_grad():
        if ":" not in name:
            model = timm.create_model(name, num_classes=3, img_size=(SIDE, SIDE)).eval()
            model.load_state_dict(state)
            logits = model(seen)
        else:
            body, head = create(name, FILES[name]), load_file(tmp_path / "merged.head.safetensors")
            body.model.load_state_dict(state)
            logits = torch.nn.functional.linear(body(seen), head["linear.weight"], head["linear.bias"])
    same(logits, load_file(said(path))["logits"])


def test_a_multimodal_adapter_is_merged(tmp_path):
    """The tool compares what transformers makes of the folder with the adapter's model before it writes it."""
    tool("merge", FOUND["1/mllm_mlp_lora"], "-o", tmp_path / "merged")
    assert (tmp_path / "merged/config.json").is_file()


def test_every_method_and_every_case_has_an_adapter():
    missing = set(METHODS) - set().union(*map(methods_of, FOUND.values()))
    assert not missing, f"give {missing} a case in tests/golden/make_adapters.py and run it, as CONTRIBUTING.md says"
    newest = {path.stem for path in FOUND.values() if path.parent.name == make_adapters.GENERATION}
    assert newest == set(make_adapters.CASES)
    assert {said(path) for path in FOUND.values()} == set(adapters.HERE.glob(f"*/*{adapters.SAID}"))
    assert {adapter_file.package(path) for path in FOUND.values()} == {"vpeft", "mllm"}


def test_an_adapter_is_never_made_again():
    before = FOUND["1/lora"].read_bytes()
    with pytest.raises(SystemExit, match="lora of generation 1 is there already, and is kept as it is"):
        make_adapters.main(["lora"])
    assert FOUND["1/lora"].read_bytes() == before
