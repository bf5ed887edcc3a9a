import dataclasses
import json

import lightning.pytorch as L
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.runs import DROPOUT, tiny_config, write_images
from vpeft.checkpoint import load_adapter, read_manifest
from vpeft.config import ConfigError, parse, to_yaml
from vpeft.normalization import normalization
from vpeft.results import Row, read_rows
from vpeft.run import train
from vpeft.tasks.averaging import RunningAverage
from vpeft.tasks.classification import Classification


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors")


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """One run with everything in it, its row and what it printed."""
    config = tiny_config(images, tmp_path_factory.mktemp("runs"), DROPOUT, ema=0.9, clip=1.0, selection="best_val")
    tested = []
    patch = pytest.MonkeyPatch()
    start = Classification.on_test_epoch_start
    patch.setattr(Classification, "on_test_epoch_start", lambda self: (tested.append(1), start(self))[1])
    row = train(config)
    patch.undo()
    return config, row, len(tested)


def test_the_row_is_complete_and_plain(finished):
    config, row, _ = finished
    assert set(row) == set(Row.__annotations__)
    assert read_rows(config.output / "results.jsonl") == [json.loads(json.dumps(row, allow_nan=False))]
    assert row["method"][0] == {**row["method"][0], "name": "lora", "rank": 2, "dropout": 0.3}
    assert "alpha" in row["method"][0], "defaults are written out"
    assert row["backbone"]["weights"]["source"] == "random"
    assert len(row["backbone"]["weights"]["sha256"]) == 64
    assert row["data"]["counts"] == {"train": 48, "val": 12, "test": 15}
    assert row["data"]["batch_size"] == 8
    assert row["preprocessing"]["normalization"] == {"name": "auto", "mean": [0.5] * 3, "std": [0.5] * 3}
    assert row["test"]["images"] == 15
    assert set(row["test"]["per_class"]) == {"blue", "green", "red"}
    assert row["parameters"]["total"] == sum(row["parameters"][k] for k in ("method", "head", "adopted", "frozen"))
    assert 0 <= row["time"]["data_wait_share"] < 1
    assert row["time"]["wall_seconds"] > 0
    assert row["versions"]["torch"] == torch.__version__


def test_the_test_split_is_used_once(finished):
    assert finished[2] == 1


def test_the_best_epoch_on_val_is_kept(finished):
    config, row, _ = finished
    events = EventAccumulator(str(config.output / "run" / "tensorboard")).Reload()
    accuracies = [event.value for event in events.Scalars("val/accuracy")]
    assert len(accuracies) == 3
    assert row["selection"]["rule"] == "best_val"
    assert row["selection"]["val_accuracy"] == pytest.approx(max(accuracies))
    assert row["selection"]["epoch"] == 1 + accuracies.index(max(accuracies))


def test_the_adapter_gives_the_accuracy_in_the_row(finished):
    from vpeft.data import ClassificationData
    from vpeft.metrics import evaluate

    config, row, _ = finished
    tuned, manifest = load_adapter(config.output / "run" / "adapter.safetensors")
    assert manifest["split"] == "train800"
    assert manifest["result"] == {"id": row["id"], "test_accuracy": row["test"]["accuracy"]}
    data = ClassificationData(config.data, tuned.backbone.image_size, tuned.backbone.interpolation, seed=0)
    mean, std = normalization("auto", tuned.backbone)
    task = Classification(tuned, data.classes, config.optim, config.train, mean, std).eval()
    with torch.no_grad():
        parts = [(task(batch["image"]), batch["label"]) for batch in data.test_dataloader()]
    logits, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    assert evaluate(logits, labels).accuracy == row["test"]["accuracy"]
    assert evaluate(logits, labels).loss == pytest.approx(row["test"]["loss"], rel=1e-5)


def test_tensorboard_has_curves_pictures_and_the_final_metric(finished):
    config, row, _ = finished
    events = EventAccumulator(str(config.output / "run" / "tensorboard"), {"images": 0}).Reload()
    scalars = {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "test/accuracy", "lr/method", "lr/head"}
    scalars |= {"speed/images_per_second", "speed/data_wait_percent", "speed/peak_memory_gib", "final/accuracy"}
    assert scalars <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {"test/predictions", "test/confusion"}
    assert all(events.Images(tag)[0].width > 300 for tag in events.Tags()["images"])
    assert events.Scalars("final/accuracy")[0].value == pytest.approx(row["test"]["accuracy"])


