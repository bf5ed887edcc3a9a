"""The commands of the README on the embedded data, with few steps."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from vpeft.data.prepare import suite_dir
from vpeft.results import read_rows

ROOT = Path(__file__).parents[1]


def tool(name, *arguments, code=0):
    """Standard output of a tool; standard error if it was to fail."""
    command = [sys.executable, f"tools/{name}.py", *map(str, arguments)]
    # No hub, no GPU: the machine the README promises.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_train_test_and_predict_with_the_real_backbone(tmp_path):
    shown = tool(
        "train", "configs/vtab/lora.yaml", "--output", tmp_path, "--name", "run", "--image_size", 28,
        "--train.epochs", 1, "--optim.warmup_epochs", 0.3,
    )  # fmt: skip
    (row,) = read_rows(tmp_path / "results.jsonl")
    assert row["backbone"]["weights"]["source"] == "embedded"
    assert row["data"]["format"] == "embedded"
    assert row["data"]["counts"] == {"train": 1000, "val": 0, "test": 1000}
    # One epoch on 2x2 patches reaches 0.8; random weights 0.10, which is chance.
    assert row["test"]["accuracy"] > 0.6
    assert f"{row['test']['accuracy']:.2%} of 1,000 images" in shown
    adapter = tmp_path / "run" / "adapter.safetensors"
    assert adapter.stat().st_size < 1_000_000
    assert f"{row['test']['accuracy']:.2%}" in tool("test", adapter)
    image = next((suite_dir() / "digits").rglob("*.png"))
    tool("predict", adapter, image, "--csv", tmp_path / "top.csv")
    with (tmp_path / "top.csv").open() as file:
        predictions = list(csv.reader(file))
    assert len(predictions) == 6, "a header and five classes"
    assert {line[0] for line in predictions[1:]} == {str(image)}


def test_the_smallest_config_runs_as_it_stands_and_its_saved_copy_repeats_it(tmp_path):
    tool("train", "configs/debug/tiny.yaml", "--output", tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {
        "adapter.safetensors", "config.yaml", "last.ckpt", "result.json", "run.json", "tensorboard",
    }  # fmt: skip
    tool("train", folder / "config.yaml")
    first, second = read_rows(tmp_path / "results.jsonl")
    assert second["folder"] == f"{folder}-2"
    assert second["test"] == first["test"]
    assert json.loads((folder / "result.json").read_text()) == first
    weights = [load_file(Path(row["folder"]) / "adapter.safetensors") for row in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    said = tool("train", folder / "config.yaml", "--train.epochs", 5, "--optim.warmup_epochs", 5, code=2)
    assert "the learning rate would never reach its peak" in said


def test_the_readmes_first_config_trains_prompts_on_the_embedded_backbone(tmp_path):
    tool(
        "train", "configs/vtab/vpt.yaml", "--output", tmp_path, "--image_size", 28, "--method.prompts", 2,
        "--train.epochs", 2, "--optim.warmup_epochs", 0.3,
    )  # fmt: skip
    (row,) = read_rows(tmp_path / "results.jsonl")
    assert (row["method"][0]["name"], row["backbone"]["weights"]["source"]) == ("vpt", "embedded")
    assert row["test"]["accuracy"] > 0.3, "chance is 0.10"
