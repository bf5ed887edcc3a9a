"""A segmentation run from its YAML to an adapter that gives the same predictions."""

import importlib.util
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.segmentation_runs import own_data, writer
from vpeft import run
from vpeft.checkpoint import load_adapter, read_manifest
from vpeft.config import ConfigError, parse, to_yaml
from vpeft.data.masks import ClassTable, read_mask
from vpeft.dense.iou import Areas, scores
from vpeft.dense.mask_predictor import MaskPredictor, save_mask
from vpeft.dense.segmentation_schema import InferenceConfig
from vpeft.predict import Classifier
from vpeft.results import read_rows
from vpeft.tasks.resuming import Interrupted
from vpeft.tasks.segmentation import Segmentation


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return own_data(tmp_path)


@pytest.fixture
def write(tmp_path, root):
    return writer(tmp_path, root)


def images(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "neck": "{name: vit_adapter, regime: extractor, inplanes: 4, heads: 2, vit_features: false, "
            "interactions: 2}",
            "head": "{name: uper, width: 8}",
            "method": "{name: linear}",
        },
        {
            "neck": "{name: layers, layers: [0, 1, 3, 5], rescale: pyramid}",
            "head": "{name: mask, width: 32, queries: 4, encoder_layers: 1, decoder_layers: 1, points: 16}",
        },
        {
            "method": "{name: rein, tokens: 4, rank: 2, query_dim: 32}",
            "neck": "{name: layers, layers: [0, 1, 3, 5], rescale: bilinear}",
            "head": "{name: mask, width: 32, queries: 4, encoder_layers: 1, decoder_layers: 1, points: 16, "
            "linked: true}",
        },
        {
            "method": "{name: vpt, prompts: 2}",
            "neck": "{name: layers, layers: [1, 3, 5]}",
            "head": "{name: setr, width: 8}",
            "auxiliary": "[{name: setr, width: 8, convs: 1, index: 0}, {name: setr, width: 8, convs: 1, index: 1}]",
        },
    ],
    ids=["linear_bn", "vit_adapter", "mask", "rein", "vpt on setr"],
)
def test_a_saved_adapter_predicts_to_the_bit_what_was_trained(write, tmp_path, options):
    config = parse([write(**options)])
    kept = {}
    assemble = run.assemble

    def watch(one):
        kept["job"] = job = assemble(one)
        return job

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "assemble", watch)
        row = run.train(config)
    assert row["kind"] == "segmentation"
    assert row["neck"] == config.neck
    assert 0 <= row["test"]["miou"] <= row["test"]["aacc"] <= 1
    assert set(row["test"]["per_class"]) == set(kept["job"].task.classes)
    assert row["selection"]["val_miou"] == pytest.approx(kept["job"].task.evaluation and row["selection"]["val_miou"])
    assert read_rows(tmp_path / "runs" / "results.jsonl") == [row]
    tuned, manifest = load_adapter(tmp_path / "runs/run/adapter.safetensors")
    trained = kept["job"].task.tuned.eval()
    seen = images().float() / 255
    with torch.no_grad():
        assert torch.equal(tuned(seen), trained(seen))
    statistics = [name for name in tuned.delta() if name.endswith("running_var")]
    assert any(not torch.equal(tuned.delta()[name], torch.ones_like(tuned.delta()[name])) for name in statistics)
    assert manifest["kind"] == "segmentation"
    assert manifest["result"]["test_miou"] == row["test"]["miou"]


def test_a_resolved_configuration_runs_again_as_it_is(write, tmp_path):
    config = parse([write(), "--neck.name", "layers", "--head.name", "fcn", "--head.index", "-1"])
    assert config.neck["name"] == "layers"
    assert config.head == {"name": "fcn", "width": 256, "convs": 1, "index": -1, "dropout": 0.1}
    saved = tmp_path / "saved.yaml"
    saved.write_text(to_yaml(config))
    assert parse([str(saved)]) == config


def test_a_stopped_run_goes_on_to_the_same_bits(write, monkeypatch):
    whole = run.train(parse([write("whole.yaml", "whole")]))
    file = write("parts.yaml", "parts")
    config = parse([file])

    original, count = Segmentation.training_step, {"steps": 0}

    def stopping(self, batch, batch_idx):
        count["steps"] += 1
        if count["steps"] == 4:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Segmentation, "training_step", stopping)
    with pytest.raises(Interrupted):
        run.train(config)
    monkeypatch.undo()
    resumed = run.train(parse([file, "--train.resume", "true"]))
    assert resumed["test"] == whole["test"]
    assert resumed["selection"] == whole["selection"]


def test_an_adapter_names_its_kind(write, tmp_path):
    run.train(parse([write(), "--train.epochs", "1", "--optim.warmup_epochs", "0"]))
    manifest = read_manifest(tmp_path / "runs/run/adapter.safetensors")
    assert (manifest["kind"], manifest["ignored"], manifest["inference"]["mode"]) == ("segmentation", 255, "slide")


