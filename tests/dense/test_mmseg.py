"""The bridge to mmsegmentation.

What needs mmseg itself runs where the `dense` extra is installed, and is left out elsewhere; that our heads, losses,
inference and measures equal mmseg's is held everywhere, by the golden files (test_losses, test_inference, test_iou and
tests/heads/test_dense_heads).
"""

import importlib
import sys
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader

from vpeft.config import OptimConfig
from vpeft.dense import mmseg
from vpeft.heads.fcn import FCNHead
from vpeft.heads.setr import SETRHead
from vpeft.heads.uper import UPerHead

NORM = {"type": "SyncBN", "requires_grad": True}
BODY = {
    "type": "VpeftBackbone",
    "name": "vit_tiny_patch16_224",
    "pretrained": "none",
    "image_size": 32,
    "method": {"name": "lora", "rank": 2},
    "neck": {"name": "last"},
}
MODEL: dict[str, Any] = {
    "type": "EncoderDecoder",
    "data_preprocessor": {
        "type": "SegDataPreProcessor",
        "mean": [127.5] * 3,
        "std": [127.5] * 3,
        "bgr_to_rgb": True,
        "size": (32, 32),
    },
    "backbone": BODY,
    "decode_head": {
        "type": "FCNHead",
        "in_channels": 192,
        "in_index": 0,
        "channels": 8,
        "num_convs": 1,
        "concat_input": False,
        "num_classes": 4,
        "norm_cfg": NORM,
    },
    "test_cfg": {"mode": "whole"},
}
FCN = MODEL["decode_head"]
UPER: dict[str, Any] = {
    **MODEL,
    "backbone": {**BODY, "neck": {"name": "layers", "rescale": "pyramid"}},
    "decode_head": {
        "type": "UPerHead",
        "in_channels": [192] * 4,
        "in_index": [0, 1, 2, 3],
        "pool_scales": (1, 2, 3, 6),
        "channels": 8,
        "num_classes": 4,
        "norm_cfg": NORM,
    },
    "auxiliary_head": {**FCN, "in_index": 2, "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 0.4}},
    "test_cfg": {"mode": "slide", "crop_size": (32, 32), "stride": (21, 21)},
}


@pytest.fixture
def installed():
    pytest.importorskip("mmseg", reason="needs the dense extra")
    mmseg.register()


def test_a_missing_extra_is_said_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv", None)
    with pytest.raises(ModuleNotFoundError) as refused:
        mmseg.build({"type": "EncoderDecoder"})
    assert "mmcv, which is not installed. It comes with the extra dense" in str(refused.value)
    assert "pip install -c constraints.txt -e '.[dense]'" in str(refused.value)


def test_a_package_that_the_extra_brings_along_is_named(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError("No module named 'ftfy'", name="ftfy")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=r"mmseg\.models needs ftfy, which is not installed"):
        mmseg.need("mmseg.models")


def test_an_operator_that_is_not_there_says_so_when_it_is_called():
    operators = mmseg._NoOperators("mmcv._ext")
    with pytest.raises(NotImplementedError, match="mmcv's compiled operator deform_conv_forward is not there"):
        operators.deform_conv_forward(1)
    assert not hasattr(operators, "__path__")


@pytest.mark.parametrize("training", [False, True])
def test_our_heads_equal_the_installed_mmsegs(installed, training):
    models = mmseg.need("mmseg.registry").MODELS
    torch.manual_seed(0)
    common = {"num_classes": 5, "norm_cfg": {"type": "BN"}, "align_corners": False, "dropout_ratio": 0}
    uper = {"type": "UPerHead", "in_channels": [4, 6, 8, 10], "in_index": [0, 1, 2, 3], "channels": 8, **common}
    fcn = {"type": "FCNHead", "in_channels": 8, "in_index": 2, "channels": 8, "concat_input": False, **common}
    setr = {"type": "SETRUPHead", "in_channels": 10, "in_index": 3, "channels": 8, **common}
    maps = [torch.randn(2, channels, 12 >> i, 16 >> i) for i, channels in enumerate((4, 6, 8, 10))]
    pairs = [
        (models.build({**uper, "pool_scales": (1, 2, 3, 6)}), UPerHead([4, 6, 8, 10], 5, width=8, dropout=0.0)),
        (models.build({**fcn, "num_convs": 1}), FCNHead([4, 6, 8, 10], 5, width=8, dropout=0.0)),
        (models.build({**setr, "num_convs": 4, "up_scale": 2}), SETRHead([4, 6, 8, 10], 5, width=8)),
    ]
    for theirs, ours in pairs:
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(ours.train(training)(maps), theirs.train(training)(maps), atol=1e-5, rtol=1e-5)


def test_the_backbone_is_known_to_an_mmseg_config_file(installed, tmp_path):
    file = tmp_path / "config.py"
    file.write_text(f"custom_imports = dict(imports=['vpeft.dense.mmseg_plugin'])\nmodel = {MODEL!r}\n")
    sys.modules.pop("vpeft.dense.mmseg_plugin", None)
    mmseg.need("mmseg.registry").MODELS.module_dict.pop("VpeftBackbone")
    config = mmseg.need("mmengine.config").Config.fromfile(file)
    with mmseg.need("mmengine.registry").DefaultScope.overwrite_default_scope("mmseg"):
        model = mmseg.need("mmseg.registry").MODELS.build(config.model)
    assert type(model).__name__ == "EncoderDecoder"
    trained = [name for name, p in model.backbone.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("tuned.methods.0.") for name in trained)
    maps = model.backbone(torch.randn(1, 3, 32, 32))
    assert [tuple(one.shape) for one in maps] == [(1, 192, 2, 2)]


def test_a_neck_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="VpeftBackbone: there is no neck 'pyramid'; there are "):
        mmseg.VpeftBackbone("vit_tiny_patch16_224", {"name": "lora"}, {"name": "pyramid"}, "none", 32)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "fishmask"}, "VpeftBackbone: fishmask looks at images with one label each before it trains"),
        ({"name": "evp"}, "VpeftBackbone: evp shrinks the image within its prompt, and the labels would no longer lie"),
        ({"name": "vqt"}, "vqt changes what is read from the last block as features, which a neck does not read"),
    ],
)
def test_methods_that_do_not_go_with_masks_are_refused(method, words):
    with pytest.raises(ValueError, match=words):
        mmseg.VpeftBackbone("vit_tiny_patch16_224", method, {"name": "last"}, "none", 32)


