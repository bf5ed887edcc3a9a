"""A segmentation run in two processes: the steps of one process, and one test of the model that is saved."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.data.masked_layouts import write_folder
from vpeft import run
from vpeft.config import parse
from vpeft.dense import mask_predictor
from vpeft.results import read_rows

ROOT = Path(__file__).parents[1]
# One image a batch: what BatchNorm sees in a process is then what it sees in each of two accumulated batches. SGD,
# because Adam makes whole steps of the rounding of a gradient.
TEXT = """
kind: segmentation
method: {{name: lora, rank: 2}}
head: {{name: linear_bn}}
auxiliary: {{name: fcn, width: 8, index: 0, dropout: 0.0}}
backbone: test_vit.r160_in1k
pretrained: none
image_size: 64
data: {{task: own, root: {root}, split: {split}, batch_size: 1, short_side: 64}}
optim: {{name: sgd, lr: 0.02, warmup_epochs: 0.5, schedule: poly}}
train: {{epochs: 2, accelerator: cpu, selection: {selection}}}
output: {output}
name: run
"""


@pytest.mark.parametrize(("split", "selection"), [("train", "best_val"), ("trainval", "last")])
def test_two_processes_take_the_steps_of_one_and_test_what_they_save(tmp_path, split, selection):
    root = write_folder(tmp_path / "own", {"train": 6, "val": 2, "test": 3}, ((64, 80), (72, 64)))
    file = tmp_path / "config.yaml"
    settings = {"root": root, "split": split, "selection": selection}
    file.write_text(TEXT.format(**settings, output=tmp_path / "double"))
    command = [sys.executable, "tools/train.py", str(file), "--train.strategy", "ddp", "--train.devices", "2"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(tmp_path / "double" / "results.jsonl")
    assert row["device"]["processes"] == 2
    assert row["test"]["images"] == 3, "an image in both shares counts once"

    file.write_text(TEXT.format(**settings, output=tmp_path / "single"))
    run.train(parse([str(file), "--train.accumulate", "2"]))
    one, two = (load_file(tmp_path / name / "run" / "adapter.safetensors") for name in ("single", "double"))
    statistics = {name for name in one if "running" in name or "num_batches" in name}
    assert statistics, "every process has its own, and the first one's are saved"
    for name in one.keys() - statistics:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-4 * one[name].abs().max().item())

    saved = mask_predictor.MaskPredictor(tmp_path / "double" / "run" / "adapter.safetensors", device="cpu")
    again, _ = mask_predictor.test(saved, [("data.root", str(root))], "the adapter")
    assert again.measures()["miou"] == row["test"]["miou"]
    assert again.loss == pytest.approx(row["test"]["loss"], rel=1e-6)