def test_an_adapter_is_tested_and_predicts_from_the_command_line(write, root, tmp_path, capsys, monkeypatch):
    config = parse([write(), "--train.epochs", "1", "--optim.warmup_epochs", "0"])
    row = run.train(config)
    adapter = str(tmp_path / "runs/run/adapter.safetensors")
    capsys.readouterr()
    for name, value in {"JOB_ID": "7", "JOB_NAME": "x", "NTASKS": "2", "PROCID": "1", "LOCALID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)  # a batch script is no task, and nothing waits for a second one
    tool("test")([adapter, "--data.root", str(root)])
    assert f"mIoU {row['test']['miou']:.2%}" in capsys.readouterr().out
    image = next((root / "images/test").glob("*.png"))
    assert tool("predict")([adapter, str(image), "--masks", str(tmp_path / "masks")]) == 0
    mask = np.array(Image.open(tmp_path / "masks" / image.name))
    assert mask.shape == np.array(Image.open(image)).shape[:2]
    assert set(np.unique(mask)) <= {0, 1, 2}
    with pytest.raises(ConfigError, match="of kind segmentation: give --masks DIR"):
        tool("predict")([adapter, str(image)])
    with pytest.raises(ConfigError, match=r"--data.crop cannot be changed for a test"):
        tool("test")([adapter, "--data.crop", "3"])
    with pytest.raises(ValueError, match="is an adapter of kind segmentation, and this needs one that classifies"):
        Classifier(adapter)


def test_trained_weights_are_tested_at_several_scales_and_mirrored(write, root, tmp_path, capsys):
    run.train(parse([write(), "--train.epochs", "1", "--optim.warmup_epochs", "0"]))
    adapter = tmp_path / "runs/run/adapter.safetensors"
    capsys.readouterr()
    words = ["--data.root", str(root), "--inference.scales", "[0.75, 1.25]", "--inference.flip", "true"]
    tool("test")([str(adapter), *words])
    said = capsys.readouterr().out
    assert "inference slide at 0.75 1.25, mirrored too" in " ".join(said.split())

    predictor = MaskPredictor(adapter, device="cpu")
    predictor.task.infer_with(InferenceConfig(scales=[0.75, 1.25], flip=True))
    areas = Areas(3)
    for at, image in enumerate(sorted((root / "images/test").glob("*.png"))):
        labels = read_mask(root / "masks/test" / image.name, predictor.table)
        areas.add(torch.from_numpy(predictor(image))[None], torch.from_numpy(labels).long()[None], torch.tensor([at]))
    assert f"mIoU {scores(areas.total()).miou:.2%}" in said
    with pytest.raises(ConfigError, match=r"--inference.scale cannot be changed for a test; did you mean 'inference.s"):
        tool("test")([str(adapter), "--inference.scale", "[1.0]"])
    with pytest.raises(ValueError, match=r"inference.stride is 65, and windows are 64x64 pixels"):
        tool("test")([str(adapter), "--data.root", str(root), "--inference.stride", "65"])


def test_a_prompt_on_the_border_leaves_an_image_where_it_is(write):
    assert parse([write(method="{name: ilm_vp, kind: border, inner: 32}")]).method["kind"] == "border"


def test_a_network_tested_in_one_pass_predicts_images_that_do_not_fit_it(write, root, tmp_path):
    """All that is evaluated fits; what is predicted is wider, and an image that fits has the same mask either way."""
    for part in ("val", "test"):
        for kind in ("images", "masks"):
            for file in (root / kind / part).iterdir():
                Image.open(file).crop((0, 0, 64, 64)).save(file)
    words = ["--inference.mode", "whole", "--train.epochs", "1", "--optim.warmup_epochs", "0"]
    run.train(parse([write(), *words]))
    predictor = MaskPredictor(tmp_path / "runs/run/adapter.safetensors", device="cpu")
    image = next((root / "images/test").iterdir())
    pixels = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)[None]
    with torch.no_grad():
        assert np.array_equal(predictor(image), predictor.task(pixels, (64, 64))[0].argmax(0).numpy())
    wide = tmp_path / "wide.png"
    Image.open(image).resize((130, 64)).save(wide)
    assert predictor(wide).shape == (64, 130)


def test_masks_are_read_in_a_test_as_they_were_in_training(write, root, tmp_path, capsys):
    """Ids on disk from 1, 0 ignored; read without that they would be ids of the table too, each another class."""
    for file in (root / "masks").rglob("*.png"):
        mask = np.array(Image.open(file))
        Image.fromarray(np.where(mask == 255, 0, np.minimum(mask, 1) + 1).astype(np.uint8)).save(file)
    words = ["--data.reduce_zero_label", "true", "--train.epochs", "1", "--optim.warmup_epochs", "0"]
    row = run.train(parse([write(), *words]))
    capsys.readouterr()
    tool("test")([str(tmp_path / "runs/run/adapter.safetensors"), "--data.root", str(root)])
    assert f"mIoU {row['test']['miou']:.2%}, aAcc {row['test']['aacc']:.2%}" in capsys.readouterr().out


@pytest.mark.parametrize("count", [255, 256])
def test_a_saved_mask_is_read_back_as_it_was(tmp_path, count):
    table = ClassTable.of([str(i) for i in range(count)])
    mask = np.arange(count).reshape(1, -1)
    save_mask(mask, table, tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", table), mask)


def test_another_name_drops_the_options_of_the_old_one(write):
    config = parse([write(head="{name: uper, width: 8}"), "--head.name", "linear_bn", "--neck.name", "layers"])
    assert config.head == {"name": "linear_bn"}
    assert config.neck["layers"] is None


def test_masks_do_not_replace_the_images_they_are_of(write, root, tmp_path):
    run.train(parse([write(), "--train.epochs", "1", "--optim.warmup_epochs", "0"]))
    image = next((root / "images/test").glob("*.png"))
    before = image.read_bytes()
    with pytest.raises(ValueError, match="would replace an image that is to be segmented"):
        tool("predict")([str(tmp_path / "runs/run/adapter.safetensors"), str(image), "--masks", str(image.parent)])
    assert image.read_bytes() == before


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main
