"""Every method in two processes, under DDP and FSDP2: gradients equal those of one process, or it is refused."""

import copy
import re
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.zoo import CASES, PAIRS, image, shake, tuned
from vpeft.tuned import Tuned

BODIES = ["timm_vit", "timm_swin"]
STRATEGIES = ["ddp", "fsdp"]
REFUSED = {("vqt", "fsdp"): "ValueError: vqt: its queries read .* Set train.strategy to ddp"}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> dict[tuple[str, str, str], str]:
    """What went wrong in each combination; all run in the same two processes, which start once."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(run, (str(folder),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return torch.load(folder / "outcome")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("body", "method"), [p for p in PAIRS if CASES[p[1]].structural and p[0] in BODIES])
def test_gradients_equal_those_of_one_process_or_the_pair_is_refused(outcome, body, method, strategy):
    wanted = REFUSED.get((method, strategy), "")
    assert re.fullmatch(wanted + r"\." if wanted else "", outcome[body, method, strategy])


def run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found = {}
    for body, method in PAIRS:
        if not CASES[method].structural or body not in BODIES:
            continue
        for strategy in STRATEGIES:
            found[body, method, strategy] = compare(body, method, strategy, rank)
    if rank == 0:
        torch.save(found, Path(folder) / "outcome")
    dist.destroy_process_group()


def compare(body: str, method: str, strategy: str, rank: int) -> str:
    model = shake(tuned(body, method))
    wanted = gradients(model, model, image())
    model.zero_grad()
    shared = copy.deepcopy(model)
    try:
        if strategy == "ddp":
            found = gradients(DistributedDataParallel(shared), shared, image()[rank : rank + 1])
        else:
            mesh = init_device_mesh("cpu", (2,))
            for block in shared.backbone.blocks:
                fully_shard(block.module, mesh=mesh)
            fully_shard(shared, mesh=mesh)
            found = gradients(shared, shared, image()[rank : rank + 1])
        for name, gradient in wanted.items():
            torch.testing.assert_close(
                found[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
            )
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def gradients(caller: nn.Module, model: Tuned, images: Tensor) -> dict[str, Tensor]:
    caller(images).square().mean().backward()
    found = {name: p.grad for name, p in model.trainable() if p.grad is not None}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}
