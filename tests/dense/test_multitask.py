"""A model of several tasks: how often the trunk runs, what reaches which head, and that it trains."""

from dataclasses import asdict
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor

from tests.zoo import backbone, image, shake
from vpeft.dense.multitask import multitask
from vpeft.dense.multitask_build import assemble, method_spec, mistakes, tuned_of
from vpeft.dense.multitask_schema import (
    MultiTaskConfig,
    MultiTaskDataConfig,
    MultiTaskHeadConfig,
    SingleTaskConfig,
    TaskWeights,
)
from vpeft.schema import OptimConfig, TrainConfig
from vpeft.tasks.multitask import MultiTaskModule
from vpeft.tuned import Tuned

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


def build_model(settings: MultiTaskConfig, body: Any, outputs: dict[str, int]) -> Tuned:
    torch.manual_seed(settings.seed)
    head = {"kind": settings.head.kind, "reading": settings.head.reading}
    return tuned_of(vars(settings) | {"method": method_spec(settings), "head": head, "outputs": outputs}, body)


def model(method: str, body: str = "timm_swin", reading: str = "stages") -> Tuned:
    return build_model(config(method, reading), backbone(body), OUTPUTS).eval()


@pytest.mark.parametrize(("method", "passes"), [("mtlora", 1), ("polyhistor", 4), ("lora", 1)])
def test_the_trunk_runs_once_where_the_method_allows(method, passes):
    built, calls = model(method), []
    built.backbone.blocks[0].before(lambda x: calls.append(1) or x)
    outputs = built(image())
    assert len(calls) == passes
    assert {task: tuple(y.shape) for task, y in outputs.items()} == {t: (2, k, 64, 64) for t, k in OUTPUTS.items()}


@pytest.mark.parametrize("method", ["mtlora", "polyhistor"])
def test_what_a_task_owns_changes_that_task_alone(method):
    built = model(method)
    shake(built)
    with torch.no_grad():
        before = built(image())
        if method == "mtlora":
            for branch in built.methods[0].branches:
                branch.proj.update.tasks[1].up[0].add_(1.0)
        else:
            built.methods[0].tasks.weight[1].add_(1.0)
        after = built(image())
    for task in TASKS:
        assert torch.equal(before[task], after[task]) == (task != "human_parts"), task


@pytest.mark.parametrize("body", ["timm_swin", "timm_vit"])
@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_reaches_all_that_learns(method, body):
    built = model(method, body)
    shake(built)
    sum(y.square().mean() for y in built(image()).values()).backward()
    without = {name for name, p in built.trainable() if p.grad is None or not p.grad.any()}
    # Nothing reads the trunk behind the last stage, as in the official code, which counts this pair too.
    unread = {f"methods.0.branches.1.fc2.update.{name}" for name in ("down.4.weight", "shared.up.0")}
    assert without == (unread if method == "mtlora" else set())
    assert all(p.grad is None for name, p in built.backbone.named_parameters() if not p.requires_grad)


def maps(method: str, body: str, reading: str) -> dict[str, list[Tensor]]:
    built = model(method, body, reading)
    assert built.neck is not None
    return built.neck(built.backbone, image())


@pytest.mark.parametrize("body", ["timm_swin", "timm_vit"])
def test_maps_are_read_at_the_ends_of_stages_or_after_merging(body):
    stages, merged = (maps("mtlora", body, reading) for reading in ("stages", "merged"))
    sizes = {"timm_swin": [(32, 16), (64, 8)], "timm_vit": [(32, 4)] * 2}
    assert [(m.shape[1], m.shape[2]) for m in stages["saliency"]] == sizes[body]
    after = {"timm_swin": [(64, 8), (64, 8)], "timm_vit": [(32, 4)] * 2}
    assert [(m.shape[1], m.shape[2]) for m in merged["saliency"]] == after[body]


def test_the_delta_of_all_tasks_restores_them_to_the_bit():
    built, again = model("mtlora"), model("mtlora")
    shake(built)
    again.load_delta(built.delta())
    with torch.no_grad():
        for one, other in zip(built(image()).values(), again(image()).values(), strict=True):
            assert torch.equal(one, other)
    assert any("running_mean" in name for name in built.delta()), "buffers of BatchNorm"


def test_the_last_norm_is_no_ones_to_train():
    assert not [name for name in model("mtlora").adopted if name.startswith("norm.")]


