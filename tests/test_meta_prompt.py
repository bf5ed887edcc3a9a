"""DAM-VP's meta-training against its plain statement, and what it refuses."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tests.runs import tiny_config, write_images
from tests.zoo import image, tuned
from vpeft.config import ConfigError
from vpeft.heads import ActiveFeatures, LinearHead
from vpeft.meta_prompt import Settings, adapt, meta_train
from vpeft.run import train

SPEC = {"name": "dam_vp", "prompts": 3, "size": 4, "threshold": 0.0}
SIDES = ("up", "down", "left", "right")


def model(clusters):
    torch.manual_seed(0)
    built = tuned("timm_vit", "dam_vp")
    prompts, built.head = built.methods[0], nn.Identity()
    looks = built.backbone.look(image())
    prompts.prototypes.copy_(looks[[0, 0, 1]] + torch.tensor([0.0, 100.0, 0.0])[:, None])  # nothing is near the second
    prompts.clusters.fill_(clusters)
    return built, prompts


@pytest.mark.parametrize("clusters", [1, 3])
def test_a_task_takes_steps_of_sgd_from_the_meta_prompt_with_each_cluster_and_its_head(clusters):
    built, prompts = model(clusters)
    labels, settings = torch.tensor([0, 2]), Settings(inner_steps=3, head_lr=0.2, weight_decay=0.1)
    meta = {name: torch.randn(1, *p.shape[1:]) for name, p in prompts.border.named_parameters()}
    head = LinearHead(built.backbone.dim, 3)
    w, b = (p.detach().clone().requires_grad_() for p in head.parameters())

    near = prompts.choose(image()).tolist()
    sides = [[meta[side][0].clone().requires_grad_() for side in SIDES] for _ in range(clusters)]
    for _ in range(3):
        prompted = []
        for x, k in zip(image(), near, strict=True):
            up, down, left, right = sides[k]
            inside = torch.zeros(3, left.shape[1], up.shape[2] - 2 * left.shape[2])
            prompted.append(x + torch.cat([up, torch.cat([left, inside, right], dim=2), down], dim=1))
        built.backbone._on_pixels, edits = [], built.backbone._on_pixels
        features = built.backbone(torch.stack(prompted))
        built.backbone._on_pixels = edits
        used = [p for k in sorted(set(near)) for p in sides[k]]
        gradients = torch.autograd.grad(F.cross_entropy(features @ w.T + b, labels), [*used, w, b])
        with torch.no_grad():
            for p, gradient in zip([*used, w, b], gradients, strict=True):
                rate, decay = (0.2, 0.0) if p is w or p is b else (0.7, 0.1)
                p.sub_(rate * (gradient + decay * p))

    adapted, _ = adapt(built, head, meta, (image(), labels), 0.7, settings)
    for number, side in enumerate(SIDES):
        assert len(adapted[side]) == clusters
        for k in range(clusters):
            torch.testing.assert_close(adapted[side][k], sides[k][number], rtol=1e-4, atol=1e-5)
            assert torch.equal(adapted[side][k], meta[side][0]) == (k not in near)
    torch.testing.assert_close(head.linear.weight, w, rtol=1e-4, atol=1e-5)


def test_a_meta_prompt_learns_from_its_tasks_and_a_run_starts_from_it(tmp_path, capsys):
    root = write_images(tmp_path / "images")
    start, file = tiny_config(root, tmp_path / "runs", SPEC), tmp_path / "made" / "meta.safetensors"
    assert meta_train(start, ["colors", "colours"], file, Settings(epochs=2, inner_steps=2), "cpu") == file
    assert "from 2 tasks of 3 and 3 clusters" in capsys.readouterr().out
    meta = load_file(file)
    assert {side: list(meta[side].shape) for side in SIDES} == {
        side: [1, 3, 4, 32] if side in ("up", "down") else [1, 3, 24, 4] for side in SIDES
    }
    with safe_open(file, "pt") as opened:
        assert '"tasks": ["colors", "colours"]' in opened.metadata()["vpeft_meta_prompt"]
    again = meta_train(start, ["colors", "colours"], tmp_path / "again.safetensors", Settings(epochs=2, inner_steps=2))
    assert all(torch.equal(tensor, meta[side]) for side, tensor in load_file(again).items())

    still = dataclasses.replace(start, method={**SPEC, "meta": str(file)})
    still.optim, still.train.epochs = dataclasses.replace(still.optim, lr=1e-12, head_lr=0.01), 1
    train(still)
    adapter = load_file(tmp_path / "runs" / "run" / "adapter.safetensors")
    for side in SIDES:
        whole = adapter[f"methods.0.border.{side}"]
        torch.testing.assert_close(whole, meta[side].expand_as(whole), rtol=0, atol=1e-6)

    unmoved = Settings(epochs=1, inner_steps=1, step=0.0)
    meta_train(still, ["colors"], tmp_path / "same.safetensors", unmoved)  # goes on from the one it is given
    assert all(torch.equal(tensor, meta[side]) for side, tensor in load_file(tmp_path / "same.safetensors").items())


def test_with_a_frozen_head_the_steps_are_those_of_adam(tmp_path):
    built, prompts = model(3)
    meta = {name: torch.zeros(1, *p.shape[1:]) for name, p in prompts.border.named_parameters()}
    adapted, _ = adapt(
        built, ActiveFeatures(32, 3), meta, (image(), torch.tensor([0, 2])), 0.5, Settings(inner_steps=1)
    )
    moved = adapted["up"][prompts.choose(image())].abs()
    torch.testing.assert_close(
        moved, torch.full_like(moved, 0.5), rtol=0.05, atol=0
    )  # its first step, in any direction

    start = tiny_config(write_images(tmp_path / "images", 5), tmp_path / "runs", SPEC)
    start.head.kind = "active_features"
    meta_train(start, ["colors"], tmp_path / "meta.safetensors", Settings(epochs=1, inner_steps=1))
    assert (tmp_path / "meta.safetensors").exists()


def test_what_cannot_be_meta_trained_is_refused_and_nothing_is_written(tmp_path):
    start = tiny_config(write_images(tmp_path / "images", 5), tmp_path / "runs", SPEC)

    def refused(message, config=start, tasks=("colors",), name="meta.safetensors", **settings):
        with pytest.raises((ConfigError, FloatingPointError), match=message):
            meta_train(config, tasks, tmp_path / name, Settings(**settings))

    other = dataclasses.replace(start, method=[SPEC, {"name": "linear"}])
    refused("is for method dam_vp alone, not dam_vp and linear", other)
    mapped = dataclasses.replace(start, head=dataclasses.replace(start.head, kind="label_mapping"))
    refused("with head.kind linear or active_features, not label_mapping", mapped)
    refused("has to end in .safetensors", name="meta.pt")
    refused("The tasks are none; give at least one", tasks=())
    refused("The tasks are colors, colors; give at least one, and each once", tasks=("colors", "colors"))
    refused("inner_steps is 0; give 1 or more", inner_steps=0)
    refused("lr is nan; give 0 or more", lr=float("nan"))
    refused("The loss is nan in epoch 1", head_lr=1e30, epochs=1)
    assert not list(tmp_path.glob("meta*"))
