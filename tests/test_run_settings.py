"""Settings of a run that cannot work, and where the others go."""

import pytest
import torch

from vpeft import backbones
from vpeft.config import Config, ConfigError, DataConfig, HeadConfig, TrainConfig, resolve
from vpeft.normalization import normalization
from vpeft.run import build_trainer, check
from vpeft.run_folder import RunFolder
from vpeft.tasks.timing import Timing, Waiting


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epochs": 5}, r"warmup_epochs is 10 and train.epochs is 5: .* --optim.warmup_epochs 0.5"),
        ({"precision": "16-mixed", "accelerator": "cpu"}, "16-mixed needs a GPU; use bf16-mixed"),
        ({"sync_batchnorm": True, "accelerator": "cpu"}, "sync_batchnorm needs GPUs"),
        ({"selection": "best_val"}, "best_val chooses on val200"),
        ({"test": False}, "train.test false measures on val200 alone, which data.split train800val200 trains on"),
        ({"epochs": 0}, "train.epochs must be at least 1"),
    ],
)
def test_settings_that_cannot_work(change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check(Config(train=TrainConfig(**change)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ema": 0.9}, "no second set of weights"),
        ({"selection": "best_val"}, "no second set of weights"),
        ({"precision": "16-mixed"}, "has no scaler for 16-mixed"),
    ],
)
def test_what_fsdp_cannot_do_is_refused(change, sentence, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = Config(train=TrainConfig(strategy="fsdp", **change), data=DataConfig(split="train800"))
    with pytest.raises(ConfigError, match=sentence):
        check(config)


@pytest.mark.parametrize(
    "config",
    [
        Config(method={"name": "dam_vp"}),
        Config(head=HeadConfig("label_mapping")),
        Config(head=HeadConfig("active_features")),
    ],
    ids=["dam_vp", "label_mapping", "active_features"],
)
def test_what_looks_at_images_before_it_trains_is_refused_under_fsdp(config, request):
    config.train.strategy = "fsdp"
    with pytest.raises(ConfigError, match=f"and {request.node.callspec.id} looks at images through whole ones"):
        check(config)


def test_only_classification_can_leave_the_test_out():
    with pytest.raises(ConfigError, match=r"c.yaml: train.test false belongs to kind classification"):
        resolve({"kind": "segmentation", "train": {"test": False}}, "c.yaml")


def test_best_val_needs_something_to_choose_from():
    config = Config(data=DataConfig(split="train800"), train=TrainConfig(selection="best_val", val_every=101))
    with pytest.raises(ConfigError, match="val_every 101 leaves only that of the last of 100 epochs"):
        check(config)


def test_there_is_no_best_on_test():
    with pytest.raises(ConfigError, match="selection"):
        resolve({"train": {"selection": "best_test"}}, "x.yaml")


def test_normalizations():
    backbone = backbones.create("test_vit.r160_in1k", "none")
    assert normalization("auto", backbone) == (backbone.mean, backbone.std)
    assert normalization("imagenet", backbone)[0] == (0.485, 0.456, 0.406)
    assert normalization("inception", backbone) == ((0.5,) * 3, (0.5,) * 3)
    assert normalization("none", backbone) == ((0.0,) * 3, (1.0,) * 3)


def test_trainer_settings_reach_lightning(tmp_path):
    settings = TrainConfig(accelerator="cpu", accumulate=3, clip=0.5, val_every=2, precision="bf16-mixed", epochs=7)
    trainer = build_trainer(Config(train=settings), RunFolder(tmp_path / "run", "x"), Timing(Waiting()), [])
    assert trainer.accumulate_grad_batches == 3
    assert trainer.gradient_clip_val == 0.5
    assert trainer.check_val_every_n_epoch == 2
    assert trainer.precision == "bf16-mixed"
    assert trainer.max_epochs == 7
    assert trainer.checkpoint_callbacks[0] is trainer.callbacks[-1], "it runs last, when everything is up to date"
