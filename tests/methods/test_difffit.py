"""DiffFit trains biases, norms and a scale of every branch, and nothing else."""

import torch

from tests.zoo import backbone, image, tuned


def test_it_trains_biases_norms_and_scales_only():
    model = tuned("timm_registers", "difffit")
    learns = {name.removeprefix("backbone.model.") for name, _ in model.trainable() if name.startswith("backbone.")}
    every = dict(model.backbone.model.named_parameters())
    assert learns == {name for name in every if name.endswith("bias") or "norm" in name}
    assert not any("ls1" in name for name in learns)


def test_a_scale_multiplies_what_its_branch_adds():
    model, plain = tuned("timm_registers", "difffit"), backbone("timm_registers")
    seen: list[torch.Tensor] = []
    for block in (plain.blocks[0], model.backbone.blocks[0]):
        block.attn.edit(lambda x, h, y: seen.append(y) or y)
    gamma = model.methods[0].attn[0].gamma
    torch.nn.init.normal_(gamma)
    with torch.no_grad():
        plain(image())
        model(image())
    torch.testing.assert_close(seen[1], gamma * seen[0])