def trained(method: str) -> tuple[MultiTaskModule, L.Trainer, Any]:
    from vpeft.data.multitask import MultiTaskData

    settings = config(method, single_task=SingleTaskConfig(50, 50, 50, 20))
    body = backbone("timm_swin")
    data = MultiTaskData(settings.data, body.image_size, 0)
    built = build_model(settings, body, data.outputs)
    alone = asdict(settings.single_task)
    module = MultiTaskModule(
        built, data.outputs, data.classes, settings.optim, settings.train, body.mean, body.std, {}, alone
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
    before = {name: p.clone() for name, p in module.tuned.trainable()}
    trainer.fit(module, datamodule=data)
    learnt = [name for name, p in module.tuned.trainable() if not torch.equal(p, before[name])]
    assert any("tasks" in name for name in learnt)
    assert any(name.startswith("head.normals") for name in learnt)
    found = module.evaluation
    assert found is not None
    values = found.tasks
    assert list(values) == TASKS
    gains = [(values[t]["miou"] - 50) / 50 for t in TASKS[:3]] + [(20 - values["normals"]["angle"]) / 20]
    assert found.gain == pytest.approx(100 * sum(gains) / 4)
    parts = [values[t]["miou"] / 100 for t in TASKS[:3]] + [1 - values["normals"]["angle"] / 180]
    assert found.score == pytest.approx(sum(parts) / 4)
    named = dict(zip(module.classes, found.per_class, strict=True))
    assert sum(named[f"semseg/{name}"] or 0 for name in ("wall", "ball", "ramp", "figure")) / 4 == pytest.approx(
        parts[0]
    )

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert set(kept) == {f"tuned.{name}" for name in module.tuned.delta()}
    again, other, _ = trained("mtlora")
    other.test(again, datamodule=data, ckpt_path=tmp_path / "last.ckpt", verbose=False, weights_only=False)
    assert again.evaluation == found


@pytest.mark.parametrize(
    ("options", "key", "sentence"),
    [
        ({"data": MultiTaskDataConfig(tasks=["normal"])}, "data.tasks", "names 'normal'; did you mean 'normals'?"),
        ({"data": MultiTaskDataConfig(tasks=[])}, "data.tasks", "data.tasks is empty"),
        ({"data": MultiTaskDataConfig(tasks=["semseg", "semseg"])}, "data.tasks", "names semseg twice"),
        ({"single_task": SingleTaskConfig(saliency=-1.0)}, "single_task.saliency", "must be above 0, not -1"),
        ({"weights": TaskWeights(semseg=0)}, "weights.semseg", "must be above 0, not 0"),
        ({"data": MultiTaskDataConfig(train_scenes=4)}, "data.train_scenes", "is 4; at least 32"),
        ({"data": MultiTaskDataConfig(val_scenes=0)}, "data.val_scenes", "is 0; at least 1"),
        ({"train": TrainConfig(label_smoothing=0.1)}, "train.label_smoothing", "belongs to kind classification"),
        ({"train": TrainConfig(strategy="fsdp")}, "train.strategy", "use ddp"),
        ({"train": TrainConfig(selection="best_val")}, "train.selection", "is tested on; use last"),
        ({"method": [{"name": "mtlora"}, {"name": "lora"}]}, "method", "mtlora goes alone"),
        ({"method": {"name": "fishmask"}}, "method", "fishmask looks at images"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_loaded(options, key, sentence):
    settings = MultiTaskConfig(**options)
    ((where, said),) = [*settings.conflicts(), *mistakes(settings)]
    assert where == key
    assert sentence in said


def test_what_branches_is_alone_and_what_acts_on_features_has_no_place():
    both = [*model("mtlora").methods, *model("lora").methods]
    with pytest.raises(ValueError, match="Use it alone"):
        multitask(backbone("timm_swin"), both, OUTPUTS)
    settings = config("lora")
    settings.method = {"name": "vqt"}
    with pytest.raises(ValueError, match="changes what is read from the last block"):
        build_model(settings, backbone("timm_vit"), OUTPUTS)


def test_a_configuration_becomes_what_is_trained_and_on_what():
    settings = config("mtlora", backbone="test_vit", pretrained="none", image_size=32, normalization="inception")
    settings.data.tasks = ["semseg", "normals"]
    job = assemble(settings)
    module, data = job.task, job.data
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
    groups = built.parameter_groups()
    counts = {name: sum(p.numel() for _, p in group) for name, group in groups.items()}
    assert counts == {"method": 4_798_464, "backbone": 1_599_546, "neck": 0, "head": 1_946_624}
    assert sum(counts.values()) == 8_344_634


def test_the_weighted_sum_is_the_loss():
    from vpeft.dense.multitask_losses import WEIGHTS, total

    losses: dict[str, Tensor] = {task: torch.tensor(float(i + 1)) for i, task in enumerate(WEIGHTS)}
    assert total(losses, WEIGHTS).item() == 1 * 1 + 2 * 2 + 5 * 3 + 10 * 4