def test_methods_in_a_backbone_without_a_graph_are_refused():
    neck = {"name": "vit_adapter", "regime": "extractor"}
    with pytest.raises(ValueError, match="runs the backbone without a graph, so lora would not learn"):
        mmseg.VpeftBackbone("vit_tiny_patch16_224", {"name": "lora"}, neck, "none", 32)


class Batches(L.LightningDataModule):
    """Two batches of noise; what is left of the middle is class 0, the rest 1."""

    def train_dataloader(self):
        return DataLoader(self.batches(), batch_size=None)

    def batches(self):
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (4, 2, 3, 32, 32), dtype=torch.uint8, generator=generator)
        mask = (torch.arange(32) >= 16).long().expand(2, 32, 32).clone()
        mask[:, :4] = 255
        return [{"image": one, "mask": mask, "index": torch.arange(2) + 2 * i} for i, one in enumerate(image)]

    val_dataloader = test_dataloader = train_dataloader


def trainer(tmp_path, **options):
    return L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )


@pytest.mark.parametrize("model", [MODEL, UPER], ids=["fcn", "uper and auxiliary"])
def test_mmsegs_own_model_trains_under_lightning_and_comes_back_to_the_bit(model, installed, tmp_path):
    from vpeft.tasks.mmseg import MMSegmentation

    def task():
        torch.manual_seed(0)
        return MMSegmentation(mmseg.build(model), "abcd", OptimConfig(lr=1e-3), 1, [0.5] * 3, [0.5] * 3)

    trained, data = task(), Batches()
    before = {name: p.detach().clone() for name, p in trained.model.named_parameters()}
    run = trainer(tmp_path)
    run.fit(trained, data)
    moved = {name for name, p in trained.model.named_parameters() if not torch.equal(p, before[name])}
    heads = [part for part in ("decode_head", "auxiliary_head") if part in model]
    for part in (*heads, "backbone.tuned.methods"):
        assert any(name.startswith(f"{part}.") for name in moved), part
    assert not any(name.startswith("backbone.tuned.backbone.") for name in moved)
    assert trained.evaluation is not None
    assert 0 < trained.evaluation.aacc <= 1

    run.save_checkpoint(tmp_path / "all.ckpt")
    state = torch.load(tmp_path / "all.ckpt", weights_only=False)["state_dict"]
    assert not any("tuned.backbone." in name for name in state)
    assert any(name.endswith("running_var") for name in state)
    again = task()
    trainer(tmp_path).test(again, data, ckpt_path=tmp_path / "all.ckpt", verbose=False)
    images = trained.prepare(data.batches()[0])[0]
    with torch.no_grad():
        assert torch.equal(trained.eval().model(images), again.eval().model(images))

    # A batch of mmseg's own loaders, BGR and not yet normalised, is seen as the same images.
    batch = data.batches()[0]
    _, samples = trained.prepare(batch)
    theirs, _ = trained.prepare({"inputs": list(batch["image"].flip(1)), "data_samples": samples})
    torch.testing.assert_close(theirs, images)


def test_steps_penalties_and_rates_of_a_method_are_those_of_other_runs(installed, tmp_path, monkeypatch):
    from vpeft.methods.adalora import AdaLoRA
    from vpeft.tasks.mmseg import MMSegmentation

    stepped = []
    monkeypatch.setattr(AdaLoRA, "after_step", lambda self, step, steps: stepped.append((step, steps)))
    monkeypatch.setattr(AdaLoRA, "penalty", lambda self: torch.tensor(1e6))
    body = {**MODEL["backbone"], "method": [{"name": "adalora", "rank": 4, "target_rank": 2}, {"name": "layernorm"}]}
    optim = OptimConfig(lr=1e-3, head_lr=1e-2, warmup_epochs=0.25, schedule="poly", power=0.5, layer_decay=0.5)
    task = MMSegmentation(mmseg.build({**MODEL, "backbone": body}), "abcd", optim, 1, [0.5] * 3, [0.5] * 3)
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(task, Batches())
    assert stepped == [(step, 4) for step in range(4)]
    assert run.callback_metrics["train/loss"] > 1e6
    peak = {group["name"]: group["initial_lr"] for group in run.optimizers[0].param_groups}
    assert (peak["method"], peak["head"]) == (1e-3, 1e-2)
    assert peak["backbone12_undecayed"] == pytest.approx(1e-3 * 0.5)  # the last block; the norm after it is one more
    assert run.lr_scheduler_configs[0].scheduler.lr_lambdas[0](2) == pytest.approx((2 / 3) ** 0.5)