def test_the_saved_config_runs_again_as_it_is(finished):
    saved = finished[0].output / "run" / "config.yaml"
    assert to_yaml(parse([str(saved)])) == saved.read_text()
    assert "alpha: " in saved.read_text(), "the defaults of the method are written out"


def test_the_same_seed_gives_the_same_weights_in_a_new_folder(finished, capsys):
    config, row, _ = finished
    again = train(config)
    assert again["folder"] == str(config.output / "run-2")
    assert again["id"] != row["id"]
    assert again["test"] == row["test"]
    first, second = (load_file(config.output / name / "adapter.safetensors") for name in ("run", "run-2"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    shown = capsys.readouterr().out
    assert "epoch 3/3" in shown
    assert "test accuracy" in shown
    assert str(config.output / "run-2" / "adapter.safetensors") in shown


def test_resuming_a_finished_run_returns_its_row(finished, images, capsys):
    config, _, _ = finished
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True))
    rows = len(read_rows(config.output / "results.jsonl"))
    assert train(config) in read_rows(config.output / "results.jsonl")
    assert len(read_rows(config.output / "results.jsonl")) == rows
    assert "is finished already" in capsys.readouterr().out


def test_resuming_under_other_settings_names_them(finished):
    config, _, _ = finished
    optim = dataclasses.replace(config.optim, lr=0.5)
    config = dataclasses.replace(config, optim=optim, train=dataclasses.replace(config.train, resume=True))
    with pytest.raises(ConfigError, match=r"optim.lr was 0.02 and is 0.5. Give it the settings in .*config.yaml"):
        train(config)


@pytest.mark.parametrize("method", ["linear", "bitfit"])
def test_without_val_the_last_epoch_is_kept(images, tmp_path, method):
    config = tiny_config(images, tmp_path, {"name": method}, epochs=2)
    config.data.split = "train800val200"
    row = train(config)
    assert row["val"] is None
    assert row["selection"] == {"rule": "last", "epoch": 2, "val_accuracy": None}
    assert (row["parameters"]["adopted"] > 0) == (method == "bitfit")
    manifest = read_manifest(tmp_path / "run" / "adapter.safetensors")
    assert manifest["parameters"]["adopted"] == row["parameters"]["adopted"]


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(images, tmp_path, monkeypatch):
    config = tiny_config(images, tmp_path)
    step = Classification.training_step

    def diverge(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        return loss * float("nan") if (self.current_epoch, batch_idx) == (1, 2) else loss

    monkeypatch.setattr(Classification, "training_step", diverge)
    with pytest.raises(FloatingPointError, match=r"in optimiser step 9 of 18 \(epoch 2\), .* Try a lower optim.lr"):
        train(config)
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 6
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())
    assert not (tmp_path / "results.jsonl").exists()


