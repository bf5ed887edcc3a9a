"""A run of several tasks from its YAML to an adapter that gives the same outputs."""

import os
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vpeft import run
from vpeft.checkpoint import load_adapter
from vpeft.config import ConfigError, parse, to_yaml
from vpeft.results import read_rows
from vpeft.tasks.multitask import MultiTaskModule
from vpeft.tasks.resuming import Interrupted
from vpeft.tasks.summary import print_summary

ROOT = Path(__file__).parents[1]
TASKS = ["semseg", "human_parts", "saliency", "normals"]
TEXT = """
kind: multitask
method: {method}
backbone: test_vit.r160_in1k
pretrained: none
image_size: 32
single_task: {{semseg: 50, human_parts: 50, saliency: 50, normals: 20}}
data: {{batch_size: 4, eval_batch_size: 4, train_scenes: 8, val_scenes: 5}}
optim: {{lr: 1e-3, warmup_epochs: 0.5, schedule: poly}}
train: {{epochs: 3, val_every: 2, ema: 0.5, accelerator: cpu}}
output: {output}
name: run
"""
MTLORA = "{name: mtlora, rank: 2, task_rank: 1}"


@pytest.fixture
def write(tmp_path):
    def make(output: str = "runs", method: str = MTLORA) -> str:
        file = tmp_path / f"{output}.yaml"
        file.write_text(TEXT.format(method=method, output=tmp_path / output))
        return str(file)

    return make


@pytest.mark.parametrize(
    "method",
    [MTLORA, "{name: polyhistor, lite: true, ratio: 4, rank: 2, embedding: 4}", "{name: bitfit}", "{name: linear}"],
    ids=["mtlora", "polyhistor", "bitfit", "linear"],
)
def test_a_saved_adapter_gives_to_the_bit_what_was_trained(write, tmp_path, method, monkeypatch):
    kept = {}
    assemble = run.assemble
    monkeypatch.setattr(run, "assemble", lambda one: kept.setdefault("job", assemble(one)))
    row = run.train(parse([write(method=method)]))
    task = kept["job"].task
    assert (row["kind"], row["task"], row["data"]["synthetic"]) == ("multitask", "shapes", True)
    assert read_rows(tmp_path / "runs" / "results.jsonl") == [row]
    assert list(row["test"]["tasks"]) == TASKS
    assert 0 <= row["test"]["tasks"]["semseg"]["miou"] <= 1
    assert row["test"]["per_class"]["semseg/wall"] is not None
    assert row["test"]["relative_improvement"] == pytest.approx(task.evaluation.gain / 100)
    assert row["test"]["images"] == 5
    tuned, manifest = load_adapter(tmp_path / "runs/run/adapter.safetensors")
    assert manifest["outputs"] == {"semseg": 4, "human_parts": 7, "saliency": 1, "normals": 3}
    seen = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trained, loaded = task.tuned.eval()(seen), tuned(seen)
    assert list(loaded) == TASKS
    for name in TASKS:
        assert torch.equal(loaded[name], trained[name]), name


def test_a_run_shows_every_task_and_says_a_line_of_each(write, tmp_path):
    row = run.train(parse([write(), "--train.epochs", "1"]))
    board = EventAccumulator(str(tmp_path / "runs/run/tensorboard"), {"images": 0, "scalars": 0, "tensors": 0}).Reload()
    assert board.Tags()["images"] == ["test/predictions"]
    assert {"val/semseg/miou", "val/normals/angle", "val/score", "test/relative_improvement"} <= {
        *board.Tags()["scalars"]
    }
    text = board.Tensors("test/measures/text_summary")[0].tensor_proto.string_val[0].decode()
    assert [line.split(" | ")[0].strip("| ") for line in text.splitlines()[2:]] == [
        *TASKS[:3],
        "saliency",
        "normals",
        "all",
    ]
    for tag, first in (("test/iou", "| semseg/wall |"), ("parameters", "| method |")):
        table = board.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()
        assert table.splitlines()[2].startswith(first)
    console = Console(file=StringIO(), width=120)
    print_summary(row, {}, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for label in ("test semseg", "test human parts", "test saliency", "test normals", "all tasks", "test score"):
        assert said.count(label) == 1, label


def test_a_resolved_configuration_names_the_tasks_and_runs_again_as_it_is(write, tmp_path):
    config = parse([write(), "--data.tasks", "[normals, semseg]"])
    assert isinstance(config.method, dict)
    assert config.method["tasks"] == ["normals", "semseg"]
    saved = tmp_path / "saved.yaml"
    saved.write_text(to_yaml(config))
    assert parse([str(saved)]) == config


@pytest.mark.parametrize("name", ["mtlora", "polyhistor"])
def test_shipped_configs_have_a_published_and_an_embedded_part(name):
    file = str(ROOT / f"configs/multitask/{name}.yaml")
    published, embedded = parse([file, "--data.root", "DIR"]), parse([file])
    assert (published.backbone, embedded.backbone) == (
        "swin_tiny_patch4_window7_224.ms_in22k",
        "vit_small_patch14_saliency",
    )
    assert published.single_task.normals == 17.97
    assert embedded.single_task.normals is None


def test_a_stopped_run_goes_on_to_the_same_bits(write, monkeypatch):
    whole = run.train(parse([write("whole")]))
    file, original, count = write("parts"), MultiTaskModule.training_step, {"steps": 0}

    def stopping(self, batch, batch_idx):
        count["steps"] += 1
        if count["steps"] == 4:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(MultiTaskModule, "training_step", stopping)
    with pytest.raises(Interrupted):
        run.train(parse([file]))
    monkeypatch.undo()
    resumed = run.train(parse([file, "--train.resume", "true"]))
    assert resumed["test"] == whole["test"]
    assert resumed["val"] == whole["val"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data.tasks", "[semseg, depht]"], "command line: data.tasks names 'depht'"),
        (["--method", "{name: mtlor}"], "command line: there is no method 'mtlor'; did you mean mtlora"),
        (["--method", "{name: fishmask}"], "command line: fishmask looks at images with one label each"),
        (["--method", "{name: evp}"], "command line: evp shrinks the image within its prompt, and the labels would no"),
        (["--train.selection", "best_val"], "command line: train.selection best_val chooses on val"),
        (["--train.label_smoothing", "0.1"], "command line: train.label_smoothing belongs to kind classification"),
        (["--single_task.depth", "1"], "command line: there is no 'single_task.depth'"),
        (["--data.train_scenes", "3"], "command line: data.train_scenes is 3; at least 4"),
    ],
)
def test_a_mistake_stops_before_anything_is_loaded(write, words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse([write(), *words])


def test_a_root_without_lists_is_named_and_nothing_is_written(write, tmp_path):
    config = parse([write(), "--data.root", str(tmp_path)])
    with pytest.raises(ValueError, match=r"train\.txt is missing\. data\.root is the folder PASCAL_MT"):
        run.train(config)
    assert not (tmp_path / "runs").exists()


def test_two_processes_train_what_gets_no_gradient_and_count_an_image_once(write, tmp_path):
    command = [sys.executable, "tools/train.py", write(), "--train.strategy", "ddp", "--train.devices", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += ["--train.epochs", "1", "--data.batch_size", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(tmp_path / "runs" / "results.jsonl")
    assert row["device"]["processes"] == 2
    assert row["test"]["images"] == 5
