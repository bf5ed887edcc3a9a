"""Two processes that share one model between them (FSDP2), on a CPU."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from tests.runs import SGD, tiny_config, write_images
from vpeft import backbones
from vpeft.config import to_yaml
from vpeft.results import read_rows
from vpeft.run import train
from vpeft.tasks.build import build_task

ROOT = Path(__file__).parents[1]


def test_two_processes_stopped_and_resumed_equal_one_with_the_same_global_batch(tmp_path):
    images = write_images(tmp_path / "images" / "colors")
    single = train(tiny_config(images, tmp_path / "single", optim=SGD, epochs=6, clip=0.5))
    config = tiny_config(images, tmp_path / "double", optim=SGD, epochs=6, clip=0.5, strategy="fsdp", devices=2)
    config.data.batch_size //= 2
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, "tools/train.py", str(file)]

    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stdout is not None
    while not (line := first.stdout.readline()).startswith("epoch 2/"):
        assert line, first.communicate()
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 143, (first.returncode, said)

    done = subprocess.run([*command, "--train.resume", "true"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(tmp_path / "double" / "results.jsonl")
    assert row["device"]["processes"] == 2
    assert row["parameters"] == single["parameters"]
    assert row["test"]["accuracy"] == single["test"]["accuracy"]
    assert row["test"]["loss"] == pytest.approx(single["test"]["loss"], rel=1e-4)
    one, two = (load_file(tmp_path / name / "run" / "adapter.safetensors") for name in ("single", "double"))
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-4 * one[name].abs().max().item())


def test_every_process_holds_half_of_every_weight(tmp_path):
    multiprocessing.spawn(hold, (str(tmp_path / "meeting"),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]


def hold(rank: int, meeting: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    config = tiny_config(Path(), Path())
    body = backbones.create(config.backbone, "none", 32)
    whole = {name: p.numel() for name, p in body.named_parameters()}
    task = build_task(config, body, ["a", "b"])
    task._device_mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    task.configure_model()
    for name, p in task.tuned.backbone.named_parameters():
        assert isinstance(p.data, DTensor), name
    held = sum(p.to_local().numel() for p in task.tuned.backbone.parameters())  # pyright: ignore
    assert held <= 0.55 * sum(whole.values()), "a row that cannot be halved is rounded up"
    torch.distributed.destroy_process_group()
