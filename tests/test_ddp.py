import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import SGD, tiny_config, write_images
from vpeft.config import to_yaml
from vpeft.results import read_rows
from vpeft.run import train

ROOT = Path(__file__).parents[1]


def test_two_processes_stopped_and_resumed_equal_one_with_the_same_global_batch(tmp_path):
    images = write_images(tmp_path / "images" / "colors")
    single = train(tiny_config(images, tmp_path / "single", optim=SGD, epochs=6, selection="best_val", ema=0.8))
    config = tiny_config(
        images, tmp_path / "double", optim=SGD, epochs=6, selection="best_val", ema=0.8, strategy="ddp", devices=2
    )
    config.data.batch_size //= 2
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, "tools/train.py", str(file)]

    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stdout is not None
    while not (line := first.stdout.readline()).startswith("epoch 2/"):
        assert line, first.communicate()
    first.send_signal(signal.SIGTERM)  # to the first process alone, as a scheduler may
    _, said = first.communicate(timeout=60)
    assert first.returncode == 143, (first.returncode, said)
    assert said.count("Stopped by SIGTERM after") == 1

    done = subprocess.run([*command, "--train.resume", "true"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1, "only the first process reports"
    (row,) = read_rows(tmp_path / "double" / "results.jsonl")
    assert [path.name for path in (tmp_path / "double").iterdir() if path.is_dir()] == ["run"]
    assert row["device"]["processes"] == 2
    assert row["test"]["images"] == single["test"]["images"] == 15, "an image in both shares counts once"
    assert row["test"]["accuracy"] == single["test"]["accuracy"]
    assert row["test"]["loss"] == pytest.approx(single["test"]["loss"], rel=1e-4)
    assert row["selection"] == single["selection"]
    one, two = (load_file(tmp_path / name / "run" / "adapter.safetensors") for name in ("single", "double"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-4 * one[name].abs().max().item())
