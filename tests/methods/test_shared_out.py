"""Methods that look at whole tensors say so where FSDP has left a share of them."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.zoo import image, tuned


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_ranks_are_not_chosen_from_a_share(mesh):
    model = fully_shard(tuned("timm_vit", "adalora"), mesh=mesh)
    with pytest.raises(ValueError, match=r"^adalora: .* FSDP leaves a share .* train.strategy to ddp"):
        model.methods[0].after_step(0, 10)


def test_a_mask_is_not_chosen_from_a_share(mesh):
    model = fully_shard(tuned("timm_vit", "fishmask"), mesh=mesh)
    with pytest.raises(ValueError, match=r"^fishmask: .* FSDP leaves a share .* train.strategy to ddp"):
        model.methods[0].prepare(model, [(image(), torch.tensor([0, 1]))], 0)
