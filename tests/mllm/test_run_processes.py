"""Two processes, under DDP and FSDP2: what one process with twice the batch computes, or it is refused.

Gradients of the first step are compared, and not weights: Adam divides a gradient by its size, so that one that
rounding alone keeps from zero becomes a whole step. They are taken behind the averaging over processes, and every
trained word counts the same in both, although the processes have samples of different lengths.
"""

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from mllm import run
from mllm.adapter import load_adapter
from mllm.data_schema import FilesConfig
from tests.mllm.data.files import write_talks
from tests.mllm.models import CONNECTORS, NAMES
from tests.mllm.runs import resumed, stopped, tiny_config, watched, write_language
from tests.mllm.vocabularies import by_bytes
from vpeft.results import read_rows
from vpeft.tasks.resuming import Interrupted

LORA: dict[str, Any] = {"language_method": {"name": "lora", "r": 2}}
FROZEN: dict[str, Any] = {"language_method": {"name": "frozen"}}
PREFIX: dict[str, Any] = {"language_method": {"name": "prefix", "tokens": 2}}
HALF: dict[str, Any] = {"language": {"dtype": "bfloat16"}}


def inside(name: str) -> dict[str, Any]:
    return {"connector": CONNECTORS[NAMES.index(name)]}


# Changes of the data and of the rest; `batch_size` is that of two processes together.
DDP: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({}, LORA | {"method": {"name": "lora", "rank": 2}, "train": {"steps": None}}),
    "text in one and images in the other": ({"batch_size": 2}, LORA | {"method": {"name": "lora", "rank": 2}}),
    "accumulated": ({"batch_size": 2}, LORA | {"train": {"accumulate": 2, "steps": 2}}),
    "packed": ({"pack": True, "batch_size": 2}, LORA),
    "grouped by length": ({"group_by_length": True}, LORA),
    "prefix": ({}, PREFIX),
    "gated_xattn": ({"batch_size": 2}, FROZEN | inside("gated_xattn")),
    "zero_init_prompt": ({"batch_size": 2}, FROZEN | inside("zero_init_prompt")),
    "visual_expert": ({"batch_size": 2}, FROZEN | inside("visual_expert")),
}
ANSWERING = {"score": "exact", "samples": 5, "max_new_tokens": 3}
FSDP: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "frozen": ({}, FROZEN | {"evaluation": ANSWERING}),
    "lora": ({}, LORA | {"method": {"name": "lora", "rank": 2}, "language": {"checkpointing": True}}),
    "text in one and images in the other": ({"batch_size": 2}, LORA),
    "packed": ({"pack": True, "batch_size": 2}, LORA),
    "full": ({}, {"language_method": {"name": "full"}}),
    "prefix": ({}, PREFIX),
    "half": ({}, LORA | HALF),
    "gated_xattn": ({"batch_size": 2}, FROZEN | inside("gated_xattn")),
    "zero_init_prompt": ({"batch_size": 2}, FROZEN | inside("zero_init_prompt")),
    "visual_expert": ({"batch_size": 2}, FROZEN | inside("visual_expert")),
}
CASES = [("ddp", case) for case in DDP] + [("fsdp", case) for case in FSDP]
ALONE = {("ddp", case): change for case, change in DDP.items()} | {("fsdp", case): FSDP[case] for case in FSDP}


def config_of(folder: Path, strategy: str, case: str, processes: int) -> Any:
    data, change = ALONE[strategy, case]
    files = FilesConfig(train=["talks.json"], val=["test.json"], test=["test.json"])
    data = {"batch_size": 4, "task": "talks", "root": folder / "data", "files": files, "max_length": 120} | data
    data |= {"batch_size": data["batch_size"] // processes, "eval_batch_size": 3, "group_by_length": False} | {
        key: value for key, value in data.items() if key == "group_by_length"
    }
    train = {"steps": 3, "val_every": 2} | change.get("train", {})
    if processes > 1:
        train |= {"strategy": strategy, "devices": processes}
    output = folder / f"{strategy}-{case}-{processes}"
    return tiny_config(f"hf:{folder / 'language'}", output, data, **change | {"train": train})


