"""A model of several tasks: how often the trunk runs, what reaches which head, and that it trains."""

from typing import Any

import lightning.pytorch as L
import pytest
import torch
import yaml
from torch import Tensor

from tests.zoo import backbone, image, shake
from vpeft.dense.multitask import MultiTask
from vpeft.dense.multitask_build import build, build_model, check, method_spec
from vpeft.dense.multitask_schema import MultiTaskConfig, MultiTaskDataConfig, MultiTaskHeadConfig
from vpeft.schema import ConfigError, OptimConfig, TrainConfig
from vpeft.tasks.multitask import MultiTaskModule

TASKS = ["semseg", "human_parts", "saliency", "normals"]
OUTPUTS = {"semseg": 4, "human_parts": 7, "saliency": 1, "normals": 3}
METHODS: dict[str, dict[str, Any]] = {
    "mtlora": {"name": "mtlora", "rank": 4, "task_rank": 2, "dropout": 0.0},
    "polyhistor": {"name": "polyhistor", "ratio": 4, "rank": 3, "embedding": 8},
    "lora": {"name": "lora", "rank": 4},
}


def config(method: str, reading: str = "stages", **options: Any) -> MultiTaskConfig:
    return MultiTaskConfig(
        method=METHODS[method],
        head=MultiTaskHeadConfig(reading=reading),
        data=MultiTaskDataConfig(batch_size=4, eval_batch_size=4, train_scenes=8, val_scenes=6),
        optim=OptimConfig(lr=1e-3, warmup_epochs=0),
        train=TrainConfig(epochs=1, accelerator="cpu"),
        **options,
    )


def model(method: str, body: str = "timm_swin", reading: str = "stages") -> MultiTask:
    return build_model(config(method, reading), backbone(body), OUTPUTS).eval()


@pytest.mark.parametrize(("method", "passes"), [("mtlora", 1), ("polyhistor", 4), ("lora", 1)])
def test_the_trunk_runs_once_where_the_method_allows(method, passes):
    built, calls = model(method), []
    built.tuned.backbone.blocks[0].before(lambda x: calls.append(1) or x)
    outputs = built(image())
    assert len(calls) == passes
    assert {task: tuple(y.shape) for task, y in outputs.items()} == {t: (2, k, 64, 64) for t, k in OUTPUTS.items()}


@pytest.mark.parametrize("method", ["mtlora", "polyhistor"])
def test_what_a_task_owns_changes_that_task_alone(method):
    built = model(method)
    shake(built.tuned)
    with torch.no_grad():
        before = built(image())
        if method == "mtlora":
            for branch in built.tuned.methods[0].branches:
                branch.proj.update.tasks[1].up[0].add_(1.0)
        else:
            built.tuned.methods[0].tasks.weight[1].add_(1.0)
        after = built(image())
    for task in TASKS:
        assert torch.equal(before[task], after[task]) == (task != "human_parts"), task


@pytest.mark.parametrize("body", ["timm_swin", "timm_vit"])
@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_reaches_all_that_learns(method, body):
    built = model(method, body)
    shake(built.tuned)
    sum(y.square().mean() for y in built(image()).values()).backward()
    without = {name for name, p in built.tuned.trainable() if p.grad is None or not p.grad.any()}
    # Nothing reads the trunk behind the last stage, as in the official code, which counts this pair too.
    unread = {f"methods.0.branches.1.fc2.update.{name}" for name in ("down.4.weight", "shared.up.0")}
    assert without == (unread if method == "mtlora" else set())
    assert all(p.grad is None for name, p in built.tuned.backbone.named_parameters() if not p.requires_grad)


@pytest.mark.parametrize("body", ["timm_swin", "timm_vit"])
def test_maps_are_read_at_the_ends_of_stages_or_after_merging(body):
    stages, merged = model("mtlora", body).maps(image()), model("mtlora", body, "merged").maps(image())
    sizes = {"timm_swin": [(32, 16), (64, 8)], "timm_vit": [(32, 4)] * 2}
    assert [(m.shape[1], m.shape[2]) for m in stages["saliency"]] == sizes[body]
    after = {"timm_swin": [(64, 8), (64, 8)], "timm_vit": [(32, 4)] * 2}
    assert [(m.shape[1], m.shape[2]) for m in merged["saliency"]] == after[body]


def test_the_delta_of_all_tasks_restores_them_to_the_bit():
    built, again = model("mtlora"), model("mtlora")
    shake(built.tuned)
    again.tuned.load_delta(built.tuned.delta())
    with torch.no_grad():
        for one, other in zip(built(image()).values(), again(image()).values(), strict=True):
            assert torch.equal(one, other)
    assert any("running_mean" in name for name in built.tuned.delta()), "buffers of BatchNorm"


def test_the_last_norm_is_no_ones_to_train():
    assert not [name for name in model("mtlora").tuned.adopted if name.startswith("norm.")]