def test_weights_that_are_not_finite_never_reach_a_checkpoint(images, tmp_path, monkeypatch):
    """The loss of the last step is finite, and its gradient is not."""
    config = tiny_config(images, tmp_path)

    def diverge(self, outputs, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (1, 5):
            self.tuned.head.linear.bias.data[1] = float("inf")

    monkeypatch.setattr(Classification, "on_train_batch_end", diverge)
    said = r"Trained weights \(head.linear.bias\) are not finite numbers after step 12 of 18 \(epoch 2\), at .* Try a"
    with pytest.raises(FloatingPointError, match=said):
        train(config)
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 6
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


def test_weights_that_are_not_finite_are_not_tested(images, tmp_path, monkeypatch):
    """Those of the average, for one, are not the ones that a checkpoint was written of."""
    swap = RunningAverage.swap

    def diverge(self, module):
        swap(self, module)
        module.tuned.head.linear.bias.data[1] = float("nan")

    def fit(self, *args, **options):
        real(self, *args, **options)
        monkeypatch.setattr(RunningAverage, "swap", diverge)

    real = L.Trainer.fit
    monkeypatch.setattr(L.Trainer, "fit", fit)
    with pytest.raises(FloatingPointError, match=r"after step 6 of 6 \(epoch 1\)"):
        train(tiny_config(images, tmp_path, epochs=1, ema=0.9))
    assert not (tmp_path / "run" / "adapter.safetensors").exists()


def test_a_test_loss_that_is_not_finite_gives_no_row(images, tmp_path, monkeypatch):
    step = Classification.test_step
    monkeypatch.setattr(Classification, "test_step", lambda self, batch, index: step(self, batch, index) * 0)
    end = Classification.on_test_epoch_end

    def overflow(self):
        self._seen[0][0][0] = float("inf")
        end(self)

    monkeypatch.setattr(Classification, "on_test_epoch_end", overflow)
    with pytest.raises(FloatingPointError, match=r"The test loss is nan, not a finite number, so .*run gets no result"):
        train(tiny_config(images, tmp_path, epochs=1))
    assert not (tmp_path / "results.jsonl").exists()
    assert not (tmp_path / "run" / "adapter.safetensors").exists()


def test_the_last_epoch_is_evaluated_whatever_val_every_is(images, tmp_path, capsys):
    config = tiny_config(images, tmp_path, val_every=2)
    row = train(config)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert ["val" in line for line in lines] == [False, True, True]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("val/accuracy")]
    assert [step for step, _ in found] == [11, 17], "the last steps of epochs 2 and 3"
    assert row["selection"]["epoch"] == 3
    assert row["selection"]["val_accuracy"] == row["val"]["accuracy"] == pytest.approx(found[-1][1])


def test_parameters_are_counted_before_training(images, tmp_path, monkeypatch):
    """FSDP leaves a share of each in a process."""
    fit = L.Trainer.fit

    def shard(self, task, *args, **options):
        fit(self, task, *args, **options)
        task.tuned.head.linear.requires_grad_(False)

    monkeypatch.setattr(L.Trainer, "fit", shard)
    row = train(tiny_config(images, tmp_path, epochs=1))
    assert row["parameters"]["head"] == 3 * 65


def test_images_left_out_are_in_the_summary(tmp_path, capsys):
    images = write_images(tmp_path / "images")
    (images / "red" / "0.png").write_bytes(b"no image")
    (images / "red" / "1.png").write_bytes(b"no image")
    config = tiny_config(images, tmp_path / "runs", epochs=1)
    config.data.on_error = "skip"
    with pytest.warns(UserWarning, match="Left out of"):
        row = train(config)
    assert row["data"]["skipped"] == 2
    assert "2 unreadable images (data.on_error skip)" in capsys.readouterr().out


@pytest.mark.parametrize("backbone", ["vit_base_patch16_224.orig_in21k", "open_clip:ViT-B-16/openai", "hf:google/vit"])
def test_missing_files_are_found_before_a_backbone_is_fetched(images, tmp_path, monkeypatch, backbone):
    monkeypatch.setattr("vpeft.backbones.create", lambda *args: pytest.fail("the hub is asked"))
    config = dataclasses.replace(tiny_config(images, tmp_path / "runs"), backbone=backbone, pretrained="auto")
    missing = dataclasses.replace(config, data=dataclasses.replace(config.data, root=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=f"data.root {tmp_path}/nowhere does not exist"):
        train(missing)
    with pytest.raises(FileNotFoundError, match=f"There is no weights file {tmp_path}/none.npz"):
        train(dataclasses.replace(config, pretrained=str(tmp_path / "none.npz")))
    assert not (tmp_path / "runs").exists()


def test_a_wrong_input_leaves_no_folder(images, tmp_path):
    config = tiny_config(images / "missing", tmp_path / "runs")
    with pytest.raises(ValueError, match="missing"):
        train(config)
    assert not (tmp_path / "runs").exists()


def test_compile_is_applied(images, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr("vpeft.tuned.Tuned.compile", lambda self: compiled.append(self))
    train(tiny_config(images, tmp_path, epochs=1, compile=True))
    assert len(compiled) == 1


def test_images_of_ones_own_never_bear_the_name_of_a_published_task(tmp_path):
    config = tiny_config(write_images(tmp_path / "mine"), tmp_path / "runs", epochs=1)
    row = train(dataclasses.replace(config, name=None, data=dataclasses.replace(config.data, task="eurosat")))
    assert row["task"] == "mine"
    assert "eurosat" not in row["folder"]