def measured(config: Any) -> dict[str, Any]:
    """Run it: the row, gradients of the first step, and how many images each step had here."""
    found: dict[str, Any] = {"gradients": {}, "images": []}

    def look(task: Any, optimizer: Any) -> None:
        if task.trainer.global_step == 0:
            named = [entry for part in task.model.components().values() for entry in part]
            whole = {n: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad.clone() for n, p in named}
            found["gradients"] = whole

    with (
        watched("on_before_optimizer_step", look),
        watched("training_step", lambda task, batch, index: found["images"].append(len(batch["image_row"]))),
    ):
        row = run.train(config)
    return found | {part: row[part] for part in ("test", "val", "parameters", "steps", "id", "device")}


def work(rank: int, folder: str, port: int) -> None:
    """One of two processes, all the runs."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "tests", "GROUP_RANK": "0"})
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=120))
    outcome: dict[Any, Any] = {}
    for strategy, case in CASES:
        try:
            outcome[strategy, case] = measured(config_of(Path(folder), strategy, case, 2))
        except Exception as error:
            outcome[strategy, case] = f"{type(error).__name__}: {error}"
            raise
        finally:
            torch.save(outcome, Path(folder) / f"outcome{rank}")
    for strategy in ("ddp", "fsdp"):
        config = config_of(Path(folder), strategy, "lora", 2)
        config.output = Path(folder) / f"stopped-{strategy}"
        # To the first process alone, as a scheduler may.
        with stopped(2) if rank == 0 else pytest.raises(Interrupted):
            run.train(config)
        run.train(resumed(config))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_talks(folder / "data", 13)
    write_talks(folder / "data", 7, "test.json")
    write_language(folder / "language", by_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (str(folder), port), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return folder


@pytest.fixture(scope="module")
def outcome(folder):
    return [torch.load(folder / f"outcome{rank}") for rank in (0, 1)]


@pytest.mark.parametrize(("strategy", "case"), CASES)
def test_gradients_and_measures_are_those_of_one_process(folder, outcome, strategy, case):
    first, second = (found[strategy, case] for found in outcome)
    alone = measured(config_of(folder, strategy, case, 1))
    half = case == "half"
    for name, gradient in alone["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name]), name
        size = gradient.abs().max().item()
        torch.testing.assert_close(
            first["gradients"][name],
            gradient,
            rtol=0.05 if half else 1e-4,
            atol=(0.02 if half else 1e-5) * max(size, 1e-2),
            msg=lambda m, name=name: f"{name}: {m}",
        )
    assert first["device"]["processes"] == 2
    assert first["parameters"] == alone["parameters"]
    assert first["steps"] == alone["steps"]
    for part in ("test", "val"):
        assert first[part]["loss"] == pytest.approx(alone[part]["loss"], rel=2e-3)
    if "samples" in first["test"]:
        assert first["test"]["samples"] == alone["test"]["samples"]
    assert [row["id"] for row in read_rows(folder / f"{strategy}-{case}-2/results.jsonl")] == [first["id"]]


@pytest.mark.parametrize(("strategy", "case"), CASES)
def test_adapters_are_whole(folder, outcome, strategy, case):
    adapters = [folder / f"{strategy}-{case}-{processes}/run/adapter.safetensors" for processes in (2, 1)]
    two, one = (load_file(path) for path in adapters)
    assert {name: tensor.shape for name, tensor in two.items()} == {name: tensor.shape for name, tensor in one.items()}
    model, manifest = load_adapter(adapters[0])
    assert manifest["result"]["id"] == outcome[0][strategy, case]["id"]
    assert not any(p.isnan().any() for p in model.parameters())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_stopped_and_resumed_they_end_with_the_same_bits(folder, outcome, strategy):
    names = (f"{strategy}-lora-2", f"stopped-{strategy}")
    whole, parts = (load_file(folder / name / "run/adapter.safetensors") for name in names)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    (row,) = read_rows(folder / names[1] / "results.jsonl")
    assert (row["test"], row["val"]) == tuple(outcome[0][strategy, "lora"][part] for part in ("test", "val"))


def test_one_had_text_alone_while_the_other_had_images(outcome):
    for strategy in ("ddp", "fsdp"):
        images = [found[strategy, "text in one and images in the other"]["images"] for found in outcome]
        assert any((one == 0) != (other == 0) for one, other in zip(*images, strict=True))