def trained(method: str) -> tuple[MultiTaskModule, L.Trainer, Any]:
    from vpeft.data.multitask import MultiTaskData

    settings = config(method, single_task={"semseg": 50, "human_parts": 50, "saliency": 50, "normals": 20})
    body = backbone("timm_swin")
    data = MultiTaskData(settings.data, body.image_size, 0)
    built = build_model(settings, body, data.outputs)
    module = MultiTaskModule(
        built, settings.optim, settings.train, body.mean, body.std, settings.weights, settings.single_task
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    return module, trainer, data


@pytest.mark.filterwarnings("ignore")
def test_a_run_trains_evaluates_and_goes_into_a_checkpoint(tmp_path):
    module, trainer, data = trained("mtlora")
    before = {name: p.clone() for name, p in module.model.tuned.trainable()}
    trainer.fit(module, datamodule=data)
    learnt = [name for name, p in module.model.tuned.trainable() if not torch.equal(p, before[name])]
    assert any("tasks" in name for name in learnt)
    assert any(name.startswith("head.normals") for name in learnt)
    values = module.evaluation
    assert set(values) == {*TASKS, "relative_improvement"}
    gains = [(values[t]["miou"] - 50) / 50 for t in TASKS[:3]] + [(20 - values["normals"]["angle"]) / 20]
    assert values["relative_improvement"]["percent"] == pytest.approx(100 * sum(gains) / 4)

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert set(kept) == {f"model.tuned.{name}" for name in module.model.tuned.delta()}
    again, other, _ = trained("mtlora")
    other.test(again, datamodule=data, ckpt_path=tmp_path / "last.ckpt", verbose=False, weights_only=False)
    assert again.evaluation == values


def test_settings_that_cannot_be_are_refused_before_anything_is_loaded():
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            check(MultiTaskConfig(**options))

    refused("data.tasks names 'depth'; there are semseg", data=MultiTaskDataConfig(tasks=["depth"]))
    refused("data.tasks is empty", data=MultiTaskDataConfig(tasks=[]))
    refused("names semseg twice", data=MultiTaskDataConfig(tasks=["semseg", "semseg"]))
    refused("single_task names 'depth'", single_task={"depth": 1.0})
    refused("weights.semseg is 0; it must be above 0", weights={"semseg": 0})
    refused("did you mean", method={"name": "mtlor"})
    refused("mtlora goes alone", method=[{"name": "mtlora"}, {"name": "lora"}])
    refused("data.train_scenes is 4; at least 32", data=MultiTaskDataConfig(train_scenes=4))
    both = [*model("mtlora").tuned.methods, *model("lora").tuned.methods]
    with pytest.raises(ValueError, match="Use it alone"):
        MultiTask(backbone("timm_swin"), both, OUTPUTS)


@pytest.mark.parametrize("name", ["mtlora", "polyhistor"])
def test_shipped_configs_say_what_the_schema_knows_and_their_methods_build(name):
    from pathlib import Path

    tree: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / f"configs/multitask/{name}.yaml").read_text())
    embedded = tree.pop("embedded")
    for part in (tree, {**tree, **embedded}):
        groups = {"data": MultiTaskDataConfig, "head": MultiTaskHeadConfig, "optim": OptimConfig, "train": TrainConfig}
        given = {key: groups[key](**value) if key in groups else value for key, value in part.items()}
        found = MultiTaskConfig(**given)
        check(found)
        (spec,) = method_spec(found)
        assert (spec["name"], spec["tasks"]) == (name, TASKS)


def test_a_configuration_becomes_what_is_trained_and_on_what():
    settings = config("mtlora", backbone="test_vit", pretrained="none", image_size=32, normalization="inception")
    settings.data.tasks = ["semseg", "normals"]
    module, data = build(settings)
    (batch,) = list(data.val_dataloader())[:1]
    assert {task: tuple(y.shape) for task, y in module(batch["image"]).items()} == {
        "semseg": (4, 4, 32, 32),
        "normals": (4, 3, 32, 32),
    }
    assert module.weights == {"semseg": 1.0, "normals": 10.0}
    assert module.mean.flatten().tolist() == [0.5] * 3


def test_counts_on_swin_tiny_are_the_published_ones():
    """MTLoRA's 8.34 M with its heads, on a Swin-T without weights."""
    from timm.models.swin_transformer import SwinTransformer

    from vpeft.backbones import wrap

    swin = SwinTransformer(num_classes=0, weight_init="skip")  # timm's defaults are Swin-T
    settings = config("mtlora", "merged")
    settings.method, settings.head.kind = {"name": "mtlora"}, "hrnet"
    outputs = {"semseg": 21, "human_parts": 7, "saliency": 1, "normals": 3}
    built = build_model(settings, wrap(swin), outputs)
    groups = built.tuned.parameter_groups()
    counts = {name: sum(p.numel() for _, p in group) for name, group in groups.items()}
    assert counts == {"method": 4_798_464, "backbone": 1_599_546, "head": 1_946_624}
    assert sum(counts.values()) == 8_344_634


def test_the_weighted_sum_is_the_loss():
    from vpeft.dense.multitask_losses import WEIGHTS, total

    losses: dict[str, Tensor] = {task: torch.tensor(float(i + 1)) for i, task in enumerate(WEIGHTS)}
    assert total(losses, WEIGHTS).item() == 1 * 1 + 2 * 2 + 5 * 3 + 10 * 4
