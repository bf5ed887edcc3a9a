import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader

from tests.zoo import backbone
from vpeft.config import OptimConfig, TrainConfig
from vpeft.heads import LinearHead
from vpeft.methods import build
from vpeft.tasks.classification import Classification
from vpeft.tuned import Tuned

CLASSES = ["cat", "dog", "owl"]


def make_task(method="lora", batch_norm=False, optim=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), **train):
    torch.manual_seed(0)
    base = backbone("timm_vit")
    tuned = Tuned(base, build({"name": method}, base), LinearHead(base.dim, 3, batch_norm=batch_norm))
    return Classification(tuned, CLASSES, optim or OptimConfig(), TrainConfig(epochs=2, **train), mean, std)


def loader(count=6, batch=3):
    torch.manual_seed(1)
    items = [
        {
            "image": torch.randint(256, (3, 64, 64), dtype=torch.uint8),
            "label": torch.tensor(i % 3),
            "index": torch.tensor(i),
        }
        for i in range(count)
    ]
    return DataLoader(items, batch_size=batch)


def make_trainer(tmp_path, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    options = {"max_epochs": 2, "enable_checkpointing": False} | options
    return L.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet, **options)


def test_images_are_normalised_from_bytes():
    task = make_task(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    seen = []
    task.tuned.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    task(images)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(seen[0], (images / 255 - mean) / std)


def test_a_step_moves_what_is_trained_and_nothing_else(tmp_path):
    task = make_task(method="adaptformer", batch_norm=True)
    before = {name: value.clone() for name, value in task.tuned.state_dict().items()}
    make_trainer(tmp_path).fit(task, loader())
    moved = {name for name, value in task.tuned.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert moved <= set(task.tuned.delta())
    assert "head.linear.weight" in moved
    assert all(parameter.grad is None for parameter in task.tuned.backbone.parameters())


def test_the_rate_moves_every_step(tmp_path):
    task, rates = make_task(optim=OptimConfig(lr=1.0, warmup_epochs=1.0, min_lr=0.1)), []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    make_trainer(tmp_path, callbacks=[Record()]).fit(task, loader())
    assert rates == pytest.approx([1.0, 1.0, 0.55, 0.1])  # after each of 4 steps, for the next; 0.5 was the first


def test_accumulated_steps_are_counted_as_one(tmp_path):
    task = make_task(optim=OptimConfig(warmup_epochs=0.0))
    trainer = make_trainer(tmp_path, accumulate_grad_batches=2)
    trainer.fit(task, loader())
    assert trainer.global_step == 2
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_label_smoothing_is_only_in_the_training_loss():
    plain, smooth = make_task(), make_task(label_smoothing=0.5)
    batch = next(iter(loader()))
    losses = []
    for task in (plain, smooth):
        task.log = task.log_dict = lambda *args, **options: None
        stub = {"optimizers": [torch.optim.SGD([torch.zeros(1)], lr=1.0)], "global_step": 0, "log_every_n_steps": 1}
        task._trainer = type("Stub", (), stub)()
        task.trainer.optimizers[0].param_groups[0]["name"] = "head"
        losses.append(task.training_step(batch, 0).item())
    logits = plain(batch["image"])
    expected = [torch.nn.functional.cross_entropy(logits, batch["label"], label_smoothing=s).item() for s in (0, 0.5)]
    assert losses == pytest.approx(expected)


def test_evaluation_is_the_same_for_any_batch_size(tmp_path):
    task, found = make_task(), []
    for batch in (1, 4, 6):
        make_trainer(tmp_path).test(task, loader(batch=batch), verbose=False)
        assert task.evaluation is not None
        found.append((task.evaluation.accuracy, task.evaluation.loss, task.evaluation.ece))
    assert found[0] == pytest.approx(found[1])
    assert found[0] == pytest.approx(found[2])


def test_a_checkpoint_holds_only_what_is_trained_and_plain_values(tmp_path):
    task = make_task(method="bitfit", batch_norm=True)
    trainer = make_trainer(tmp_path)
    trainer.fit(task, loader(), loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(stored["state_dict"]) == {f"tuned.{name}" for name in task.tuned.delta()}
    assert "tuned.head.norm.running_mean" in stored["state_dict"]
    assert (tmp_path / "last.ckpt").stat().st_size < 100_000


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit(make_task(), loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"does not fit this model: it lacks .* Resume with the config"):
        make_trainer(tmp_path).fit(make_task("vpt"), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
